/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What an expert looks for and no counter of a namespace tells of. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The kinds of the events as well, so that each has a limit of its own. */
enum anomaly { NEIGHBOUR_FAILED, NEIGHBOUR_TABLE_FULL, SOCKET_MEMORY, MTU_BLACK_HOLE };

/* What shows that small packets of a connection arrive. */
enum evidence { NONE, SMALLER_ACKNOWLEDGED, PEER_SENDS_ON };

enum { NUD_FAILED = 0x20 };

/* The state of a sender that waited in vain for an acknowledgement, of `enum tcp_ca_state`. */
enum { CA_LOSS = 4 };

/* What every link has to carry with IPv6, and hardly any with IPv4 does not: a packet that is not
 * larger is lost for another reason. */
enum { LEAST_MTU = 1280 };

/* As many time-outs in a row as have the kernel look for a black hole itself, where it is told to
 * by tcp_mtu_probing: the default of tcp_retries1. */
enum { TIMEOUTS = 3 };

struct netanomaly_event {
	struct event_head head;
	struct tuple tuple;
	u32 neighbour[4];
	u8 device[16];
	u32 packet_size; /* with the headers of IP and TCP; 0 if there is none */
	u32 mss;
	u32 path_mtu; /* as this host knows it */
	u8 family;    /* of the neighbour: 4, 6, or 0 if there is none */
	u8 direction;
	u8 timeouts;
	u8 evidence;
};

struct netanomaly_key {
	u32 netns;
	u32 anomaly;
	u64 cookie;
};

struct netanomaly_options {
	struct limit limit;
	u8 stack;
};

/* Only for its type, which user space takes over from here. */
const volatile struct netanomaly_event anchor = {};

/* Number of arguments of tcp_retransmit_skb. */
const volatile u8 arguments = 0;

struct netanomaly_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct netanomaly_key);
	__type(value, u64);
} counters SEC(".maps");

/* Counts, and begins an event that tells of nothing yet. */
static __always_inline struct netanomaly_event *begin(void *ctx, struct netns netns, u32 anomaly,
						      struct stats *st)
{
	struct netanomaly_key key = {
		.netns = netns.inum, .anomaly = anomaly, .cookie = netns.cookie};
	u64 *value, zero = 0;
	struct netanomaly_event *e;

	value = counter(&counters, &key, &zero, st);
	if (value)
		__sync_fetch_and_add(value, 1);
	e = event_begin(sizeof(*e), &options.limit, netns, anomaly, options.stack, st);
	if (!e)
		return 0;
	__builtin_memset(&e->tuple, 0,
			 sizeof(*e) - __builtin_offsetof(struct netanomaly_event, tuple));
	return e;
}

static __always_inline int neighbour(void *ctx, u32 anomaly, const struct neigh_table *table,
				     const struct net_device *dev, const void *address)
{
	struct stats *st = stats_here();
	struct netanomaly_event *e;
	int family = table->family;

	/* Both share the way in the kernel with tables of other protocols. */
	if (!st || (family != AF_INET && family != AF_INET6))
		return 0;
	e = begin(ctx, netns_of(dev->nd_net.net), anomaly, st);
	if (!e)
		return 0;
	bpf_core_read(e->device, sizeof(e->device), &dev->name);
	if (family == AF_INET) {
		e->family = 4;
		bpf_probe_read_kernel(e->neighbour, 4, address);
	} else {
		e->family = 6;
		bpf_probe_read_kernel(e->neighbour, 16, address);
	}
	event_submit(e, st);
	return 0;
}

/*
 * Its end: a neighbour that has been asked often enough has just been given up. neigh_update is
 * not told of that, since it is for what others say.
 */
SEC("tp_btf/neigh_timer_handler")
int on_timer(u64 *ctx)
{
	const struct neighbour *n = (void *)ctx[0];

	if (n->nud_state != NUD_FAILED)
		return 0;
	return neighbour(ctx, NEIGHBOUR_FAILED, n->tbl, n->dev,
			 __builtin_preserve_access_index(&n->primary_key));
}

/* Without a neighbour there was no room for one. */
SEC("tp_btf/neigh_create")
int on_create(u64 *ctx)
{
	if (number_of(ctx, 3))
		return 0;
	return neighbour(ctx, NEIGHBOUR_TABLE_FULL, (void *)ctx[0], (void *)ctx[1],
			 (void *)number_of(ctx, 2));
}

SEC("tp_btf/sock_exceed_buf_limit")
int on_exceed(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	struct stats *st = stats_here();
	struct netanomaly_event *e;

	if (!st)
		return 0;
	e = begin(ctx, netns_of_sock(sk), SOCKET_MEMORY, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	e->direction = number_of(ctx, 3);
	tuple_of_sock(sk, &e->tuple, e->direction != 0);
	e->tuple.proto = sk->sk_protocol;
	event_submit(e, st);
	return 0;
}

/* A connection whose oldest segment was sent again and again, as it was when it was sent last. */
struct stuck {
	u32 segment;  /* its sequence number */
	u32 received; /* what the peer had sent */
	u8 timeouts;  /* since something was acknowledged */
	u8 heard; /* how many there had been when the peer had first sent something since; or 0 */
	bool told;
	u8 pad;
	u32 length;
	u32 passed; /* the longest one that was acknowledged after all */
	u16 sport;  /* tells it from an earlier connection, whose socket was at the same address */
	u16 dport;
};

/*
 * By the socket's address. Nobody tells when one is gone, and which are forgotten first is no
 * matter: what is told of a connection then begins anew.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct stuck);
} stuck SEC(".maps");

static __always_inline bool is_after(u32 seq, u32 other)
{
	return (s32)(seq - other) > 0;
}

/*
 * Whether the peer has told that it got what was sent after a segment, and nothing of that was as
 * long: of segments that get lost by chance some are. Each block is at least one segment; what is
 * not after the segment was told long ago.
 */
static __always_inline bool smaller_arrived(const struct tcp_sock *tp, u32 segment, u32 length)
{
	struct tcp_sack_block blocks[4];
	bool found = false;
	int i;

	if (!BPF_CORE_READ(tp, sacked_out))
		return false;
	if (bpf_core_read(&blocks, sizeof(blocks), &tp->recv_sack_cache))
		return false;
#pragma unroll
	for (i = 0; i < 4; i++) {
		if (!is_after(blocks[i].start_seq, segment))
			continue;
		if (blocks[i].end_seq - blocks[i].start_seq >= length)
			return false;
		found = true;
	}
	return found;
}

/*
 * Whether the peer goes on sending. That something comes from it shows the way back only. But a
 * peer whose data is not acknowledged sends nothing new once it has waited for as long as this end
 * does for its own. So if something new has come between two time-outs and again after one more
 * has passed, then it got the acknowledgements, which are small.
 */
static __always_inline bool sends_on(struct stuck *s, u32 received, u8 timeouts)
{
	if (received == s->received)
		return false;
	s->received = received;
	if (!s->heard)
		s->heard = timeouts;
	return (u8)(timeouts - s->heard) >= 2;
}

/* What a time-out adds to what is known of a connection: evidence, the first time there is any. */
static __always_inline u8 timed_out(const struct sock *sk, const struct tuple *t, u32 segment,
				    u32 length, u8 timeouts)
{
	const struct tcp_sock *tp = (const void *)sk;
	u32 received = BPF_CORE_READ(tp, rcv_nxt);
	u64 key = (u64)sk;
	struct stuck *s = bpf_map_lookup_elem(&stuck, &key);
	bool goes_on;

	if (s && (s->sport != t->sport || s->dport != t->dport))
		s = 0;
	if (!s || s->segment != segment || timeouts < s->timeouts) {
		struct stuck fresh = {.segment = segment,
				      .received = received,
				      .timeouts = timeouts,
				      .length = length,
				      .sport = t->sport,
				      .dport = t->dport};

		if (s)
			fresh.passed = s->passed;
		/* Where packets get lost by chance, one of this length has come through before. */
		if (s && is_after(segment, s->segment) && s->length > s->passed)
			fresh.passed = s->length;
		bpf_map_update_elem(&stuck, &key, &fresh, BPF_ANY);
		return NONE;
	}
	/* Sent again for another reason than that one more time-out has passed. */
	if (s->told || timeouts == s->timeouts)
		return NONE;
	s->timeouts = timeouts;
	goes_on = sends_on(s, received, timeouts);
	if (timeouts < TIMEOUTS || length <= s->passed)
		return NONE;
	if (goes_on || smaller_arrived(tp, segment, length)) {
		s->told = true;
		return goes_on ? PEER_SENDS_ON : SMALLER_ACKNOWLEDGED;
	}
	return NONE;
}

static __always_inline bool is_ipv4(const struct tuple *t)
{
	/* A socket for both may talk IPv4: then the address is a mapped one. */
	return t->family == 4 || (!t->daddr[0] && !t->daddr[1] && t->daddr[2] == bpf_htonl(0xffff));
}

/*
 * Large segments of a connection get lost each time while small ones arrive: somewhere on the way a
 * packet of their size does not fit, and the ICMP message that says so does not come here either.
 * A peer that is gone looks the same but for the small ones.
 */
SEC("tp_btf/tcp_retransmit_skb")
int on_retransmit(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	const struct sk_buff *skb = (void *)ctx[1];
	const struct inet_connection_sock *icsk = (const void *)sk;
	const struct tcp_sock *tp = (const void *)sk;
	u8 state = sk->__sk_common.skc_state, timeouts, evidence;
	struct tuple t = {.proto = 6};
	u32 length = skb->len, segment, size;
	struct netanomaly_event *e;
	struct stats *st;

	if (tcp_retransmit_skb_error(ctx, arguments) || state == TCP_SYN_SENT ||
	    state == TCP_SYN_RECV || BPF_CORE_READ_BITFIELD_PROBED(icsk, icsk_ca_state) != CA_LOSS)
		return 0;
	segment = BPF_CORE_READ(tp, snd_una);
	/* Only the oldest waits for a time-out, and what does not fit into the window may be
	 * refused. */
	if (BPF_CORE_READ((const struct tcp_skb_cb *)skb->cb, seq) != segment ||
	    length > BPF_CORE_READ(tp, snd_wnd))
		return 0;
	tuple_of_sock(sk, &t, false);
	size = length + BPF_CORE_READ(tp, tcp_header_len) + (is_ipv4(&t) ? 20 : 40);
	if (size <= LEAST_MTU)
		return 0;
	timeouts = BPF_CORE_READ(icsk, icsk_retransmits);
	evidence = timed_out(sk, &t, segment, length, timeouts);
	if (!evidence)
		return 0;
	st = stats_here();
	if (!st)
		return 0;
	e = begin(ctx, netns_of_sock(sk), MTU_BLACK_HOLE, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	e->tuple = t;
	e->packet_size = size;
	e->mss = BPF_CORE_READ(tp, mss_cache);
	e->path_mtu = BPF_CORE_READ(icsk, icsk_pmtu_cookie);
	e->timeouts = timeouts;
	e->evidence = evidence;
	event_submit(e, st);
	return 0;
}
