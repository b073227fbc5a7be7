/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Bytes and packets by connection, on the devices that the programs are attached to. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum direction { INGRESS, EGRESS };

/* Tags of a packet that are followed, outer ones first. */
#define VLAN_TAGS 2
/* Counted from the network header, wherever the packet's data begins. */
#define FROM_NETWORK_HEADER 1
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

static __always_inline bool read_net(struct __sk_buff *skb, u32 off, void *to, u32 size)
{
	return !bpf_skb_load_bytes_relative(skb, off, to, size, FROM_NETWORK_HEADER);
}

static __always_inline void ports_at(struct __sk_buff *skb, u32 off, struct tuple *t)
{
	u16 ports[2];

	if (!options.ports)
		return;
	/* TCP, UDP, DCCP, SCTP and UDP-Lite begin with the two ports. */
	if (t->proto != 6 && t->proto != 17 && t->proto != 33 && t->proto != 132 && t->proto != 136)
		return;
	if (!read_net(skb, off, ports, sizeof(ports)))
		return;
	t->sport = bpf_ntohs(ports[0]);
	t->dport = bpf_ntohs(ports[1]);
}

static __always_inline void ipv4_at(struct __sk_buff *skb, u32 off, struct tuple *t)
{
	struct iphdr ip;

	if (!read_net(skb, off, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4)
		return;
	t->family = 4;
	t->proto = ip.protocol;
	t->saddr[0] = ip.saddr;
	t->daddr[0] = ip.daddr;
	/* Only the first fragment has the ports. */
	if (!(bpf_ntohs(ip.frag_off) & 0x1fff))
		ports_at(skb, off + (ip.version_ihl & 15) * 4, t);
}

static __always_inline void ipv6_at(struct __sk_buff *skb, u32 off, struct tuple *t)
{
	struct ipv6hdr ip;
	u8 ext[4], next;
	int i;

	if (!read_net(skb, off, &ip, sizeof(ip)) || (*(u8 *)&ip.flow >> 4) != 6)
		return;
	t->family = 6;
	copy_addr(t->saddr, ip.saddr);
	copy_addr(t->daddr, ip.daddr);
	next = ip.nexthdr;
	off += sizeof(ip);
#pragma unroll
	for (i = 0; i < EXT_HEADERS; i++) {
		bool fragment = next == 44;

		if (next != 0 && next != 43 && next != 60 && next != 51 && !fragment)
			break;
		if (!read_net(skb, off, ext, sizeof(ext)))
			break;
		if (fragment && (((u16)ext[2] << 8 | ext[3]) & 0xfff8)) {
			t->proto = ext[0];
			return;
		}
		off += fragment ? 8 : next == 51 ? (ext[1] + 2) * 4 : (ext[1] + 1) * 8;
		next = ext[0];
	}
	t->proto = next;
	ports_at(skb, off, t);
}

static __always_inline void tuple_of(struct __sk_buff *skb, struct tuple *t)
{
	u16 protocol = bpf_ntohs(skb->protocol);
	u32 off = 0;
	u16 tag[2];
	int i;

	/* The outer tag is mostly out of the way already, beside the packet. */
#pragma unroll
	for (i = 0; i < VLAN_TAGS; i++) {
		if (protocol != 0x8100 && protocol != 0x88a8)
			break;
		if (!read_net(skb, off, tag, sizeof(tag)))
			return;
		protocol = bpf_ntohs(tag[1]);
		off += sizeof(tag);
	}
	if (protocol == ETH_P_IP)
		ipv4_at(skb, off, t);
	else if (protocol == ETH_P_IPV6)
		ipv6_at(skb, off, t);
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
	struct flow_traffic *traffic, zero = {};
	struct stats *st = stats_here();

	if (!st)
		return GO_ON;
	/* First the total: whoever reads the flows first never finds more in them. */
	traffic = counter(&totals, &all, &zero, st);
	if (traffic)
		add(traffic, bytes, packets);
	tuple_of(skb, &key.tuple);
	if (!key.tuple.family)
		return GO_ON;
	key.tuple.pad = direction;
	traffic = bpf_map_lookup_elem(&counters, &key);
	if (!traffic) {
		bpf_map_update_elem(&counters, &key, &zero, BPF_NOEXIST);
		traffic = bpf_map_lookup_elem(&counters, &key);
	}
	if (traffic)
		add(traffic, bytes, packets);
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
