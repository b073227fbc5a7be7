/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Questions to name servers over UDP, and their answers, as they pass the sockets that ask. Every
 * byte behind the UDP header comes from anybody: it is read with the lengths that the kernel knows,
 * and nothing in it says how much is read.
 */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "histogram.bpf.h"
#include "shares.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { SLOW, FAILED, TIMED_OUT };

#define PORTS 8

/* So much of a question is kept for user space: the longest name, its type and class. */
#define QUESTION 260

/* What a question can come to: the codes that answers have, none, or that nobody looks for one. */
#define TIMEOUT 16
#define UNFOLLOWED 17
#define RCODE_NXDOMAIN 3

/* Of the header: an answer, the kind of question (0 is the ordinary one), what came of it. */
#define DNS_ANSWER 0x8000
#define DNS_OPCODE 0x7800
#define DNS_RCODE 0x000f

struct dns_options {
	struct limit limit;
	u64 slow_ns;
	u64 timeout_ns;
	u16 ports[PORTS]; /* 0 after the last one */
	u8 names;
	u8 nxdomain;
};

struct dns_event {
	struct event_head head;
	struct tuple tuple; /* of the question */
	u64 latency_ns;
	u16 question_bytes; /* 0 if it was not kept */
	u8 result;
	u8 pad[5];
	u8 question[QUESTION];
	u8 pad2[4];
};

struct dns_key {
	u32 netns;
	u32 result;
	u64 cookie;
};

struct dnshdr {
	__be16 id;
	__be16 flags;
	__be16 questions;
	__be16 answers;
	__be16 authorities;
	__be16 additional;
};

/* The two headers, which are read at once. */
struct heads {
	struct udphdr udp;
	struct dnshdr dns;
};

/*
 * Not by the server's address: what goes out is seen after it was translated, what comes in after
 * it was translated back. The port is the socket's own for the same reason.
 */
struct question_key {
	u64 socket;
	u16 port;
	__be16 id;
	u32 pad;
};

/* A question that is not answered yet. */
struct question {
	u64 asked;
	u64 cgroup;
	struct netns netns;
	struct tuple tuple;
};

/* What it asks, as it is on the wire; kept apart, since it is larger than all the rest. */
struct text {
	u32 bytes;
	u8 of[QUESTION];
};

static const struct text no_text = {};

/* Only for its type, which user space takes over from here. */
const volatile struct dns_event anchor = {};

struct dns_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct dns_key);
	__type(value, u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} latencies SEC(".maps");

/* So many questions of a namespace are followed at once. */
#define MOST_QUESTIONS 2048

/* Every entry goes with its answer, or when it is too old. Mostly there are next to none. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct question_key);
	__type(value, struct question);
} questions SEC(".maps");

/* What they ask, if somebody wants to know. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct question_key);
	__type(value, struct text);
} texts SEC(".maps");

static __always_inline bool is_wanted(u16 port)
{
	int i;

#pragma unroll
	for (i = 0; i < PORTS; i++) {
		if (!options.ports[i])
			return false;
		if (options.ports[i] == port)
			return true;
	}
	return false;
}

/* What became of a question, which is in its map no more. */
static __always_inline void tell(void *ctx, const struct question_key *key,
				 const struct question *q, u16 kind, u8 result, u64 latency,
				 struct stats *st)
{
	struct dns_event *e;
	struct text *text;

	e = event_begin(sizeof(*e), &options.limit, q->netns, kind, false, st);
	if (!e)
		return;
	e->head.cgroup = q->cgroup;
	e->tuple = q->tuple;
	e->latency_ns = latency;
	e->question_bytes = 0;
	e->result = result;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	__builtin_memset(e->question, 0, sizeof(e->question));
	__builtin_memset(e->pad2, 0, sizeof(e->pad2));
	text = bpf_map_lookup_elem(&texts, key);
	if (text) {
		__builtin_memcpy(e->question, text->of, sizeof(e->question));
		e->question_bytes = text->bytes;
	}
	event_submit(e, st);
}

static __always_inline void count_result(struct netns netns, u32 result, struct stats *st)
{
	struct dns_key key = {.netns = netns.inum, .result = result, .cookie = netns.cookie};
	u64 zero = 0, *value = counter(&counters, &key, &zero, st);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* Where the headers of TCP or UDP begin, if it is UDP; 0 if not. */
static __always_inline u32 udp_offset(const struct __sk_buff *skb)
{
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = data;

		if (data + sizeof(*ip) > end || ip->protocol != IPPROTO_UDP)
			return 0;
		return (ip->version_ihl & 15) * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = data;

		if (data + sizeof(*ip) > end || ip->nexthdr != IPPROTO_UDP)
			return 0;
		return sizeof(*ip);
	}
	return 0;
}

static __always_inline void read_addresses(const struct __sk_buff *skb, struct tuple *t)
{
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = data;

		if (data + sizeof(*ip) > end)
			return;
		t->family = 4;
		t->saddr[0] = ip->saddr;
		t->daddr[0] = ip->daddr;
	} else {
		const struct ipv6hdr *ip = data;

		if (data + sizeof(*ip) > end)
			return;
		t->family = 6;
		copy_addr(t->saddr, ip->saddr);
		copy_addr(t->daddr, ip->daddr);
	}
}

/* User space takes it apart. */
static __always_inline void keep_text(const struct __sk_buff *skb, const struct question_key *key,
				      u32 from)
{
	u64 bytes = skb->len - from;
	struct text *text;

	if (from >= skb->len)
		return;
	bpf_map_update_elem(&texts, key, &no_text, BPF_ANY);
	text = bpf_map_lookup_elem(&texts, key);
	if (!text)
		return;
	/* In one register, and one bound after the other: the compiler would compare one less than
	 * the number with both, from which verifiers like that of 6.1 learn nothing. A comparison
	 * with 0 does not tell them either that it is 1 at least. */
	asm volatile("" : "+r"(bytes));
	if ((s64)bytes < 1)
		return;
	asm volatile("" : "+r"(bytes));
	if (bytes > QUESTION)
		bytes = QUESTION;
	asm volatile("" : "+r"(bytes));
	if (!bpf_skb_load_bytes(skb, from, text->of, bytes))
		text->bytes = bytes;
}

static __always_inline struct question_key key_of(struct __sk_buff *skb, const struct heads *h)
{
	struct question_key key = {
		.socket = bpf_get_socket_cookie(skb), .port = skb->local_port, .id = h->dns.id};

	return key;
}

static __always_inline void timed_out(void *ctx, const struct question_key *key,
				      const struct question *q, u64 now, struct stats *st)
{
	leave_place(q->netns, 0);
	count_result(q->netns, TIMEOUT, st);
	tell(ctx, key, q, TIMED_OUT, TIMEOUT, now - q->asked, st);
	bpf_map_delete_elem(&texts, key);
}

/* The packet is the kernel's own structure, of which programs of cgroups are shown a part. */
static __always_inline struct netns netns_of_packet(const struct __sk_buff *skb)
{
	const struct sk_buff *packet = (const void *)skb;

	return netns_read(BPF_CORE_READ(packet, sk, __sk_common.skc_net.net), false);
}

static __always_inline void asked(struct __sk_buff *skb, u32 off, const struct heads *h)
{
	struct question_key key = key_of(skb, h);
	struct question *old, q = {};
	struct stats *st = stats_here();
	u64 now = bpf_ktime_get_ns();

	if (!st)
		return;
	old = bpf_map_lookup_elem(&questions, &key);
	if (old) {
		/* Asked once more: the application has been waiting since the first time. */
		if (now - old->asked < options.timeout_ns)
			return;
		q = *old;
		if (!bpf_map_delete_elem(&questions, &key))
			timed_out(skb, &key, &q, now, st);
		__builtin_memset(&q, 0, sizeof(q));
	}
	q.asked = now;
	q.cgroup = bpf_skb_cgroup_id(skb);
	q.netns = netns_of_packet(skb);
	q.tuple.proto = IPPROTO_UDP;
	q.tuple.sport = bpf_ntohs(h->udp.source);
	q.tuple.dport = bpf_ntohs(h->udp.dest);
	read_addresses(skb, &q.tuple);
	if (!take_place(q.netns, 0, MOST_QUESTIONS)) {
		count_result(q.netns, UNFOLLOWED, st);
		return;
	}
	if (options.names)
		keep_text(skb, &key, off + sizeof(*h));
	if (bpf_map_update_elem(&questions, &key, &q, BPF_NOEXIST)) {
		count_result(q.netns, UNFOLLOWED, st);
		leave_place(q.netns, 0);
		bpf_map_delete_elem(&texts, &key);
	}
}

static __always_inline void answered(struct __sk_buff *skb, const struct heads *h)
{
	struct question_key key = key_of(skb, h);
	struct question *found, q;
	struct stats *st = stats_here();
	u8 rcode = bpf_ntohs(h->dns.flags) & DNS_RCODE;
	u64 latency;

	found = bpf_map_lookup_elem(&questions, &key);
	if (!st || !found)
		return;
	q = *found;
	/* Somebody else has dealt with it: an answer on another CPU, or the sweep. */
	if (bpf_map_delete_elem(&questions, &key))
		return;
	latency = bpf_ktime_get_ns() - q.asked;
	leave_place(q.netns, 0);
	observe_time(&latencies, q.netns, 0, latency, st);
	count_result(q.netns, rcode, st);
	if (rcode && (rcode != RCODE_NXDOMAIN || options.nxdomain))
		tell(skb, &key, &q, FAILED, rcode, latency, st);
	else if (latency >= options.slow_ns)
		tell(skb, &key, &q, SLOW, rcode, latency, st);
	bpf_map_delete_elem(&texts, &key);
}

/* Every packet of every socket: all but a few are of no interest, and found out to be so at once.
 */
static __always_inline int look(struct __sk_buff *skb, bool out)
{
	u32 off = udp_offset(skb);
	struct heads h;
	u16 flags;

	if (!off || bpf_skb_load_bytes(skb, off, &h, sizeof(h)))
		return 1;
	if (!is_wanted(bpf_ntohs(out ? h.udp.dest : h.udp.source)))
		return 1;
	flags = bpf_ntohs(h.dns.flags);
	if (flags & DNS_OPCODE)
		return 1;
	if (out && !(flags & DNS_ANSWER) && h.dns.questions)
		asked(skb, off, &h);
	else if (!out && flags & DNS_ANSWER)
		answered(skb, &h);
	return 1;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	return look(skb, true);
}

SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	return look(skb, false);
}

/* Runs for each question that waits, when user space asks. */
SEC("iter/bpf_map_elem")
int on_sweep(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct question_key *at = ctx->key;
	const struct question *found = ctx->value;
	struct stats *st = stats_here();
	u64 now = bpf_ktime_get_ns();
	struct question_key key;
	struct question q;

	if (!at || !found || !st || now - found->asked < options.timeout_ns)
		return 0;
	key = *at;
	q = *found;
	/* The answer came at the last moment. */
	if (!bpf_map_delete_elem(&questions, &key))
		timed_out(ctx, &key, &q, now, st);
	return 0;
}
