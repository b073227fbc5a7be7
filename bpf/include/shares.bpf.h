/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a map of all namespaces holds for each of them, where it is bounded: a namespace that wants
 * ever more of it is to find its own bound before the others find no room.
 */
#ifndef NETSKOOP_SHARES_BPF_H
#define NETSKOOP_SHARES_BPF_H

#include "netskoop.bpf.h"

struct share_key {
	u32 netns;
	u32 of; /* which map */
	u64 cookie;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, struct share_key);
	__type(value, s64);
} shares SEC(".maps");

/* Takes one more place, unless the namespace has as many as it may. If it is not known how many it
 * has, it is not held back. */
static __always_inline bool take_place(struct netns netns, u32 of, s64 most)
{
	struct share_key key = {.netns = netns.inum, .of = of, .cookie = netns.cookie};
	s64 zero = 0, *taken = entry(&shares, &key, &zero);

	if (!taken)
		return true;
	if (*taken >= most)
		return false;
	__sync_fetch_and_add(taken, 1);
	return true;
}

static __always_inline void leave_place(struct netns netns, u32 of)
{
	struct share_key key = {.netns = netns.inum, .of = of, .cookie = netns.cookie};
	s64 *taken = bpf_map_lookup_elem(&shares, &key);

	if (taken)
		__sync_fetch_and_add(taken, -1);
}

/* Puts something into a map that is not there, of which a namespace may have `most`. A place is
 * taken by whoever puts it in, and by him alone. */
static __always_inline bool add_in_place(void *map, const void *key, const void *value,
					 struct netns netns, u32 of, s64 most)
{
	if (!take_place(netns, of, most))
		return false;
	if (!bpf_map_update_elem(map, key, value, BPF_NOEXIST))
		return true;
	leave_place(netns, of);
	return false;
}

/* The same, and what is there is replaced. */
static __always_inline bool put_in_place(void *map, const void *key, const void *value,
					 struct netns netns, u32 of, s64 most)
{
	if (bpf_map_lookup_elem(map, key))
		return !bpf_map_update_elem(map, key, value, BPF_ANY);
	return add_in_place(map, key, value, netns, of, most);
}

/* Takes it out again. */
static __always_inline void take_out(void *map, const void *key, struct netns netns, u32 of)
{
	if (!bpf_map_delete_elem(map, key))
		leave_place(netns, of);
}

#endif
