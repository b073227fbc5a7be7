/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Segments that TCP sent once more, and why. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "flows.bpf.h"
#include "filter.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { SENT, FAILED };

enum type { DATA, SYN, SYNACK };

enum trigger { UNKNOWN, TIMEOUT, FAST, PROBE };

/* States of a sender's loss recovery, `enum tcp_ca_state`. */
enum { CA_RECOVERY = 3, CA_LOSS = 4 };

/* The packet is still in a queue of this host: nothing is lost, and nothing was tried. */
#define EBUSY 16

struct tcpretrans_event {
	struct event_head head;
	struct tuple tuple;
	u32 srtt_us; /* 0 if nothing was measured yet */
	u32 error;   /* why it could not be sent, an errno */
	u16 segments;
	u8 type;
	u8 trigger;
	u8 state;
	u8 pad[3];
};

struct tcpretrans_key {
	u32 netns;
	u16 type;
	u16 trigger;
	u64 cookie;
};

struct tcpretrans_value {
	u64 packets;
	u64 segments;
	u64 failed;
};

struct tcpretrans_options {
	struct limit limit;
	struct event_filter filter;
	u8 stack;
	u8 flows;
};

/* Only for its type, which user space takes over from here. */
const volatile struct tcpretrans_event anchor = {};

/* Number of arguments of tcp_retransmit_skb. */
const volatile u8 arguments = 0;

struct tcpretrans_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct tcpretrans_key);
	__type(value, struct tcpretrans_value);
} counters SEC(".maps");

/* What is told of one retransmission. */
struct retrans {
	struct tuple tuple;
	u32 srtt_us;
	u32 error;
	u16 segments;
	u8 type;
	u8 trigger;
	u8 state;
};

/* `owner` is the socket whose cgroup is asked: for a request that of the listener. */
static __always_inline int retransmitted(void *ctx, const struct sock *owner,
					 const struct retrans *r)
{
	struct netns netns = netns_of_sock(owner);
	struct tcpretrans_key key = {.netns = netns.inum,
				     .type = r->type,
				     .trigger = r->trigger,
				     .cookie = netns.cookie};
	struct tcpretrans_value *value, zero = {};
	struct stats *st = stats_here();
	struct tcpretrans_event *e;

	if (!st)
		return 0;
	value = counter(&counters, &key, &zero, st);
	if (value && r->error) {
		__sync_fetch_and_add(&value->failed, 1);
	} else if (value) {
		if (options.flows) {
			struct tuple flow = r->tuple;

			flow.pad = r->type;
			count_flow(netns, &flow, r->segments);
		}
		__sync_fetch_and_add(&value->packets, 1);
		__sync_fetch_and_add(&value->segments, r->segments);
	}
	if (!is_wanted(&options.filter, &r->tuple, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, r->error ? FAILED : SENT, options.stack,
			st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(owner);
	e->tuple = r->tuple;
	e->srtt_us = r->srtt_us;
	e->error = r->error;
	e->segments = r->segments;
	e->type = r->type;
	e->trigger = r->trigger;
	e->state = r->state;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	event_submit(e, st);
	return 0;
}

/*
 * A sender that waited in vain for an acknowledgement is in the state Loss, one that was told of a
 * gap in Recovery. What is sent again in any other state is a probe for the loss of the last
 * segment.
 */
static __always_inline u8 trigger_of(const struct sock *sk)
{
	const struct inet_connection_sock *icsk = (const void *)sk;
	u8 state = BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state);

	return state == CA_LOSS ? TIMEOUT : state == CA_RECOVERY ? FAST : PROBE;
}

SEC("tp_btf/tcp_retransmit_skb")
int on_retransmit(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	const struct sk_buff *skb = (void *)ctx[1];
	s32 error = tcp_retransmit_skb_error(ctx, arguments);
	struct retrans r = {.tuple = {.proto = 6}};

	if (error == -EBUSY)
		return 0;
	r.error = error < 0 ? -error : error;
	r.state = sk->__sk_common.skc_state;
	r.type = r.state == TCP_SYN_SENT ? SYN : r.state == TCP_SYN_RECV ? SYNACK : DATA;
	r.trigger = r.type == DATA ? trigger_of(sk) : TIMEOUT;
	r.srtt_us = BPF_CORE_READ((const struct tcp_sock *)sk, srtt_us) >> 3;
	r.segments = BPF_CORE_READ((const struct tcp_skb_cb *)skb->cb, tcp_gso_segs);
	if (!r.segments)
		r.segments = 1;
	tuple_of_sock(sk, &r.tuple, false);
	return retransmitted(ctx, sk, &r);
}

/* The answer to a SYN, sent again by a timer or because the SYN came again. There is no socket yet.
 */
SEC("tp_btf/tcp_retransmit_synack")
int on_retransmit_synack(u64 *ctx)
{
	const struct sock *listener = (void *)ctx[0];
	const struct request_sock *request = (void *)ctx[1];
	struct retrans r = {
		.tuple = {.proto = 6}, .segments = 1, .type = SYNACK, .state = TCP_NEW_SYN_RECV};

	tuple_of_sock((const struct sock *)request, &r.tuple, false);
	return retransmitted(ctx, listener, &r);
}
