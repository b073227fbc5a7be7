/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections from others: how long they wait for accept(), and those that find its queue full. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include "shares.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* In the place of a number that this kernel does not show. */
#define ABSENT (~0ULL)

enum kind { SLOW, OVERFLOW };

struct listen_event {
	struct event_head head;
	struct tuple tuple;
	u64 waited_ns;
	u32 listener[4]; /* the address that is listened on */
	u32 backlog;
	u32 limit;
	u16 port;
	u8 family;
	u8 is_ack; /* it was the last packet of a handshake, not the first */
	u32 pad;
};

struct listen_options {
	struct limit limit;
	struct event_filter filter;
	u64 slow_ns;
	u8 stack;
	u8 stamp; /* whether something will tell that a connection was accepted */
};

struct listen_key {
	u32 netns;
	u32 port;
	u64 cookie;
};

struct listen_value {
	u64 connections;
	u64 full_syn;
	u64 full_ack;
	u64 abandoned;
	u64 closed; /* when a listener on it was closed, and none was heard of since; or 0 */
};

/* A connection that nobody has accepted yet. */
struct waiting {
	u64 began;
	u64 cgroup;
	struct netns netns;
	struct tuple tuple;
};

/* Only for its type, which user space takes over from here. */
const volatile struct listen_event anchor = {};

/* Whether there are hooks for full queues, and one that no accept() can pass by. */
const volatile bool sees_full = false;
const volatile bool sees_all = false;

struct listen_options options = {};

/* What namespaces have shares of. */
enum { PORTS, WAITING };

/* So many ports of a namespace are counted one by one, the others together as port 0, which none
 * has. A port whose listener was closed so long ago makes room: user space has read it for the last
 * time by then, or nobody reads. */
#define MOST_PORTS 64
#define CLOSED_NS 600000000000ULL

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct listen_key);
	__type(value, struct listen_value);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} waits SEC(".maps");

/* So many connections of a namespace are followed until they are accepted. */
#define MOST_WAITING 2048

/* By the socket's address. An entry goes when the connection is accepted, or has ended without. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct waiting);
} waiting SEC(".maps");

/* The counters of a port, or those of all that have none. */
static __always_inline struct listen_value *counters_of(struct netns netns, u32 port,
							struct stats *st)
{
	struct listen_key key = {.netns = netns.inum, .port = port, .cookie = netns.cookie};
	struct listen_value *value = bpf_map_lookup_elem(&counters, &key);
	struct listen_value zero = {
		.full_syn = sees_full ? 0 : ABSENT,
		.full_ack = sees_full ? 0 : ABSENT,
		.abandoned = sees_all ? 0 : ABSENT,
	};

	if (value)
		return value;
	add_in_place(&counters, &key, &zero, netns, PORTS, MOST_PORTS);
	/* Perhaps another CPU was first. */
	value = bpf_map_lookup_elem(&counters, &key);
	if (value)
		return value;
	key.port = 0;
	return counter(&counters, &key, &zero, st);
}

/* The port under which it is counted. */
static __always_inline u32 counted_as(struct netns netns, u32 port)
{
	struct listen_key key = {.netns = netns.inum, .port = port, .cookie = netns.cookie};

	return bpf_map_lookup_elem(&counters, &key) ? port : 0;
}

/* The end of a wait, in the context of whoever accepts. */
static __always_inline int accepted(void *ctx, u64 sk)
{
	struct waiting *found = bpf_map_lookup_elem(&waiting, &sk);
	struct stats *st = stats_here();
	struct listen_event *e;
	struct netns netns;
	u64 waited;

	if (!found || !st)
		return 0;
	waited = bpf_ktime_get_ns() - found->began;
	netns = found->netns;
	observe_time(&waits, netns, counted_as(netns, found->tuple.dport), waited, st);
	if (waited < options.slow_ns || !is_wanted(&options.filter, &found->tuple, st))
		goto out;
	e = event_begin(sizeof(*e), &options.limit, netns, SLOW, options.stack, st);
	if (!e)
		goto out;
	e->head.cgroup = found->cgroup;
	e->head.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->head.comm, sizeof(e->head.comm));
	e->tuple = found->tuple;
	e->waited_ns = waited;
	__builtin_memset(e->listener, 0,
			 sizeof(*e) - __builtin_offsetof(struct listen_event, listener));
	event_submit(e, st);
out:
	take_out(&waiting, &sk, netns, WAITING);
	return 0;
}

/* These come first in the object, and so are attached before anything waits for them. Whatever
 * accept() returns passes here, with the socket that was accepted. */
SEC("fentry/security_sock_graft")
int fentry_graft(u64 *ctx)
{
	return accepted(ctx, ctx[0]);
}

SEC("kprobe/security_sock_graft")
int kprobe_graft(struct pt_regs *ctx)
{
	return accepted(ctx, PT_REGS_PARM1(ctx));
}

static __always_inline bool is_accept(const void *regs)
{
	const struct pt_regs___on_x86 *x86 = regs;
	const struct pt_regs___on_arm64 *arm64 = regs;
	u64 number;

	if (bpf_core_field_exists(x86->orig_ax)) {
		number = BPF_CORE_READ(x86, orig_ax);
		return number == 43 || number == 288;
	}
	if (bpf_core_field_exists(arm64->syscallno)) {
		number = BPF_CORE_READ(arm64, syscallno);
		return number == 202 || number == 242;
	}
	return false;
}

/* The end of every system call: of accept() and accept4() the result is a new descriptor. */
SEC("tp_btf/sys_exit")
int on_sys_exit(u64 *ctx)
{
	const struct task_struct *task;
	const struct socket *socket;
	s64 fd = ctx[1];
	struct file **table, *file = 0;

	if (fd < 0 || !is_accept((const void *)ctx[0]))
		return 0;
	task = (const void *)bpf_get_current_task();
	table = BPF_CORE_READ(task, files, fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), table + (u32)fd);
	socket = BPF_CORE_READ(file, private_data);
	return accepted(ctx, (u64)BPF_CORE_READ(socket, sk));
}

/* A packet came that makes a connection, and there is no room for one more to be accepted. */
static __always_inline int came(void *ctx, const struct sock *listener, const struct sk_buff *skb,
				bool is_ack, bool typed)
{
	u32 backlog = load(typed, listener, sk_ack_backlog);
	u32 limit = load(typed, listener, sk_max_ack_backlog);
	struct listen_value *value;
	struct listen_event *e;
	struct tuple t = {};
	struct netns netns;
	struct stats *st;
	u16 port;

	if (backlog <= limit)
		return 0;
	st = stats_here();
	if (!st)
		return 0;
	netns = netns_of_sock_at(listener, typed);
	port = load(typed, listener, __sk_common.skc_num);
	value = counters_of(netns, port, st);
	if (value)
		__sync_fetch_and_add(is_ack ? &value->full_ack : &value->full_syn, 1);
	tuple_of_skb_at(skb, bpf_ntohs(load(typed, skb, protocol)), &t, typed);
	if (!is_wanted(&options.filter, &t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, OVERFLOW, options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock_at(listener, typed);
	__builtin_memset(&e->tuple, 0, sizeof(*e) - __builtin_offsetof(struct listen_event, tuple));
	e->tuple = t;
	e->backlog = backlog;
	e->limit = limit;
	e->port = port;
	e->is_ack = is_ack;
	if (load(typed, listener, __sk_common.skc_family) == AF_INET6 &&
	    bpf_core_field_exists(listener->__sk_common.skc_v6_rcv_saddr)) {
		e->family = 6;
		bpf_probe_read_kernel(e->listener, sizeof(e->listener),
				      &listener->__sk_common.skc_v6_rcv_saddr);
	} else {
		e->family = 4;
		e->listener[0] = load(typed, listener, __sk_common.skc_rcv_saddr);
	}
	event_submit(e, st);
	return 0;
}

/* The IPv6 function hands what came over IPv4 to the other one. */
static __always_inline bool is_ipv6(const struct sk_buff *skb, bool typed)
{
	return load(typed, skb, protocol) == bpf_htons(ETH_P_IPV6);
}

SEC("fentry/tcp_conn_request")
int fentry_request(u64 *ctx)
{
	return came(ctx, (void *)ctx[2], (void *)ctx[3], false, true);
}

SEC("fentry/tcp_v4_syn_recv_sock")
int fentry_child_v4(u64 *ctx)
{
	return came(ctx, (void *)ctx[0], (void *)ctx[1], true, true);
}

SEC("fentry/tcp_v6_syn_recv_sock")
int fentry_child_v6(u64 *ctx)
{
	const struct sk_buff *skb = (void *)ctx[1];

	return is_ipv6(skb, true) ? came(ctx, (void *)ctx[0], skb, true, true) : 0;
}

SEC("kprobe/tcp_conn_request")
int kprobe_request(struct pt_regs *ctx)
{
	return came(ctx, (void *)PT_REGS_PARM3(ctx), (void *)PT_REGS_PARM4(ctx), false, false);
}

SEC("kprobe/tcp_v4_syn_recv_sock")
int kprobe_child_v4(struct pt_regs *ctx)
{
	return came(ctx, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), true, false);
}

SEC("kprobe/tcp_v6_syn_recv_sock")
int kprobe_child_v6(struct pt_regs *ctx)
{
	const struct sk_buff *skb = (void *)PT_REGS_PARM2(ctx);

	return is_ipv6(skb, false) ? came(ctx, (void *)PT_REGS_PARM1(ctx), skb, true, false) : 0;
}

/* A connection that MPTCP accepts has a socket of its own in front of this one: its wait is not
 * measured. */
static __always_inline bool is_mptcp(const struct sock *sk)
{
	const struct tcp_sock *tp = (const void *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp);
}

static __always_inline int established(const struct sock *sk, struct stats *st)
{
	struct waiting begun = {.began = bpf_ktime_get_ns(), .tuple.proto = 6};
	struct listen_value *value;
	u64 key = (u64)sk;

	begun.netns = netns_of_sock(sk);
	value = counters_of(begun.netns, sk->__sk_common.skc_num, st);
	if (value) {
		__sync_fetch_and_add(&value->connections, 1);
		if (value->closed)
			value->closed = 0;
	}
	/* With TCP fast open it may be accepted by now. */
	if (!options.stamp || sk->sk_socket || is_mptcp(sk))
		return 0;
	begun.cgroup = cgroup_of_sock(sk);
	tuple_of_sock(sk, &begun.tuple, true);
	if (!put_in_place(&waiting, &key, &begun, begun.netns, WAITING, MOST_WAITING))
		count(st, map_full);
	return 0;
}

static __always_inline int ended(const struct sock *sk, struct stats *st)
{
	struct listen_value *value;
	struct waiting *found;
	struct netns netns;
	u64 key = (u64)sk;

	found = bpf_map_lookup_elem(&waiting, &key);
	if (!found)
		return 0;
	netns = found->netns;
	value = sees_all ? counters_of(netns, found->tuple.dport, st) : 0;
	if (value)
		__sync_fetch_and_add(&value->abandoned, 1);
	take_out(&waiting, &key, netns, WAITING);
	return 0;
}

static __always_inline int closed(const struct sock *sk)
{
	struct netns netns = netns_of_sock(sk);
	struct listen_key key = {
		.netns = netns.inum, .port = port_of_sock(sk), .cookie = netns.cookie};
	struct listen_value *value = bpf_map_lookup_elem(&counters, &key);

	if (value)
		value->closed = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int on_state(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	u32 old = ctx[1], new = ctx[2];
	bool begins = old == TCP_SYN_RECV && new == TCP_ESTABLISHED;
	struct stats *st;

	if (!begins && new != TCP_CLOSE)
		return 0;
	st = stats_here();
	if (!st || sk->sk_protocol != 6)
		return 0;
	if (old == TCP_LISTEN)
		return closed(sk);
	return begins ? established(sk, st) : ended(sk, st);
}

/* Runs for each port that is counted, when user space asks. */
SEC("iter/bpf_map_elem")
int on_sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct listen_key *at = ctx->key;
	const struct listen_value *found = ctx->value;
	struct netns netns;
	struct listen_key key;

	if (!at || !found || !at->port || !found->closed ||
	    bpf_ktime_get_ns() - found->closed < CLOSED_NS)
		return 0;
	key = *at;
	netns.inum = key.netns;
	netns.cookie = key.cookie;
	if (bpf_map_delete_elem(&counters, &key))
		return 0;
	leave_place(netns, PORTS);
	/* Its key is laid out in the same way. */
	bpf_map_delete_elem(&waits, &key);
	return 0;
}
