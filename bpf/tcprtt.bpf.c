/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Round-trip times of TCP connections, as their senders have smoothed them. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct tcprtt_options {
	struct limit limit;
	struct event_filter filter;
	u64 interval_ns;
	u64 slow_us;
	u8 stack;
};

struct tcprtt_event {
	struct event_head head;
	struct tuple tuple;
	u32 srtt_us;
	u32 min_us;
};

/* Only for its type, which user space takes over from here. */
const volatile struct tcprtt_event anchor = {};

struct tcprtt_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} counters SEC(".maps");

/* When a socket was last looked at, by its address. One that is forgotten is looked at once more:
 * no total depends on it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, u64);
} looked SEC(".maps");

static __always_inline int look(void *ctx, const struct sock *sk, struct stats *st)
{
	const struct tcp_sock *tp = (const void *)sk;
	u32 srtt = BPF_CORE_READ(tp, srtt_us) >> 3;
	struct netns netns = netns_of_sock(sk);
	struct tuple t = {.proto = 6};
	struct tcprtt_event *e;

	/* Nothing was measured yet. */
	if (!srtt)
		return 0;
	observe(&counters, netns, 0, srtt, st);
	if (!options.slow_us || srtt < options.slow_us)
		return 0;
	tuple_of_sock(sk, &t, false);
	if (!is_wanted(&options.filter, &t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, 0, options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	e->tuple = t;
	e->srtt_us = srtt;
	e->min_us = BPF_CORE_READ(tp, rtt_min.s[0].v);
	event_submit(e, st);
	return 0;
}

/* For every segment of an established connection: mostly it is too early to look again. */
SEC("tp_btf/tcp_probe")
int on_segment(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	u64 key = (u64)sk, now = bpf_ktime_get_ns(), *last;
	struct stats *st;

	last = bpf_map_lookup_elem(&looked, &key);
	if (last) {
		if (now - *last < options.interval_ns)
			return 0;
		*last = now;
	} else {
		bpf_map_update_elem(&looked, &key, &now, BPF_ANY);
	}
	st = stats_here();
	return st ? look(ctx, sk, st) : 0;
}

/* And at the end, so that no short connection is missed. */
SEC("tp_btf/inet_sock_set_state")
int on_state(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	u32 old = ctx[1];
	struct stats *st;
	u64 key = (u64)sk;

	if (old != TCP_ESTABLISHED || sk->sk_protocol != 6)
		return 0;
	bpf_map_delete_elem(&looked, &key);
	st = stats_here();
	return st ? look(ctx, sk, st) : 0;
}
