/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose a packet is, and between whom it travels. */
#ifndef NETSKOOP_PACKET_BPF_H
#define NETSKOOP_PACKET_BPF_H

#include "vmlinux.h"
#include "core_fixes.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#define EXT_HEADERS 6

/* Addresses in network order, an IPv4 address in the first word; ports as numbers. */
struct tuple {
	u8 family; /* 4, 6, or 0 if the addresses could not be read */
	u8 proto;
	u16 sport;
	u16 dport;
	u16 pad; /* a mark, where flows are counted */
	u32 saddr[4];
	u32 daddr[4];
};

/* Holds for every kind of socket: nothing but __sk_common is read. */
static __always_inline struct netns netns_of_sock_at(const struct sock *sk, bool typed)
{
	return netns_read(sk ? load(typed, sk, __sk_common.skc_net.net) : 0, typed);
}

static __always_inline struct netns netns_of_sock(const struct sock *sk)
{
	return netns_of_sock_at(sk, true);
}

/*
 * The device knows the namespace, unless UDP has overlaid `dev` with its own scratch bytes. Reading
 * through those yields 0 (the loads are checked by the kernel), and then the socket is asked.
 */
static __always_inline struct netns netns_of_skb_at(const struct sk_buff *skb, bool typed)
{
	struct net_device *dev = load(typed, skb, dev);
	struct netns ns = netns_read(dev ? load(typed, dev, nd_net.net) : 0, typed);

	return ns.inum ? ns : netns_of_sock_at(load(typed, skb, sk), typed);
}

static __always_inline struct netns netns_of_skb(const struct sk_buff *skb)
{
	return netns_of_skb_at(skb, true);
}

/*
 * An argument of a program as a number to count with: the verifier lets nobody calculate with a
 * pointer whose type it knows. Of a kprobe the arguments are numbers anyhow. The empty asm keeps
 * the compiler from reading the arguments themselves through an address that was moved, which is
 * not allowed either.
 */
static __always_inline u64 number_of(const u64 *ctx, u32 argument)
{
	u64 number = 0, at = (u64)ctx;

	asm volatile("" : "+r"(at));
	bpf_probe_read_kernel(&number, sizeof(number), (void *)(at + argument * sizeof(u64)));
	return number;
}

/*
 * The same, with its type, of one that may be NULL. The verifiers of Linux 6.5 to 6.13 hold that
 * none is, take a check for it out of the program, and let it read from there without a net
 * (CVE-2024-56702, CVE-2025-21852). So the argument is asked as a number; those that know better
 * want the pointer to be checked as well.
 */
#define maybe(ctx, argument) (number_of(ctx, argument) ? typed_argument(ctx, argument) : 0)

/*
 * A segmented packet is as many packets on the wire; its shared info lies behind the data. `number`
 * is this CPU's in a map: there the pointer to the data becomes a number to calculate with, in a
 * fraction of the time that reading it as one takes, if nobody comes between.
 */
static __always_inline u16 segments_of(const struct sk_buff *skb, volatile u64 *number)
{
	u16 segments = 0;
	u64 info;

	if (alone) {
		*number = (u64)skb->head;
		info = *number;
	} else {
		info = (u64)BPF_CORE_READ(skb, head);
	}
	info += skb->end;
	bpf_probe_read_kernel(
		&segments, sizeof(segments),
		(void *)(info + bpf_core_field_offset(struct skb_shared_info, gso_segs)));
	return segments ? segments : 1;
}

static __always_inline void copy_addr(u32 *to, const u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

/* An open request or a socket in TIME_WAIT is no more than a note that there was a connection. */
static __always_inline bool is_full(u8 state)
{
	return state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;
}

/*
 * Id of the cgroup that made the socket; an accepted one has its listener's. It tells in any
 * context whose the socket is. 0 if there is none to be read.
 */
static __always_inline u64 cgroup_of_sock_at(const struct sock *sk, bool typed)
{
	if (!sk || !is_full(load(typed, sk, __sk_common.skc_state)))
		return 0;
	return cgroup_id_of(sk, typed);
}

static __always_inline u64 cgroup_of_sock(const struct sock *sk)
{
	return cgroup_of_sock_at(sk, true);
}

/*
 * The socket's own port. One that is being closed has given it back already, if it had not asked
 * for that one, and then only its inet_sport remembers it.
 */
static __always_inline u16 port_of_sock(const struct sock *sk)
{
	u16 port = sk->__sk_common.skc_num;

	if (!port && is_full(sk->__sk_common.skc_state))
		port = bpf_ntohs(BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
	return port;
}

/* The socket's connection, with either end as the source. */
static __always_inline void tuple_of_sock(const struct sock *sk, struct tuple *t, bool peer_is_src)
{
	const struct sock_common *c = &sk->__sk_common;
	u32 local[4] = {}, peer[4] = {};
	u16 pport = bpf_ntohs(c->skc_dport), lport = port_of_sock(sk);

	if (c->skc_family == AF_INET) {
		t->family = 4;
		local[0] = c->skc_rcv_saddr;
		peer[0] = c->skc_daddr;
	} else if (c->skc_family == AF_INET6 && bpf_core_field_exists(c->skc_v6_daddr)) {
		t->family = 6;
		copy_addr(local, c->skc_v6_rcv_saddr.in6_u.u6_addr32);
		copy_addr(peer, c->skc_v6_daddr.in6_u.u6_addr32);
	} else {
		return;
	}
	copy_addr(t->saddr, peer_is_src ? peer : local);
	copy_addr(t->daddr, peer_is_src ? local : peer);
	t->sport = peer_is_src ? pport : lport;
	t->dport = peer_is_src ? lport : pport;
}

/* Counted from the network header, wherever the packet's data begins. */
#define FROM_NETWORK_HEADER 1

/*
 * Where the packet's bytes are, and how far they are contiguous. Programs on devices have the
 * kernel look for them instead. Which it is has to be a constant where this is filled, so that
 * what reads the other way does not get into the program.
 */
struct bytes {
	u64 head;
	u32 tail;
	bool on_device;
	struct __sk_buff *skb;
	const u8 *with_ports; /* 0, or where it says whether anybody wants them */
};

static __always_inline bool read_at(const struct bytes *b, u32 off, void *to, u32 size)
{
	if (b->on_device)
		return !bpf_skb_load_bytes_relative(b->skb, off, to, size, FROM_NETWORK_HEADER);
	if (off + size > b->tail)
		return false;
	return !bpf_probe_read_kernel(to, size, (void *)(b->head + off));
}

static __always_inline void read_ports(const struct bytes *b, u32 off, struct tuple *t)
{
	u16 ports[2];

	if (b->with_ports && !*b->with_ports)
		return;
	/* TCP, UDP, DCCP, SCTP and UDP-Lite begin with the two ports. */
	if (t->proto != 6 && t->proto != 17 && t->proto != 33 && t->proto != 132 && t->proto != 136)
		return;
	if (!read_at(b, off, ports, sizeof(ports)))
		return;
	t->sport = bpf_ntohs(ports[0]);
	t->dport = bpf_ntohs(ports[1]);
}

static __always_inline void tuple_of_ipv4(const struct bytes *b, u32 off, struct tuple *t)
{
	struct iphdr ip;

	if (!read_at(b, off, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4)
		return;
	t->family = 4;
	t->proto = ip.protocol;
	t->saddr[0] = ip.saddr;
	t->daddr[0] = ip.daddr;
	/* Only the first fragment has the ports. */
	if (!(bpf_ntohs(ip.frag_off) & 0x1fff))
		read_ports(b, off + (ip.version_ihl & 15) * 4, t);
}

static __always_inline void tuple_of_ipv6(const struct bytes *b, u32 off, struct tuple *t)
{
	struct ipv6hdr ip;
	u8 ext[4], next;
	int i;

	if (!read_at(b, off, &ip, sizeof(ip)) || (*(u8 *)&ip.flow >> 4) != 6)
		return;
	t->family = 6;
	copy_addr(t->saddr, ip.saddr);
	copy_addr(t->daddr, ip.daddr);
	next = ip.nexthdr;
	off += sizeof(ip);
	/* A chain longer than this is not ordinary traffic: then the last header met is named. */
#pragma unroll
	for (i = 0; i < EXT_HEADERS; i++) {
		bool fragment = next == 44;

		if (next != 0 && next != 43 && next != 60 && next != 51 && !fragment)
			break;
		if (!read_at(b, off, ext, sizeof(ext)))
			break;
		if (fragment && (((u16)ext[2] << 8 | ext[3]) & 0xfff8)) {
			t->proto = ext[0];
			return;
		}
		off += fragment ? 8 : next == 51 ? (ext[1] + 2) * 4 : (ext[1] + 1) * 8;
		next = ext[0];
	}
	t->proto = next;
	read_ports(b, off, t);
}

static __always_inline void tuple_of_bytes(const struct bytes *b, u32 off, u16 protocol,
					   struct tuple *t)
{
	if (protocol == ETH_P_IP)
		tuple_of_ipv4(b, off, t);
	else if (protocol == ETH_P_IPV6)
		tuple_of_ipv6(b, off, t);
}

/*
 * The addresses as the packet carries them. Headers that are not in the linear part are not
 * followed. A network header at offset 0 was never set: there is always headroom before it.
 */
static __always_inline void tuple_of_skb_at(const struct sk_buff *skb, u16 protocol,
					    struct tuple *t, bool typed)
{
	struct bytes b = {.head = (u64)BPF_CORE_READ(skb, head), .tail = load(typed, skb, tail)};
	u32 off = load(typed, skb, network_header);

	if (off)
		tuple_of_bytes(&b, off, protocol, t);
}

static __always_inline void tuple_of_skb(const struct sk_buff *skb, u16 protocol, struct tuple *t)
{
	tuple_of_skb_at(skb, protocol, t, true);
}

enum { FIN_FLAG = 1, SYN_FLAG = 2, RST_FLAG = 4 };

/* What a TCP header says beside its ports. */
struct tcp_head {
	u8 length; /* of the header, bytes; 0 if it could not be read */
	u8 flags;
};

static __always_inline struct tcp_head tcp_head_of_skb(const struct sk_buff *skb, bool typed)
{
	struct bytes b = {.head = (u64)BPF_CORE_READ(skb, head), .tail = load(typed, skb, tail)};
	struct tcp_head tcp = {};
	u8 bytes[2];

	if (read_at(&b, load(typed, skb, transport_header) + 12, bytes, sizeof(bytes))) {
		tcp.length = (bytes[0] >> 4) * 4;
		tcp.flags = bytes[1];
	}
	return tcp;
}

/* Turns it around: the answer to that packet. */
static __always_inline void tuple_reverse(struct tuple *t)
{
	u32 addr[4];
	u16 port = t->sport;

	copy_addr(addr, t->saddr);
	copy_addr(t->saddr, t->daddr);
	copy_addr(t->daddr, addr);
	t->sport = t->dport;
	t->dport = port;
}

#endif
