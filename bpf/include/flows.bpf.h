/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is counted by five-tuple, where somebody asked for it: bounded, and old entries are taken
 * out by user space. */
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
	u64 last; /* CLOCK_MONOTONIC */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct flow_key);
	__type(value, struct flow_value);
} flows SEC(".maps");

static __always_inline void count_flow(struct netns netns, const struct tuple *t, u64 segments,
				       struct stats *st)
{
	struct flow_key key = {.netns = netns.inum, .tuple = *t, .cookie = netns.cookie};
	struct flow_value *value, zero = {};

	if (!t->family)
		return;
	value = counter(&flows, &key, &zero, st);
	if (!value)
		return;
	__sync_fetch_and_add(&value->packets, 1);
	__sync_fetch_and_add(&value->segments, segments);
	value->last = bpf_ktime_get_ns();
}

#endif
