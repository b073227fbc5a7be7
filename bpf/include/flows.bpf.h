/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is counted by five-tuple, where somebody asked for it. Who has not been heard of for longest
 * makes room. What is lost with him is in the exact counters of the program all the same, which
 * user space subtracts from.
 */
#ifndef NETSKOOP_FLOWS_BPF_H
#define NETSKOOP_FLOWS_BPF_H

#include "netskoop.bpf.h"
#include "packet.bpf.h"

struct flow_key {
	u32 netns;
	u32 pad;
	struct tuple tuple;
	u64 cookie;
};

struct flow_value {
	u64 packets;
	u64 segments;
};

/* The loader gives it more room where there are many CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow_key);
	__type(value, struct flow_value);
} flows SEC(".maps");

/*
 * Before the exact counter: whoever reads that one first never finds more in it than in all of the
 * flows.
 */
static __always_inline void count_flow(struct netns netns, const struct tuple *t, u64 segments)
{
	struct flow_key key = {.netns = netns.inum, .tuple = *t, .cookie = netns.cookie};
	struct flow_value *value, zero = {};

	if (!t->family)
		return;
	value = entry(&flows, &key, &zero);
	if (!value)
		return;
	__sync_fetch_and_add(&value->packets, 1);
	__sync_fetch_and_add(&value->segments, segments);
}

#endif
