/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long packets are on their way through the kernel, and in which part of the IP layer. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include "under_way.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Packets of one CPU whose arrival is remembered: a driver hands over at most 64 at once. */
#define ARRIVALS_BITS 8

#define PARTS 3
#define NOT_KNOWN (~0ULL)

#define TCP 6

/* A stamp of TCP that is older cannot be one. */
#define OLD_NS 100000000000ULL

enum { NF_INET_PRE_ROUTING = 0, NF_ACCEPTED = 1 };

/* Of the histograms and of the events. */
enum kind { RECEIVE, TRANSMIT };

/* In `parts`. */
enum { PREROUTING, ROUTE, LOCAL_IN };
enum { LOCAL_OUT, POSTROUTING };

/* What is under way at the address of a packet. */
enum what { DEPARTURE, OUTPUT, COUNTED };

struct kernellatency_options {
	struct limit limit;
	struct event_filter filter;
	u64 slow_ns;
	u8 stack;
};

struct kernellatency_event {
	struct event_head head;
	struct tuple tuple;
	u64 latency_ns;
	u64 parts[PARTS]; /* NOT_KNOWN where the packet was not seen */
};

/*
 * A packet on its way in. All of it happens on one CPU, in one go; an address that comes again is
 * another packet, or the same one on another interface, and its way begins anew.
 */
struct arrival {
	u64 skb;
	u64 came;
	u64 prerouted; /* 0 until then */
	u64 local;     /* 0 until then */
};

/* Only for its type, which user space takes over from here. */
const volatile struct kernellatency_event anchor = {};

struct kernellatency_options options = {};

/* What a new one begins with; too large for the stack. */
static const struct latency nothing = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct latency);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << ARRIVALS_BITS);
	__type(key, u32);
	__type(value, struct arrival);
} arrivals SEC(".maps");

static __always_inline struct latency *counter_of(struct netns netns, u32 path, struct stats *st)
{
	struct histogram_key key = {.netns = netns.inum, .kind = path, .cookie = netns.cookie};

	return counter(&counters, &key, &nothing, st);
}

static __always_inline void unmeasured(struct netns netns, u32 path)
{
	struct stats *st = stats_here();
	struct latency *latency;

	if (!st)
		return;
	latency = counter_of(netns, path, st);
	if (latency)
		__sync_fetch_and_add(&latency->unmeasured, 1);
}

static __always_inline void tell(void *ctx, const struct sk_buff *skb, struct netns netns, u16 path,
				 u64 cgroup, u64 total, const u64 *parts, struct stats *st,
				 bool typed)
{
	struct kernellatency_event *e;
	struct tuple t = {};
	int i;

	tuple_of_skb_at(skb, bpf_ntohs(load(typed, skb, protocol)), &t, typed);
	if (!is_wanted(&options.filter, &t, st))
		return;
	e = event_begin(sizeof(*e), &options.limit, netns, path, options.stack, st);
	if (!e)
		return;
	e->head.cgroup = cgroup;
	e->tuple = t;
	e->latency_ns = total;
#pragma unroll
	for (i = 0; i < PARTS; i++)
		e->parts[i] = parts[i];
	event_submit(e, st);
}

/* Counts a packet that has come to the end of its path, and tells of it if that took long. */
static __always_inline int ended(void *ctx, const struct sk_buff *skb, struct netns netns, u16 path,
				 const struct sock *sk, u64 total, const u64 *parts, bool typed)
{
	struct stats *st = stats_here();
	struct latency *latency;
	u64 cgroup = 0;

	if (!st)
		return 0;
	latency = counter_of(netns, path, st);
	if (latency)
		observe_latency(latency, total);
	if (total < options.slow_ns)
		return 0;
	if (typed)
		cgroup = cgroup_of_sock(sk);
	tell(ctx, skb, netns, path, cgroup, total, parts, st, typed);
	return 0;
}

static __always_inline struct arrival *place_of_arrival(u64 skb)
{
	u32 index = skb * 0x9e3779b97f4a7c15ULL >> (64 - ARRIVALS_BITS);

	return bpf_map_lookup_elem(&arrivals, &index);
}

/* NULL if another packet has taken the place, or this one came in on another CPU. */
static __always_inline struct arrival *arrival_of(u64 skb)
{
	struct arrival *arrival = place_of_arrival(skb);

	return arrival && arrival->skb == skb ? arrival : 0;
}

SEC("tp_btf/netif_receive_skb")
int on_receive(u64 *ctx)
{
	u64 skb = number_of(ctx, 0);
	struct arrival *arrival = place_of_arrival(skb);

	if (!arrival)
		return 0;
	arrival->skb = skb;
	arrival->came = bpf_ktime_get_ns();
	arrival->prerouted = 0;
	arrival->local = 0;
	return 0;
}

/* Called for each packet of a list as well, and only where there is a rule or another hook. What
 * was not accepted is gone: its address only is looked at. */
SEC("fexit/nf_hook_slow")
int fexit_netfilter(u64 *ctx)
{
	const struct nf_hook_state *state = (void *)ctx[1];
	s32 answer = ctx[4];
	struct arrival *arrival;

	if (answer != NF_ACCEPTED || state->hook != NF_INET_PRE_ROUTING ||
	    (state->pf != AF_INET && state->pf != AF_INET6))
		return 0;
	arrival = arrival_of(number_of(ctx, 0));
	if (arrival)
		arrival->prerouted = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int is_local(u64 skb)
{
	struct arrival *arrival = arrival_of(skb);

	if (arrival)
		arrival->local = bpf_ktime_get_ns();
	return 0;
}

SEC("fentry/ip_local_deliver")
int fentry_local_v4(u64 *ctx)
{
	return is_local(number_of(ctx, 0));
}

SEC("fentry/ip6_input")
int fentry_local_v6(u64 *ctx)
{
	return is_local(number_of(ctx, 0));
}

SEC("kprobe/ip_local_deliver")
int kprobe_local_v4(struct pt_regs *ctx)
{
	return is_local(PT_REGS_PARM1(ctx));
}

SEC("kprobe/ip6_input")
int kprobe_local_v6(struct pt_regs *ctx)
{
	return is_local(PT_REGS_PARM1(ctx));
}

/* The protocol gets it. It may be handed over once more, for what is inside; that is not counted.
 */
static __always_inline int delivered(void *ctx, const struct net *net, const struct sk_buff *skb,
				     u64 number, bool typed)
{
	struct arrival *arrival = arrival_of(number);
	u64 parts[PARTS] = {NOT_KNOWN, NOT_KNOWN, NOT_KNOWN}, now, routed;
	const struct sock *sk = load(typed, skb, sk);

	if (!arrival) {
		unmeasured(netns_read(net, typed), RECEIVE);
		return 0;
	}
	if (!arrival->came)
		return 0;
	now = bpf_ktime_get_ns();
	routed = arrival->came;
	if (arrival->prerouted) {
		parts[PREROUTING] = arrival->prerouted - routed;
		routed = arrival->prerouted;
	}
	if (arrival->local) {
		parts[ROUTE] = arrival->local - routed;
		parts[LOCAL_IN] = now - arrival->local;
	}
	now -= arrival->came;
	arrival->came = 0;
	return ended(ctx, skb, netns_read(net, typed), RECEIVE, sk, now, parts, typed);
}

SEC("fentry/ip_protocol_deliver_rcu")
int fentry_deliver_v4(u64 *ctx)
{
	return delivered(ctx, (void *)ctx[0], (void *)ctx[1], number_of(ctx, 1), true);
}

SEC("fentry/ip6_protocol_deliver_rcu")
int fentry_deliver_v6(u64 *ctx)
{
	return delivered(ctx, (void *)ctx[0], (void *)ctx[1], number_of(ctx, 1), true);
}

SEC("kprobe/ip_protocol_deliver_rcu")
int kprobe_deliver_v4(struct pt_regs *ctx)
{
	return delivered(ctx, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
			 PT_REGS_PARM2(ctx), false);
}

SEC("kprobe/ip6_protocol_deliver_rcu")
int kprobe_deliver_v6(struct pt_regs *ctx)
{
	return delivered(ctx, (void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
			 PT_REGS_PARM2(ctx), false);
}

/*
 * The next best, for TCP only: an established connection gets a segment. One that has waited for
 * the process that holds the socket comes later and perhaps on another CPU, where its address may
 * be that of an older packet.
 */
SEC("tp_btf/tcp_probe")
int on_segment(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	const u64 parts[PARTS] = {NOT_KNOWN, NOT_KNOWN, NOT_KNOWN};
	struct netns netns = netns_of_sock(sk);
	struct arrival *arrival = 0;
	u64 total;

	if (!sk->sk_lock.owned)
		arrival = arrival_of(number_of(ctx, 1));
	if (!arrival || !arrival->came) {
		unmeasured(netns, RECEIVE);
		return 0;
	}
	total = bpf_ktime_get_ns() - arrival->came;
	arrival->came = 0;
	return ended(ctx, (void *)ctx[1], netns, RECEIVE, sk, total, parts, true);
}

/* A protocol hands a packet over to be sent. */
static __always_inline int departs(const struct sk_buff *skb, u64 number, bool typed)
{
	struct place place = place_of(number, DEPARTURE);

	if (!begins(&place, bpf_ktime_get_ns()))
		unmeasured(netns_of_sock_at(load(typed, skb, sk), typed), TRANSMIT);
	return 0;
}

SEC("fentry/__ip_queue_xmit")
int fentry_tcp_v4(u64 *ctx)
{
	return departs((void *)ctx[1], number_of(ctx, 1), true);
}

SEC("fentry/inet6_csk_xmit")
int fentry_tcp_v6(u64 *ctx)
{
	return departs((void *)ctx[1], number_of(ctx, 1), true);
}

SEC("fentry/ip_send_skb")
int fentry_udp_v4(u64 *ctx)
{
	return departs((void *)ctx[1], number_of(ctx, 1), true);
}

SEC("fentry/ip6_send_skb")
int fentry_udp_v6(u64 *ctx)
{
	return departs((void *)ctx[0], number_of(ctx, 0), true);
}

SEC("kprobe/__ip_queue_xmit")
int kprobe_tcp_v4(struct pt_regs *ctx)
{
	return departs((void *)PT_REGS_PARM2(ctx), PT_REGS_PARM2(ctx), false);
}

SEC("kprobe/inet6_csk_xmit")
int kprobe_tcp_v6(struct pt_regs *ctx)
{
	return departs((void *)PT_REGS_PARM2(ctx), PT_REGS_PARM2(ctx), false);
}

SEC("kprobe/ip_send_skb")
int kprobe_udp_v4(struct pt_regs *ctx)
{
	return departs((void *)PT_REGS_PARM2(ctx), PT_REGS_PARM2(ctx), false);
}

SEC("kprobe/ip6_send_skb")
int kprobe_udp_v6(struct pt_regs *ctx)
{
	return departs((void *)PT_REGS_PARM1(ctx), PT_REGS_PARM1(ctx), false);
}

/* It was let through by the rules at LOCAL_OUT. Forwarded packets come here too, and are no news.
 */
static __always_inline int is_let_out(u64 skb)
{
	struct place departure = place_of(skb, DEPARTURE), output;

	if (!is_under_way(&departure))
		return 0;
	output = place_of(skb, OUTPUT);
	begins(&output, bpf_ktime_get_ns());
	return 0;
}

SEC("fentry/ip_output")
int fentry_output_v4(u64 *ctx)
{
	return is_let_out(number_of(ctx, 2));
}

SEC("fentry/ip6_output")
int fentry_output_v6(u64 *ctx)
{
	return is_let_out(number_of(ctx, 2));
}

SEC("kprobe/ip_output")
int kprobe_output_v4(struct pt_regs *ctx)
{
	return is_let_out(PT_REGS_PARM3(ctx));
}

SEC("kprobe/ip6_output")
int kprobe_output_v6(struct pt_regs *ctx)
{
	return is_let_out(PT_REGS_PARM3(ctx));
}

/* The namespace that sends: of the socket, and of the interface as well. What comes through from
 * another namespace still has its socket. */
static __always_inline const struct sock *sender_of(const struct sk_buff *skb)
{
	const struct net_device *dev = skb->dev;
	const struct sock *sk = skb->sk;

	if (!sk || !dev || sk->__sk_common.skc_net.net != dev->nd_net.net)
		return 0;
	return sk;
}

/* It comes to the first interface on its way. */
SEC("tp_btf/net_dev_queue")
int on_queue(u64 *ctx)
{
	u64 number, departed, let_out, now, total, parts[PARTS] = {NOT_KNOWN, NOT_KNOWN, NOT_KNOWN};
	const struct sk_buff *skb = (void *)ctx[0];
	const struct sock *sk = sender_of(skb);
	struct place place;

	if (!sk)
		return 0;
	number = number_of(ctx, 0);
	place = place_of(number, DEPARTURE);
	departed = take(&place);
	if (!departed)
		return 0;
	place = place_of(number, OUTPUT);
	let_out = take(&place);
	now = bpf_ktime_get_ns();
	total = passed(departed, now);
	if (let_out) {
		parts[POSTROUTING] = passed(let_out, now);
		parts[LOCAL_OUT] = total - parts[POSTROUTING];
	}
	return ended(ctx, skb, netns_of_sock(sk), TRANSMIT, sk, total, parts, true);
}

/*
 * The next best, for TCP only: since when TCP has been sending it tells the stamp that it gave it.
 * A stamp that is still to come tells when it is to leave, and nothing of its way up to here. On
 * the second of two interfaces, one on top of the other, the packet has its stamp still.
 */
SEC("tp_btf/net_dev_queue")
int on_queue_tcp(u64 *ctx)
{
	const u64 parts[PARTS] = {NOT_KNOWN, NOT_KNOWN, NOT_KNOWN};
	const struct sk_buff *skb = (void *)ctx[0];
	const struct sock *sk = sender_of(skb);
	struct place counted;
	s64 total;

	if (!sk || !skb->tstamp || !is_full(sk->__sk_common.skc_state) || sk->sk_protocol != TCP)
		return 0;
	counted = place_of(number_of(ctx, 0), COUNTED);
	if (!is_new(&counted, skb->tstamp))
		return 0;
	total = bpf_ktime_get_ns() - skb->tstamp;
	if (total < 0 || total > (s64)OLD_NS) {
		unmeasured(netns_of_sock(sk), TRANSMIT);
		return 0;
	}
	return ended(ctx, skb, netns_of_sock(sk), TRANSMIT, sk, total, parts, true);
}
