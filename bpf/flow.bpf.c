/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bytes and packets by connection, on the devices that the programs are attached to. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum direction { INGRESS, EGRESS };

/* Tags of a packet that are followed, outer ones first. */
#define VLAN_TAGS 2
/* TCX_NEXT and TC_ACT_UNSPEC: whoever comes after decides. */
#define GO_ON -1

/* The mark of the tuple is the direction. */
struct flow_traffic_key {
	u32 netns;
	u32 device;
	struct tuple tuple;
	u64 cookie;
};

struct flow_total_key {
	u32 netns;
	u32 device;
	u32 direction;
	u32 pad;
	u64 cookie;
};

struct flow_traffic {
	u64 bytes;
	u64 packets;
};

struct flow_options {
	u8 ports;
};

/* Only for their types, which user space takes over from here. */
const volatile struct flow_traffic_key key_anchor = {};
const volatile struct flow_total_key total_anchor = {};
const volatile struct flow_traffic traffic_anchor = {};

/* Inode of the namespace in which the devices are. */
const volatile u32 own_netns = 0;

struct flow_options options = {};

/*
 * Who has not been heard of for longest makes room. What is lost with him is in the totals all the
 * same, which user space subtracts from.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_traffic_key);
	__type(value, struct flow_traffic);
} counters SEC(".maps");

/* Everything, exactly. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct flow_total_key);
	__type(value, struct flow_traffic);
} totals SEC(".maps");

static __always_inline void tuple_of(struct __sk_buff *skb, struct tuple *t)
{
	const struct bytes b = {.on_device = true, .with_ports = &options.ports, .skb = skb};
	u16 protocol = bpf_ntohs(skb->protocol);
	u32 off = 0;
	u16 tag[2];
	int i;

	/* The outer tag is mostly out of the way already, beside the packet. */
#pragma unroll
	for (i = 0; i < VLAN_TAGS; i++) {
		if (protocol != 0x8100 && protocol != 0x88a8)
			break;
		if (!read_at(&b, off, tag, sizeof(tag)))
			return;
		protocol = bpf_ntohs(tag[1]);
		off += sizeof(tag);
	}
	tuple_of_bytes(&b, off, protocol, t);
}

static __always_inline void add(struct flow_traffic *traffic, u64 bytes, u64 packets)
{
	__sync_fetch_and_add(&traffic->bytes, bytes);
	__sync_fetch_and_add(&traffic->packets, packets);
}

static __always_inline int seen(struct __sk_buff *skb, u32 direction)
{
	/*
	 * On its way out a packet that the device will segment knows its length with all headers;
	 * on its way in that number leaves out the header of the link.
	 */
	u64 bytes = direction == EGRESS && skb->wire_len ? skb->wire_len : skb->len;
	u64 packets = skb->gso_segs ? skb->gso_segs : 1;
	struct flow_total_key all = {
		.netns = own_netns, .device = skb->ifindex, .direction = direction};
	struct flow_traffic_key key = {.netns = own_netns, .device = skb->ifindex};
	struct flow_traffic *traffic, *total, zero = {};
	struct stats *st = stats_here();

	if (!st)
		return GO_ON;
	total = counter(&totals, &all, &zero, st);
	/* What has no total must not be in a flow: there would be more in all of them. */
	if (!total)
		return GO_ON;
	tuple_of(skb, &key.tuple);
	if (key.tuple.family) {
		key.tuple.pad = direction;
		traffic = entry(&counters, &key, &zero);
		if (traffic)
			add(traffic, bytes, packets);
	}
	/* Last the total: whoever reads that first never finds more in it than in the flows. */
	add(total, bytes, packets);
	return GO_ON;
}

SEC("tcx/ingress")
int netskoop_in(struct __sk_buff *skb)
{
	return seen(skb, INGRESS);
}

SEC("tcx/egress")
int netskoop_out(struct __sk_buff *skb)
{
	return seen(skb, EGRESS);
}
