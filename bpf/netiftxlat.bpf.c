/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long packets wait in the queue of an interface, and how long its driver takes to send them.
 */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include "under_way.bpf.h"
#include "shares.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* As deep as the kernel lets interfaces send through each other (XMIT_RECURSION_LIMIT). */
#define DEPTH 8

/* Enough for the addresses and ports of ordinary packets. */
#define HEADER 64

/* What a driver says that has not taken the packet; all below it means that it has. */
#define NET_XMIT_MASK 0x0f

/* Of a queueing discipline that has others for its hardware queues, and takes no packets itself. */
#define TCQ_F_MQROOT 8

/* Of a socket whose packets fq lets wait until their time has come. */
#define SK_PACING_FQ 2

/* A stamp of a sender that is older cannot be one. */
#define OLD_NS 100000000000ULL

enum kind { QUEUED, SENT };

struct netiftxlat_options {
	struct limit limit;
	struct event_filter filter;
	u64 slow_ns;
	u8 stack;
	u8 per_device;
};

struct netiftxlat_event {
	struct event_head head;
	struct tuple tuple;
	char device[16];
	u64 latency_ns;
};

struct netiftxlat_key {
	u32 netns;
	u32 is_rest;	 /* all that are beyond the namespace's share */
	char device[16]; /* empty unless each is counted on its own */
	u64 cookie;
};

struct netiftxlat_value {
	struct latency queue;
	struct latency driver;
	u64 last; /* when something was counted */
};

/* What a packet has behind it when the driver gets it. */
enum wait { NO_QUEUE, MEASURED, UNMEASURED };

/*
 * A packet that a driver is sending. Once it has taken the packet, that may be freed or belong to
 * somebody else: all that is to be told of it is kept here.
 */
struct frame {
	u64 skb;
	u64 began;
	u64 waited;
	u64 word; /* what was noted of it; it is put back if the driver does not take the packet */
	u64 cgroup;
	u64 address; /* of the header below, as a number */
	u32 wait;
	u16 protocol;
	u16 length; /* bytes of the header that are the packet's */
	u8 header[HEADER];
};

/* What the drivers on a CPU are sending: stacked interfaces send within each other. */
struct sending {
	u64 depth;
	struct frame frames[DEPTH];
};

/* Only for its type, which user space takes over from here. */
const volatile struct netiftxlat_event anchor = {};

struct netiftxlat_options options = {};

/* What a new one begins with; too large for the stack. */
static const struct netiftxlat_value nothing = {};

/* So many interfaces of a namespace are counted on their own at once, the others together. One that
 * has sent nothing for so long makes room, because nobody tells that it is gone. */
#define MOST_DEVICES 128
#define IDLE_NS 600000000000ULL

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct netiftxlat_key);
	__type(value, struct netiftxlat_value);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct sending);
} cpus SEC(".maps");

static __always_inline struct sending *this_cpu(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cpus, &zero);
}

/* The counters without an interface's name. */
static __always_inline struct netiftxlat_value *counter_of_all(struct netns netns, struct stats *st)
{
	struct netiftxlat_key key = {.netns = netns.inum, .cookie = netns.cookie};

	return counter(&counters, &key, &nothing, st);
}

/* The counters of an interface that is counted on its own; NULL if it is beyond the share. */
static __always_inline struct netiftxlat_value *own_counter(const struct netiftxlat_key *key,
							    struct netns netns)
{
	struct netiftxlat_value *value = bpf_map_lookup_elem(&counters, key);

	if (value)
		return value;
	add_in_place(&counters, key, &nothing, netns, 0, MOST_DEVICES);
	/* Perhaps another CPU was first. */
	return bpf_map_lookup_elem(&counters, key);
}

static __always_inline struct netiftxlat_value *
counter_of(const struct net_device *dev, struct netns netns, u64 now, struct stats *st)
{
	struct netiftxlat_key key = {.netns = netns.inum, .cookie = netns.cookie};
	struct netiftxlat_value *value = 0;

	if (options.per_device) {
		bpf_probe_read_kernel_str(key.device, sizeof(key.device), dev->name);
		value = own_counter(&key, netns);
		if (!value) {
			__builtin_memset(key.device, 0, sizeof(key.device));
			key.is_rest = 1;
		}
	}
	if (!value)
		value = counter(&counters, &key, &nothing, st);
	if (value)
		value->last = now;
	return value;
}

/* Most interfaces of containers have none: what is sent goes to the driver at once. */
static __always_inline bool has_queue(const struct net_device *dev)
{
	const struct Qdisc *qdisc = dev->qdisc;

	return qdisc && (qdisc->enqueue || qdisc->flags & TCQ_F_MQROOT);
}

SEC("tp_btf/net_dev_queue")
int on_queue(u64 *ctx)
{
	const struct sk_buff *skb = (void *)ctx[0];
	const struct net_device *dev = skb->dev;
	struct netiftxlat_value *value;
	struct place place;
	struct stats *st;

	if (!dev || !has_queue(dev))
		return 0;
	place = place_of(number_of(ctx, 0), 0);
	if (begins(&place, bpf_ktime_get_ns()))
		return 0;
	st = stats_here();
	if (!st)
		return 0;
	/* It is shown of all interfaces together only. */
	value = counter_of_all(netns_of(dev->nd_net.net), st);
	if (value)
		__sync_fetch_and_add(&value->queue.skipped, 1);
	return 0;
}

/* The socket that sends, if it is one of the namespace of the interface. */
static __always_inline const struct sock *sender_of(const struct sk_buff *skb,
						    const struct net_device *dev)
{
	const struct sock *sk = skb->sk;

	if (!sk || sk->__sk_common.skc_net.net != dev->nd_net.net)
		return 0;
	return is_full(sk->__sk_common.skc_state) ? sk : 0;
}

/* What `since_tcp` says of a packet without a stamp: longer than anything. */
#define NO_STAMP (1LL << 62)

/*
 * TCP stamps what it sends, and a segment that was cut out of a larger packet on its way has the
 * stamp of that. It tells when the packet is to leave at the earliest, which may still be to come.
 */
static __always_inline s64 since_tcp(const struct sk_buff *skb, const struct sock *sk, u64 now)
{
	if (!sk || sk->sk_protocol != IPPROTO_TCP || !skb->tstamp)
		return NO_STAMP;
	return now - skb->tstamp;
}

/*
 * Of a segment that was cut in the queue nothing was noted. What is found at its address is of an
 * earlier packet that the queue has dropped: it was there before TCP sent this one. Only where fq
 * does the pacing, packets come before the time of their stamp; one that is still to come is no
 * sign either, and a very large number here.
 */
static __always_inline u32 waited(const struct sk_buff *skb, const struct net_device *dev,
				  const struct sock *sk, struct frame *frame)
{
	struct place place;
	s64 since;
	u64 word;

	frame->word = 0;
	frame->waited = 0;
	if (!has_queue(dev))
		return NO_QUEUE;
	place = place_of(frame->skb, 0);
	word = take(&place);
	since = since_tcp(skb, sk, frame->began);
	if (word && (passed(word, frame->began) <= (u64)since ||
		     (sk && sk->sk_pacing_status == SK_PACING_FQ))) {
		frame->word = word;
		frame->waited = passed(word, frame->began);
		return MEASURED;
	}
	if (since > (s64)OLD_NS || since < -(s64)OLD_NS)
		return UNMEASURED;
	frame->waited = since > 0 ? since : 0;
	return MEASURED;
}

/* Behind the bytes of a packet there is always more of the same memory, so that the whole length
 * can be read at once. */
static __always_inline void keep_header(const struct sk_buff *skb, struct frame *frame)
{
	u32 off = skb->network_header, tail = skb->tail, left = tail > off ? tail - off : 0;
	const u8 *head = BPF_CORE_READ(skb, head);

	frame->protocol = bpf_ntohs(skb->protocol);
	frame->length = left < HEADER ? left : HEADER;
	if (!off || bpf_probe_read_kernel(frame->header, HEADER, head + off))
		frame->length = 0;
}

SEC("tp_btf/net_dev_start_xmit")
int on_start(u64 *ctx)
{
	const struct sk_buff *skb = (void *)ctx[0];
	const struct net_device *dev = (void *)ctx[1];
	struct sending *sending = this_cpu();
	const struct sock *sk;
	struct frame *frame;
	u64 depth;

	if (!sending)
		return 0;
	depth = sending->depth;
	/* Those before have lost their ends, which can only be if a program did not run. */
	if (depth >= DEPTH)
		depth = 0;
	frame = &sending->frames[inside(depth, DEPTH)];
	sending->depth = depth + 1;
	sk = sender_of(skb, dev);
	frame->skb = number_of(ctx, 0);
	frame->cgroup = cgroup_of_sock(sk);
	keep_header(skb, frame);
	frame->began = bpf_ktime_get_ns();
	frame->wait = waited(skb, dev, sk, frame);
	return 0;
}

/* The frame of a packet, and no longer there. Mostly it is the last one. */
static __always_inline struct frame *frame_of(struct sending *sending, u64 skb)
{
	u64 depth = sending->depth, i;

#pragma unroll
	for (i = 1; i <= DEPTH; i++) {
		struct frame *frame = &sending->frames[inside(depth - i, DEPTH)];

		if (i > depth)
			break;
		if (frame->skb == skb) {
			sending->depth = depth - i;
			return frame;
		}
	}
	return 0;
}

static __always_inline void tuple_of_frame(struct frame *frame, struct tuple *t)
{
	struct bytes bytes = {.tail = frame->length};
	u16 protocol = frame->protocol;

	/* The addresses of memory that the verifier knows are no numbers to it either. */
	*(volatile u64 *)&frame->address = (u64)frame->header;
	bytes.head = *(volatile u64 *)&frame->address;
	if (protocol == ETH_P_8021Q)
		protocol = frame->header[0] >> 4 == 6 ? ETH_P_IPV6 : ETH_P_IP;
	tuple_of_bytes(&bytes, 0, protocol, t);
}

static __always_inline void tell(void *ctx, struct frame *frame, const struct net_device *dev,
				 struct netns netns, u16 kind, u64 latency, struct stats *st)
{
	struct netiftxlat_event *e;
	struct tuple t = {};

	tuple_of_frame(frame, &t);
	if (!is_wanted(&options.filter, &t, st))
		return;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, options.stack, st);
	if (!e)
		return;
	e->head.cgroup = frame->cgroup;
	e->tuple = t;
	__builtin_memset(e->device, 0, sizeof(e->device));
	bpf_probe_read_kernel_str(e->device, sizeof(e->device), dev->name);
	e->latency_ns = latency;
	event_submit(e, st);
}

/* The packet itself must not be looked at any more. */
SEC("tp_btf/net_dev_xmit")
int on_xmit(u64 *ctx)
{
	const struct net_device *dev = (void *)ctx[2];
	struct sending *sending = this_cpu();
	struct stats *st = stats_here();
	struct netiftxlat_value *value;
	struct frame *frame;
	struct netns netns;
	u64 took, now = bpf_ktime_get_ns();
	s32 answer = ctx[1];

	if (!sending || !st)
		return 0;
	frame = frame_of(sending, number_of(ctx, 0));
	if (answer >= NET_XMIT_MASK) {
		/* It goes on waiting, and that began when it came. */
		if (frame && frame->word) {
			struct place place = place_of(frame->skb, 0);

			has_begun(&place, frame->word, now);
		}
		return 0;
	}
	netns = netns_of(dev->nd_net.net);
	value = counter_of(dev, netns, now, st);
	if (!frame) {
		if (value)
			__sync_fetch_and_add(&value->driver.unmeasured, 1);
		return 0;
	}
	took = now - frame->began;
	if (value) {
		observe_latency(&value->driver, took);
		if (frame->wait == MEASURED)
			observe_latency(&value->queue, frame->waited);
		else if (frame->wait == UNMEASURED)
			__sync_fetch_and_add(&value->queue.unmeasured, 1);
	}
	if (frame->wait == MEASURED && frame->waited >= options.slow_ns)
		tell(ctx, frame, dev, netns, QUEUED, frame->waited, st);
	if (took >= options.slow_ns)
		tell(ctx, frame, dev, netns, SENT, took, st);
	return 0;
}

/* Runs for each that is counted, when user space asks. */
SEC("iter/bpf_map_elem")
int on_sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct netiftxlat_value *found = ctx->value;
	const struct netiftxlat_key *at = ctx->key;
	struct netiftxlat_key key;
	struct netns netns;

	if (!at || !found || !at->device[0] || !found->last ||
	    bpf_ktime_get_ns() - found->last < IDLE_NS)
		return 0;
	key = *at;
	netns.inum = key.netns;
	netns.cookie = key.cookie;
	take_out(&counters, &key, netns, 0);
	return 0;
}
