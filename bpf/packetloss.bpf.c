/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that the kernel threw away, and why. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "flows.bpf.h"
#include "filter.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define RANGES 16
#define REASON_WORDS 4

/* So many packets on one CPU in a tick of the kernel's clock are a storm. */
#define STORM 32

/* Entries at most of which a CPU counts its packets in a place of its own: each has a choice. */
#define CHOICE 2
#define CHOICES_BITS 4
#define CHOICES (1 << CHOICES_BITS)

struct packetloss_event {
	struct event_head head;
	struct tuple tuple;
	u64 location;
	u32 reason;
	u32 segments;
};

struct packetloss_key {
	u32 netns;
	u32 reason;
	u64 location;
	u64 cookie;
};

struct packetloss_value {
	u64 packets;
	u64 more;	  /* segments beyond one for each packet */
	u64 flow_packets; /* those of them that were counted by five-tuple */
	u64 flow_more;	  /* and their segments */
	u32 verdict;	  /* under which options it was judged last, and in the lowest bit how */
	u32 pad;
};

/* Code addresses, start inclusive, end exclusive. */
struct range {
	u64 start;
	u64 end;
};

struct packetloss_options {
	struct limit limit;
	struct event_filter filter;
	u64 ignore_reasons[REASON_WORDS]; /* bit set: no event for this reason */
	struct range ignore[RANGES];	  /* no event for a packet freed from here */
	u32 generation; /* another number whenever what is ignored changes; never 0 */
	u8 stack;
	u8 flows;
};

/* Only for its type, which user space takes over from here. */
const volatile struct packetloss_event anchor = {};

/* Number of arguments of kfree_skb. */
const volatile u8 arguments = 0;
/* What is counted instead of a reason for a packet that a socket in TIME_WAIT has dealt with. */
const volatile u32 in_time_wait = 0;

struct packetloss_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct packetloss_key);
	__type(value, struct packetloss_value);
} counters SEC(".maps");

/* An entry of the counters map, as one CPU counts it in a storm. */
struct row {
	struct packetloss_key key;
	struct packetloss_value value;
};

struct rows {
	struct row of[CHOICES][CHOICE];
};

/*
 * What is dropped in a storm each CPU counts in a place of its own, if the program is alone: CPUs
 * that add to one number wait for each other, the longer the more of them there are. User space
 * adds this to what is in the counters map. No number is ever taken from one to the other, since
 * whoever reads just then would find it twice or not at all, and the sum would fall later.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct rows);
} rows SEC(".maps");

/* What a run has to itself on its CPU, if the program is alone. */
struct here {
	struct hold hold;
	u64 number; /* a pointer to be read as one */
	u64 tick;   /* when `drops` were counted in the counters map */
	u64 drops;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct here);
} heres SEC(".maps");

static __always_inline bool is_ignored(u32 reason, u64 location)
{
	int i;

	if (reason == in_time_wait)
		return true;
	if (reason < REASON_WORDS * 64 &&
	    options.ignore_reasons[inside(reason / 64, REASON_WORDS)] >> reason % 64 & 1)
		return true;
#pragma unroll
	for (i = 0; i < RANGES; i++)
		if (location >= options.ignore[i].start && location < options.ignore[i].end)
			return true;
	return false;
}

/*
 * All packets of one entry are ignored or none is. Going through the list for each takes longer
 * than counting them, so the entry keeps the answer as long as the options stay.
 */
static __always_inline bool is_entry_ignored(struct packetloss_value *value, u32 reason,
					     u64 location)
{
	u32 judged = options.generation << 1;
	u32 verdict = value->verdict;

	if ((verdict & ~1u) != judged) {
		verdict = judged | is_ignored(reason, location);
		value->verdict = verdict;
	}
	return verdict & 1;
}

/* Where this CPU may count the packets of an entry in a place of its own. */
static __always_inline struct row *choice_of(const struct packetloss_key *key)
{
	u64 hash = (key->location ^ key->cookie << 32 ^ key->reason) * 0x9e3779b97f4a7c15ULL;
	struct rows *here;
	u32 zero = 0;

	here = bpf_map_lookup_elem(&rows, &zero);
	return here ? here->of[inside(hash >> (64 - CHOICES_BITS), CHOICES)] : 0;
}

static __always_inline bool is_row_of(const struct row *row, const struct packetloss_key *key)
{
	return row->key.location == key->location && row->key.cookie == key->cookie &&
	       row->key.netns == key->netns && row->key.reason == key->reason;
}

/*
 * Whether so many packets come to the counters map from here that a place of its own is worth it.
 * True once a tick: if there is none, not each packet is to look for it.
 */
static __always_inline bool is_storm(struct here *here)
{
	u64 tick = bpf_jiffies64();

	if (here->tick != tick) {
		here->tick = tick;
		here->drops = 0;
	}
	return ++here->drops == STORM;
}

/*
 * Gives a row to an entry. One that has a row keeps it until user space deletes the entry, since
 * its namespace is gone. That row is emptied in one tick and given away in another, so that nobody
 * finds the old number under the new name.
 */
static __always_inline void take_row(struct row *choice, const struct packetloss_key *key)
{
	int i;

#pragma unroll
	for (i = 0; i < CHOICE; i++) {
		if (!choice[i].key.location) {
			choice[i].key = *key;
			return;
		}
	}
#pragma unroll
	for (i = 0; i < CHOICE; i++) {
		if (!bpf_map_lookup_elem(&counters, &choice[i].key))
			choice[i] = (struct row){};
	}
}

/* Counts a packet, and tells whether there is to be no event of it. */
static __always_inline bool is_only_counted(struct here *here, const struct packetloss_key *key,
					    u16 segments, struct stats *st)
{
	struct row *row, *choice = alone ? choice_of(key) : 0;
	struct packetloss_value *value, zero = {};

	if (choice) {
		row = is_row_of(choice, key) ? choice : choice + 1;
		if (row == choice || is_row_of(row, key)) {
			row->value.packets++;
			row->value.more += segments - 1;
			return is_entry_ignored(&row->value, key->reason, key->location);
		}
	}
	value = counter(&counters, key, &zero, st);
	if (!value)
		return is_ignored(key->reason, key->location);
	__sync_fetch_and_add(&value->packets, 1);
	/* Seldom: an add is as dear as all the rest of counting. */
	if (segments > 1)
		__sync_fetch_and_add(&value->more, segments - 1);
	if (choice && is_storm(here))
		take_row(choice, key);
	return is_entry_ignored(value, key->reason, key->location);
}

static __always_inline bool is_no_drop(u32 reason)
{
	return is_drop_reason(reason, SKB_NOT_DROPPED_YET) || is_drop_reason(reason, SKB_CONSUMED);
}

/*
 * Messages of Unix sockets and netlink are buffers too, and are freed through the same door. They
 * have no network protocol. Nor has a packet on its way out for which no route was found, but then
 * its sender is an IP socket.
 */
static __always_inline bool is_packet(const struct sock *sk, u16 protocol)
{
	u16 family = sk && !protocol ? sk->__sk_common.skc_family : 0;

	return protocol || family == AF_INET || family == AF_INET6;
}

/*
 * A packet carries its sender's socket also through the namespaces that it crosses. What happens to
 * it there is not the sender's doing.
 */
static __always_inline u64 cgroup_here(const struct sock *sk, const struct netns *here)
{
	return netns_of_sock(sk).inum == here->inum ? cgroup_of_sock(sk) : 0;
}

static __always_inline void tuple_of_packet(const struct sk_buff *skb, u16 protocol,
					    struct tuple *t)
{
	const struct sock *sk = skb->sk;

	tuple_of_skb(skb, protocol, t);
	if (!t->family && !protocol && sk) {
		t->proto = is_full(sk->__sk_common.skc_state) ? sk->sk_protocol : IPPROTO_TCP;
		tuple_of_sock(sk, t, false);
	}
}

/*
 * What there is no exact counter for is in none of the flows either: they would be more than all.
 * The counter is looked up once more, because a verifier walks twice, with it and without, through
 * everything that comes before this.
 */
static __always_inline void count_by_flow(const struct packetloss_key *key, struct netns netns,
					  const struct tuple *t, u64 segments)
{
	struct packetloss_value *value = bpf_map_lookup_elem(&counters, key);

	if (!value)
		return;
	count_flow(netns, t, segments);
	__sync_fetch_and_add(&value->flow_packets, 1);
	__sync_fetch_and_add(&value->flow_more, segments - 1);
}

/* Whether the limit lets an event through, and when that was. */
static __always_inline bool is_due(struct hold *hold, struct netns netns, u64 *now, u32 *suppressed,
				   struct stats *st)
{
	if (withheld(hold, netns.inum, 0, st))
		return false;
	count(st, seen);
	*now = bpf_ktime_get_ns();
	return allowed(&options.limit, netns.inum, 0, *now, st, suppressed, hold);
}

/* The socket that the packet was for, on kernels that tell. Like maybe(), in a fraction of the
 * time where nobody comes between. */
static __always_inline const struct sock *receiver(const u64 *ctx, struct here *here)
{
	volatile u64 *number = &here->number;
	const void *sk;

	if (!alone)
		return maybe(ctx, RX_SK);
	sk = typed_argument(ctx, RX_SK);
	*number = (u64)sk;
	return *number ? sk : 0;
}

/* TCP takes the interface away before it asks the socket, which older kernels do not tell. Until
 * the data is queued there is still the route by which it came; the lowest bit is not of its
 * address. */
static __always_inline struct netns netns_of_route(const struct sk_buff *skb)
{
	const struct dst_entry *route = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);

	return netns_read(BPF_CORE_READ(route, dev, nd_net.net), false);
}

SEC("tp_btf/kfree_skb")
int on_kfree_skb(u64 *ctx)
{
	const struct sk_buff *skb = (void *)ctx[0];
	const struct sock *sk = skb->sk;
	u64 location = ctx[1];
	const struct sock *rx_sk = 0;
	u32 reason = kfree_skb_reason(ctx, arguments);
	u16 protocol = bpf_ntohs(skb->protocol), segments;
	struct stats *st = stats_here();
	struct packetloss_event *e;
	struct packetloss_key key;
	struct netns netns = {};
	struct tuple t = {};
	u32 first = 0, suppressed = 0;
	struct here *here;
	u32 looks, is_silent;
	u64 now;

	if (!st || !is_packet(sk, protocol) || (arguments > 2 && is_no_drop(reason)))
		return 0;
	here = bpf_map_lookup_elem(&heres, &first);
	if (!here)
		return 0;
	if (arguments <= RX_SK) {
		netns = netns_of_skb(skb);
		if (!netns.inum)
			netns = netns_of_route(skb);
	} else {
		rx_sk = receiver(ctx, here);
		if (rx_sk) {
			netns = netns_of_sock(rx_sk);
			if (rx_sk->__sk_common.skc_state == TCP_TIME_WAIT &&
			    is_drop_reason(reason, SKB_DROP_REASON_NOT_SPECIFIED))
				reason = in_time_wait;
		}
		if (!netns.inum)
			netns = netns_of_skb(skb);
	}
	segments = segments_of(skb, &here->number);
	key = (struct packetloss_key){.netns = netns.inum,
				      .reason = reason,
				      .location = location,
				      .cookie = netns.cookie};
	is_silent = is_only_counted(here, &key, segments, st);
	/* Else all that follows would be walked through once for each way to the answer. */
	asm volatile("" : "+r"(is_silent));
	if (is_silent)
		return 0;
	if (protocol && protocol != ETH_P_IP && protocol != ETH_P_IPV6)
		return 0;
	/* In a storm most events are withheld before their addresses are looked for. */
	looks = options.flows || options.filter.is_set;
	if (!looks && !is_due(&here->hold, netns, &now, &suppressed, st))
		return 0;
	tuple_of_packet(skb, protocol, &t);
	/* Else the compiler would make one of these for each answer to the question above. */
	asm volatile("" : "+r"(looks));
	if (looks) {
		if (options.flows)
			count_by_flow(&key, netns, &t, segments);
		if (!is_wanted(&options.filter, &t, st))
			return 0;
		if (!is_due(&here->hold, netns, &now, &suppressed, st))
			return 0;
	}
	e = event_record(sizeof(*e), netns, 0, options.stack, st, now, suppressed);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_here(sk, &netns);
	if (rx_sk && !e->head.cgroup)
		e->head.cgroup = cgroup_here(rx_sk, &netns);
	e->tuple = t;
	e->location = location;
	e->reason = reason;
	e->segments = segments;
	event_submit(e, st);
	return 0;
}
