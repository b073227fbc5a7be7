/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What an expert looks for and no counter of a namespace tells of. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The kinds of the events as well, so that each has a limit of its own. */
enum anomaly { NEIGHBOUR_FAILED, NEIGHBOUR_TABLE_FULL, SOCKET_MEMORY };

enum { NUD_FAILED = 0x20 };

struct netanomaly_event {
	struct event_head head;
	struct tuple tuple;
	u32 neighbour[4];
	u8 device[16];
	u8 family; /* of the neighbour: 4, 6, or 0 if there is none */
	u8 direction;
	u8 pad[6];
};

struct netanomaly_key {
	u32 netns;
	u32 anomaly;
	u64 cookie;
};

struct netanomaly_options {
	struct limit limit;
	u8 stack;
};

/* Only for its type, which user space takes over from here. */
const volatile struct netanomaly_event anchor = {};

struct netanomaly_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct netanomaly_key);
	__type(value, u64);
} counters SEC(".maps");

/* Counts, and begins an event that tells of nothing yet. */
static __always_inline struct netanomaly_event *begin(void *ctx, struct netns netns, u32 anomaly,
						      struct stats *st)
{
	struct netanomaly_key key = {
		.netns = netns.inum, .anomaly = anomaly, .cookie = netns.cookie};
	u64 *value, zero = 0;
	struct netanomaly_event *e;

	value = counter(&counters, &key, &zero, st);
	if (value)
		__sync_fetch_and_add(value, 1);
	e = event_begin(sizeof(*e), &options.limit, netns, anomaly, options.stack, st);
	if (!e)
		return 0;
	__builtin_memset(&e->tuple, 0, sizeof(e->tuple));
	__builtin_memset(e->neighbour, 0, sizeof(e->neighbour));
	__builtin_memset(e->device, 0, sizeof(e->device));
	e->family = 0;
	e->direction = 0;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	return e;
}

static __always_inline int neighbour(void *ctx, u32 anomaly, const struct neigh_table *table,
				     const struct net_device *dev, const void *address)
{
	struct stats *st = stats_here();
	struct netanomaly_event *e;
	int family = table->family;

	/* Both share the way in the kernel with tables of other protocols. */
	if (!st || (family != AF_INET && family != AF_INET6))
		return 0;
	e = begin(ctx, netns_of(dev->nd_net.net), anomaly, st);
	if (!e)
		return 0;
	bpf_core_read(e->device, sizeof(e->device), &dev->name);
	if (family == AF_INET) {
		e->family = 4;
		bpf_probe_read_kernel(e->neighbour, 4, address);
	} else {
		e->family = 6;
		bpf_probe_read_kernel(e->neighbour, 16, address);
	}
	event_submit(e, st);
	return 0;
}

/*
 * Its end: a neighbour that has been asked often enough has just been given up. neigh_update is
 * not told of that, since it is for what others say.
 */
SEC("tp_btf/neigh_timer_handler")
int on_timer(u64 *ctx)
{
	const struct neighbour *n = (void *)ctx[0];

	if (n->nud_state != NUD_FAILED)
		return 0;
	return neighbour(ctx, NEIGHBOUR_FAILED, n->tbl, n->dev,
			 __builtin_preserve_access_index(&n->primary_key));
}

/* Without a neighbour there was no room for one. */
SEC("tp_btf/neigh_create")
int on_create(u64 *ctx)
{
	if (number_of(ctx, 3))
		return 0;
	return neighbour(ctx, NEIGHBOUR_TABLE_FULL, (void *)ctx[0], (void *)ctx[1],
			 (void *)number_of(ctx, 2));
}

SEC("tp_btf/sock_exceed_buf_limit")
int on_exceed(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	struct stats *st = stats_here();
	struct netanomaly_event *e;

	if (!st)
		return 0;
	e = begin(ctx, netns_of_sock(sk), SOCKET_MEMORY, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	e->direction = number_of(ctx, 3);
	tuple_of_sock(sk, &e->tuple, e->direction != 0);
	e->tuple.proto = sk->sk_protocol;
	event_submit(e, st);
	return 0;
}
