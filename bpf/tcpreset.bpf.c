/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP resets, sent and received. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { NOSOCK, PROCESS, ACTIVE, RECEIVE };

enum cause { NO_SOCKET, BY_SOCKET, BY_PROCESS, IN_CONNECT, IN_ESTABLISHED, IN_CLOSE };

struct tcpreset_event {
	struct event_head head;
	struct tuple tuple;
	u32 reason;
	u8 state; /* of the socket; 0 if there is none */
	u8 pad[3];
};

struct tcpreset_key {
	u32 netns;
	u32 cause;
	u64 cookie;
};

struct tcpreset_options {
	struct limit limit;
	struct event_filter filter;
	u8 stack;
};

/* Only for its type, which user space takes over from here. */
const volatile struct tcpreset_event anchor = {};

/* Number of arguments of tcp_send_reset. */
const volatile u8 arguments = 0;

/* Whether other programs than that of tcp_send_reset tell of resets without a socket. */
const volatile bool no_socket_elsewhere = false;

/* Number of arguments of kfree_skb. */
const volatile u8 kfree_skb_arguments = 0;

struct tcpreset_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct tcpreset_key);
	__type(value, u64);
} counters SEC(".maps");

static __always_inline int reset(void *ctx, const struct sock *sk, struct netns netns, u16 kind,
				 u32 cause, const struct tuple *t, u8 state, u32 reason,
				 bool in_task)
{
	struct tcpreset_key key = {.netns = netns.inum, .cause = cause, .cookie = netns.cookie};
	struct stats *st = stats_here();
	struct tcpreset_event *e;
	u64 *value, zero = 0;

	if (!st)
		return 0;
	value = counter(&counters, &key, &zero, st);
	if (value)
		__sync_fetch_and_add(value, 1);
	if (!is_wanted(&options.filter, t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	if (in_task) {
		e->head.pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(e->head.comm, sizeof(e->head.comm));
	}
	e->tuple = *t;
	e->reason = reason;
	e->state = state;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	event_submit(e, st);
	return 0;
}

/*
 * The tuple is that of the reset itself: what answers a packet travels the other way round, what
 * was started here (skb is NULL) goes from the socket to its peer. Both arguments may be NULL.
 */
SEC("tp_btf/tcp_send_reset")
int on_send_reset(u64 *ctx)
{
	const struct sock *sk = maybe(ctx, 0);
	const struct sk_buff *skb = maybe(ctx, 1);
	u32 reason = tcp_send_reset_reason(ctx, arguments), cause = NO_SOCKET;
	u8 state = sk ? sk->__sk_common.skc_state : 0;
	struct tuple t = {.proto = 6};
	bool in_task = false;
	u16 kind = NOSOCK;
	struct netns netns;

	if (skb) {
		tuple_of_skb(skb, bpf_ntohs(skb->protocol), &t);
		tuple_reverse(&t);
		netns = sk ? netns_of_sock(sk) : netns_of_skb(skb);
		if (sk && is_full(state)) {
			kind = PROCESS;
			cause = BY_SOCKET;
		} else if (no_socket_elsewhere) {
			return 0;
		}
	} else {
		if (!sk)
			return 0;
		tuple_of_sock(sk, &t, false);
		netns = netns_of_sock(sk);
		kind = ACTIVE;
		cause = BY_PROCESS;
		/*
		 * Timers send resets too, and then `current` is whoever was interrupted. But they
		 * leave a socket alone while a process holds it: a held lock means that the
		 * current task is the holder.
		 */
		in_task = is_full(state) && sk->sk_lock.owned;
	}
	return reset(ctx, sk, netns, kind, cause, &t, state, reason, in_task);
}

/*
 * Where tcp_send_reset says nothing of them, resets without a socket are seen where they are made.
 * A packet that is a reset itself is never answered.
 */
static __always_inline int answered(void *ctx, const struct sock *sk, const struct sk_buff *skb,
				    bool typed)
{
	u8 state = sk ? load(typed, sk, __sk_common.skc_state) : 0;
	struct tuple t = {.proto = 6};

	if ((sk && is_full(state)) || tcp_head_of_skb(skb, typed).flags & RST_FLAG)
		return 0;
	tuple_of_skb_at(skb, bpf_ntohs(load(typed, skb, protocol)), &t, typed);
	tuple_reverse(&t);
	return reset(ctx, 0, netns_of_skb_at(skb, typed), NOSOCK, NO_SOCKET, &t, state, 0, false);
}

SEC("fentry/tcp_v4_send_reset")
int fentry_v4(u64 *ctx)
{
	return answered(ctx, (void *)ctx[0], (void *)ctx[1], true);
}

SEC("fentry/tcp_v6_send_reset")
int fentry_v6(u64 *ctx)
{
	return answered(ctx, (void *)ctx[0], (void *)ctx[1], true);
}

SEC("kprobe/tcp_v4_send_reset")
int kprobe_v4(struct pt_regs *ctx)
{
	return answered(ctx, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false);
}

SEC("kprobe/tcp_v6_send_reset")
int kprobe_v6(struct pt_regs *ctx)
{
	return answered(ctx, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false);
}

/* The next best: the packet that was answered is freed for the reason that there is no socket. */
SEC("tp_btf/kfree_skb")
int on_no_socket(u64 *ctx)
{
	const struct sk_buff *skb = (void *)ctx[0];
	u16 protocol = bpf_ntohs(skb->protocol);
	struct tuple t = {};

	if (!is_drop_reason(kfree_skb_reason(ctx, kfree_skb_arguments), SKB_DROP_REASON_NO_SOCKET))
		return 0;
	tuple_of_skb(skb, protocol, &t);
	return t.proto == 6 ? answered(ctx, 0, skb, true) : 0;
}

SEC("tp_btf/tcp_receive_reset")
int on_receive_reset(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	struct tuple t = {.proto = 6};
	u32 cause = IN_CLOSE;
	u8 state;

	if (!sk)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV)
		cause = IN_CONNECT;
	else if (state == TCP_ESTABLISHED)
		cause = IN_ESTABLISHED;
	tuple_of_sock(sk, &t, true);
	return reset(ctx, sk, netns_of_sock(sk), RECEIVE, cause, &t, state, 0, false);
}
