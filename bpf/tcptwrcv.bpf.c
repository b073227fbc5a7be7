/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What still comes for a connection that is closed: its socket is in TIME_WAIT, or was. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { RECEIVED, RESET };

enum type { SYN, RST, FIN, DATA, ACK };

struct tcptwrcv_event {
	struct event_head head;
	struct tuple tuple;
	u32 payload;
	u8 type;
	u8 pad[3];
};

struct tcptwrcv_key {
	u32 netns;
	u32 type;
	u64 cookie;
};

struct tcptwrcv_options {
	struct limit limit;
	struct event_filter filter;
	u8 stack;
};

/* Only for its type, which user space takes over from here. */
const volatile struct tcptwrcv_event anchor = {};

/* Number of arguments of kfree_skb. */
const volatile u8 arguments = 0;

struct tcptwrcv_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct tcptwrcv_key);
	__type(value, u64);
} counters SEC(".maps");

static __always_inline u8 type_of(u8 flags, u32 payload)
{
	if (flags & RST_FLAG)
		return RST;
	if (flags & SYN_FLAG)
		return SYN;
	if (flags & FIN_FLAG)
		return FIN;
	return payload ? DATA : ACK;
}

static __always_inline int received(void *ctx, const struct sock *tw, const struct sk_buff *skb,
				    bool typed)
{
	struct tcp_head tcp = tcp_head_of_skb(skb, typed);
	struct netns netns = netns_of_sock_at(tw, typed);
	/* TCP has taken the headers in front of its own off. */
	u32 len = load(typed, skb, len), payload = len > tcp.length ? len - tcp.length : 0;
	struct tcptwrcv_key key = {.netns = netns.inum, .cookie = netns.cookie};
	struct stats *st = stats_here();
	struct tcptwrcv_event *e;
	u64 *value, zero = 0;
	struct tuple t = {};

	if (!st || !tcp.length)
		return 0;
	key.type = type_of(tcp.flags, payload);
	value = counter(&counters, &key, &zero, st);
	if (value)
		__sync_fetch_and_add(value, 1);
	/* The peer's FIN often comes when its connection has been put into TIME_WAIT already. */
	if (key.type == FIN)
		return 0;
	tuple_of_skb_at(skb, bpf_ntohs(load(typed, skb, protocol)), &t, typed);
	if (!is_wanted(&options.filter, &t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, key.type == RST ? RESET : RECEIVED,
			options.stack, st);
	if (!e)
		return 0;
	e->tuple = t;
	e->payload = payload;
	e->type = key.type;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	event_submit(e, st);
	return 0;
}

/* The socket has dealt with the packet, which is then freed; the last argument is that socket. */
SEC("tp_btf/kfree_skb")
int on_kfree_skb(u64 *ctx)
{
	const struct sock *sk = arguments > RX_SK ? maybe(ctx, RX_SK) : 0;

	if (!sk || sk->__sk_common.skc_state != TCP_TIME_WAIT)
		return 0;
	return received(ctx, sk, (void *)ctx[0], true);
}

SEC("fentry/tcp_timewait_state_process")
int fentry_timewait(u64 *ctx)
{
	return received(ctx, (void *)ctx[0], (void *)ctx[1], true);
}

SEC("kprobe/tcp_timewait_state_process")
int kprobe_timewait(struct pt_regs *ctx)
{
	return received(ctx, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false);
}
