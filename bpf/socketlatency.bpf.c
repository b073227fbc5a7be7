/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What sockets wait for: data until its application reads it, and what an application has written
 * until the first of it is sent. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { READ, WRITE, UNREAD, UNSENT, BLOCKED };

enum protocol { TCP, UDP };

#define ONE_MS 1000000ULL
#define HUNDRED_MS 100000000ULL
#define THREE_HUNDRED_MS 300000000ULL

/* Flags of recvmsg(): what only looks, and what reads errors, leaves the data where it is. */
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

struct socketlatency_options {
	struct limit limit;
	struct event_filter filter;
	u64 slow_ns;
	u8 stack;
};

struct socketlatency_event {
	struct event_head head;
	struct tuple tuple;
	u64 latency_ns;
};

struct socketlatency_key {
	u32 netns;
	u32 pad;
	u64 cookie;
};

struct socketlatency_value {
	u64 read_1ms;
	u64 read_100ms;
	u64 read_300ms;
	u64 write_1ms;
	u64 write_100ms;
	u64 unread;
	u64 unsent;
};

/* What is known of a socket. */
struct waiting {
	u64 oldest;   /* when the oldest unread data came; 0: nothing is unread */
	u64 youngest; /* and the youngest */
	u64 told;     /* the oldest of which it was told that nobody reads it */
	u64 written;  /* since when that waits which is not sent yet; 0: nothing is known to */
	u32 copied;   /* TCP: up to where all was read when the oldest came */
	u32 next;     /* TCP: the first byte that is not sent */
	u32 writer;   /* the process that wrote it, or that wrote last; 0: none was seen */
	u32 reader;   /* the process that read last; 0: none has */
	u8 rest; /* whether `written` is not the end of a write, but when it was seen to wait */
	u8 told_unsent; /* whether it was told that it is not sent */
	u8 pad[6];
	u8 writer_comm[16];
	u8 reader_comm[16];
};

/* A thread that waits in sendmsg() for room in the socket's buffer. */
struct blocked {
	u64 since;
	u64 cookie;
	u32 netns;
	u32 pad;
};

/* Only for its type, which user space takes over from here. */
const volatile struct socketlatency_event anchor = {};

struct socketlatency_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct socketlatency_key);
	__type(value, struct socketlatency_value);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} reads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} writes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} blocks SEC(".maps");

/* It is part of the socket, and ends with it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct waiting);
} sockets SEC(".maps");

/* By thread: the entry goes when the wait ends. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct blocked);
} waits SEC(".maps");

static __always_inline struct waiting *waiting_of(const struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, (void *)sk, 0, 0);
}

static __always_inline struct waiting *waiting_made(const struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, (void *)sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline bool is_internet(const struct sock *sk)
{
	u16 family = sk->__sk_common.skc_family;

	return family == AF_INET || family == AF_INET6;
}

static __always_inline void count_slow(struct netns netns, u16 kind, u64 latency, struct stats *st)
{
	struct socketlatency_key key = {.netns = netns.inum, .cookie = netns.cookie};
	struct socketlatency_value zero = {}, *value;

	if (latency < ONE_MS)
		return;
	value = counter(&counters, &key, &zero, st);
	if (!value)
		return;
	__sync_fetch_and_add(kind == READ ? &value->read_1ms : &value->write_1ms, 1);
	if (latency < HUNDRED_MS)
		return;
	__sync_fetch_and_add(kind == READ ? &value->read_100ms : &value->write_100ms, 1);
	if (kind == READ && latency >= THREE_HUNDRED_MS)
		__sync_fetch_and_add(&value->read_300ms, 1);
}

static __always_inline void count_found(struct netns netns, u16 kind, struct stats *st)
{
	struct socketlatency_key key = {.netns = netns.inum, .cookie = netns.cookie};
	struct socketlatency_value zero = {}, *value = counter(&counters, &key, &zero, st);

	if (value)
		__sync_fetch_and_add(kind == UNREAD ? &value->unread : &value->unsent, 1);
}

static __always_inline const struct sk_buff *oldest_datagram(const struct sock *sk)
{
	const struct udp_sock *up = (const void *)sk;

	return BPF_CORE_READ(up, reader_queue.qlen) ? BPF_CORE_READ(up, reader_queue.next)
						    : BPF_CORE_READ(sk, sk_receive_queue.next);
}

/*
 * A socket of UDP without a peer does not know who has sent what is in it, but the oldest datagram
 * does. A reader may take that away meanwhile, and its memory may be anybody's then.
 */
static __always_inline void tuple_of_datagram(const struct sock *sk, struct tuple *t)
{
	const struct sk_buff *skb = oldest_datagram(sk);
	struct bytes b = {.head = (u64)BPF_CORE_READ(skb, head), .tail = BPF_CORE_READ(skb, tail)};
	u32 network = BPF_CORE_READ(skb, network_header);
	struct tuple found = {.proto = IPPROTO_UDP};
	struct ipv6hdr ip6;
	struct udphdr udp;
	struct iphdr ip;

	if (!read_at(&b, BPF_CORE_READ(skb, transport_header), &udp, sizeof(udp)))
		return;
	if (BPF_CORE_READ(skb, protocol) == bpf_htons(ETH_P_IP)) {
		if (!read_at(&b, network, &ip, sizeof(ip)))
			return;
		found.family = 4;
		found.saddr[0] = ip.saddr;
		found.daddr[0] = ip.daddr;
	} else {
		if (!read_at(&b, network, &ip6, sizeof(ip6)))
			return;
		found.family = 6;
		copy_addr(found.saddr, ip6.saddr);
		copy_addr(found.daddr, ip6.daddr);
	}
	found.sport = bpf_ntohs(udp.source);
	found.dport = bpf_ntohs(udp.dest);
	if (oldest_datagram(sk) == skb && found.dport == sk->__sk_common.skc_num)
		*t = found;
}

/* An event without its process, in the direction in which the data goes. */
static __always_inline struct socketlatency_event *
tell(void *ctx, const struct sock *sk, struct netns netns, u16 kind, u64 latency, struct stats *st)
{
	bool found_later = kind == UNREAD || kind == UNSENT;
	struct tuple t = {.proto = sk->sk_protocol};
	struct socketlatency_event *e;

	tuple_of_sock(sk, &t, kind == READ || kind == UNREAD);
	if (kind == UNREAD && t.proto == IPPROTO_UDP && !t.sport)
		tuple_of_datagram(sk, &t);
	if (!is_wanted(&options.filter, &t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, !found_later && options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	e->tuple = t;
	e->latency_ns = latency;
	return e;
}

/* The same, of the current task. */
static __always_inline void tell_of_task(void *ctx, const struct sock *sk, struct netns netns,
					 u16 kind, u64 latency, struct stats *st)
{
	struct socketlatency_event *e = tell(ctx, sk, netns, kind, latency, st);

	if (!e)
		return;
	e->head.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->head.comm, sizeof(e->head.comm));
	event_submit(e, st);
}

/* Data waited for its reader, which is the current task. */
static __always_inline int was_read(void *ctx, const struct sock *sk, struct waiting *w,
				    u32 protocol, u64 latency)
{
	struct netns netns = netns_of_sock(sk);
	u32 reader = bpf_get_current_pid_tgid() >> 32;
	struct stats *st = stats_here();

	/* If it stops reading, it is known who has. */
	if (w->reader != reader) {
		w->reader = reader;
		bpf_get_current_comm(w->reader_comm, sizeof(w->reader_comm));
	}
	if (!st)
		return 0;
	observe_time(&reads, netns, protocol, latency, st);
	count_slow(netns, READ, latency, st);
	if (latency >= options.slow_ns)
		tell_of_task(ctx, sk, netns, READ, latency, st);
	return 0;
}

/* Data came, or is about to be put into the queue. */
static __always_inline void tcp_came(const struct sock *sk, u32 copied)
{
	struct waiting *w = waiting_made(sk);
	u64 now;

	if (!w)
		return;
	now = bpf_ktime_get_ns();
	/* If it was read in a way that is not seen, what comes now is the oldest. */
	if (!w->oldest || w->copied != copied) {
		w->oldest = now;
		w->copied = copied;
	}
	w->youngest = now;
}

/*
 * After a part was read it is not known when the oldest of the rest came: not later than the
 * youngest, so no time is told that is too long.
 */
static __always_inline void rest_waits(struct waiting *w, bool rest)
{
	w->oldest = rest ? w->youngest : 0;
}

/* The end of a connection takes a number too, but there is nothing to read. It is closed at once
 * where this end had shut down before. */
static __always_inline bool tcp_rest(const struct sock *sk, u32 came, u32 copied)
{
	u8 state = sk->__sk_common.skc_state;
	bool ended = state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING ||
		     state == TCP_CLOSE;

	return came - copied > (ended ? 1 : 0);
}

static __always_inline bool udp_rest(const struct sock *sk)
{
	const struct udp_sock *up = (const void *)sk;

	/* The reader takes the whole queue over, and then one after the other. */
	return sk->sk_receive_queue.qlen || BPF_CORE_READ(up, reader_queue.qlen);
}

static __always_inline void udp_came(const struct sock *sk)
{
	struct waiting *w = waiting_made(sk);
	u32 queued = sk->sk_receive_queue.qlen;
	u64 now;

	if (!w)
		return;
	if (!queued || (queued == 1 && w->oldest))
		queued += BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);
	/* A reader on another CPU was quicker. */
	if (!queued) {
		w->oldest = 0;
		return;
	}
	now = bpf_ktime_get_ns();
	/* Alone in the queue: what came before is gone, whoever took it. */
	if (!w->oldest || queued == 1)
		w->oldest = now;
	w->youngest = now;
}

static __always_inline int ready(const struct sock *sk)
{
	const struct tcp_sock *tp;

	if (!is_internet(sk))
		return 0;
	if (sk->sk_protocol == IPPROTO_UDP) {
		udp_came(sk);
		return 0;
	}
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	/* A connection to be accepted is no data. */
	if (tp && sk->__sk_common.skc_state != TCP_LISTEN &&
	    tcp_rest(sk, tp->rcv_nxt, tp->copied_seq))
		tcp_came(sk, tp->copied_seq);
	return 0;
}

/* Linux 6.3. */
SEC("tp_btf/sk_data_ready")
int on_ready(u64 *ctx)
{
	return ready((void *)ctx[0]);
}

/* What that tracepoint is in. */
SEC("fentry/sock_def_readable")
int fentry_ready(u64 *ctx)
{
	return ready((void *)ctx[0]);
}

/* Every segment of an established connection, before it is looked at. */
SEC("tp_btf/tcp_probe")
int on_segment(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	const struct sk_buff *skb = (void *)ctx[1];
	const struct tcp_sock *tp = bpf_skc_to_tcp_sock((void *)sk);
	struct tcp_head tcp;

	if (!tp)
		return 0;
	tcp = tcp_head_of_skb(skb, true);
	if (!tcp.length || skb->len <= tcp.length)
		return 0;
	/* Out of order it cannot be read yet. */
	if (BPF_CORE_READ((const struct tcp_skb_cb *)skb->cb, seq) != tp->rcv_nxt)
		return 0;
	tcp_came(sk, tp->copied_seq);
	return 0;
}

/*
 * Each time that something of TCP was read, however it was. What only looks (MSG_PEEK) comes by
 * here too, but leaves the place as it was.
 */
SEC("tp_btf/tcp_rcv_space_adjust")
int on_tcp_read(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	const struct tcp_sock *tp;
	struct waiting *w = waiting_of(sk);
	u64 oldest;

	if (!w || !w->oldest)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || tp->copied_seq == w->copied)
		return 0;
	oldest = w->oldest;
	w->copied = tp->copied_seq;
	rest_waits(w, tcp_rest(sk, tp->rcv_nxt, tp->copied_seq));
	return was_read(ctx, sk, w, TCP, bpf_ktime_get_ns() - oldest);
}

static __always_inline int udp_read(void *ctx, const struct sock *sk, s32 ret, s32 flags)
{
	struct waiting *w;
	u64 oldest;

	if (ret <= 0 || flags & (MSG_PEEK | MSG_ERRQUEUE))
		return 0;
	if (!sk || sk->sk_protocol != IPPROTO_UDP || !is_internet(sk))
		return 0;
	w = waiting_of(sk);
	if (!w || !w->oldest)
		return 0;
	oldest = w->oldest;
	rest_waits(w, udp_rest(sk));
	/* One may have come in between. */
	if (!w->oldest && udp_rest(sk))
		w->oldest = w->youngest;
	return was_read(ctx, sk, w, UDP, bpf_ktime_get_ns() - oldest);
}

/* Linux 6.3: the end of every recvmsg(), whatever the socket. */
SEC("tp_btf/sock_recv_length")
int on_udp_read(u64 *ctx)
{
	return udp_read(ctx, (void *)ctx[0], (s32)ctx[1], (s32)ctx[2]);
}

SEC("fexit/inet_recvmsg")
int fexit_inet_recvmsg(u64 *ctx)
{
	const struct socket *socket = (void *)ctx[0];

	return udp_read(ctx, socket->sk, (s32)ctx[4], (s32)ctx[3]);
}

SEC("fexit/inet6_recvmsg")
int fexit_inet6_recvmsg(u64 *ctx)
{
	const struct socket *socket = (void *)ctx[0];

	return udp_read(ctx, socket->sk, (s32)ctx[4], (s32)ctx[3]);
}

/* From now on the byte `next` is known to wait. */
static __always_inline void waits_to_be_sent(const struct tcp_sock *tp, struct waiting *w, u32 next,
					     bool rest)
{
	w->next = next;
	w->rest = rest;
	w->told_unsent = false;
	w->written = bpf_ktime_get_ns();
	/* An acknowledgement may have let it go meanwhile. */
	if (tp->snd_nxt != next)
		w->written = 0;
}

/* The current task has written, or would like to write more, and some of it may still be here. */
static __always_inline int written(const struct sock *sk, bool rest)
{
	const struct tcp_sock *tp;
	struct waiting *w;
	u8 state;
	u32 next;

	if (sk->sk_protocol != IPPROTO_TCP || !is_internet(sk))
		return 0;
	state = sk->__sk_common.skc_state;
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp)
		return 0;
	next = tp->snd_nxt;
	if (next == tp->write_seq)
		return 0;
	w = waiting_made(sk);
	/* What was written before still waits, or this is the first. */
	if (!w || (w->written && w->next == next))
		return 0;
	w->writer = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(w->writer_comm, sizeof(w->writer_comm));
	waits_to_be_sent(tp, w, next, rest);
	return 0;
}

/* Linux 6.3: the end of every sendmsg(), whatever the socket. */
SEC("tp_btf/sock_send_length")
int on_written(u64 *ctx)
{
	return written((void *)ctx[0], false);
}

SEC("fexit/tcp_sendmsg_locked")
int fexit_sendmsg(u64 *ctx)
{
	return written((void *)ctx[0], false);
}

/*
 * Whether a packet of this socket has the byte with this number. Its ports do not tell more: they
 * are others behind address translation, and in a tunnel the packet was seen inside before.
 */
static __always_inline bool has_byte(const struct sk_buff *skb, u32 next)
{
	struct bytes b = {.head = (u64)BPF_CORE_READ(skb, head), .tail = skb->tail};
	u32 off = skb->transport_header, before, payload;
	struct tcphdr tcp;

	if (!read_at(&b, off, &tcp, sizeof(tcp)))
		return false;
	before = off - skb->mac_header + (tcp.doff >> 4) * 4;
	if (skb->len <= before)
		return false;
	payload = skb->len - before;
	return next - bpf_ntohl(tcp.seq) < payload;
}

static __always_inline int sent(void *ctx, const struct sk_buff *skb, const struct sock *sk,
				struct waiting *w)
{
	const struct tcp_sock *tp = (const void *)sk;
	struct netns netns = netns_of_sock(sk);
	struct socketlatency_event *e;
	struct stats *st = stats_here();
	u64 latency;

	if (!st)
		return 0;
	/* It went by unseen: what this packet has is sent once more. */
	if (BPF_CORE_READ(tp, snd_nxt) != w->next) {
		w->written = 0;
		return 0;
	}
	if (!has_byte(skb, w->next))
		return 0;
	latency = bpf_ktime_get_ns() - w->written;
	w->written = 0;
	/* A transfer that goes on leaves a rest behind all the time. */
	if (w->rest && latency < options.slow_ns)
		return 0;
	observe_time(&writes, netns, TCP, latency, st);
	count_slow(netns, WRITE, latency, st);
	if (latency < options.slow_ns)
		return 0;
	e = tell(ctx, sk, netns, WRITE, latency, st);
	if (!e)
		return 0;
	e->head.pid = w->writer;
	__builtin_memcpy(e->head.comm, w->writer_comm, sizeof(e->head.comm));
	event_submit(e, st);
	return 0;
}

/* Every packet of every device: most are of sockets that have nothing to send. */
SEC("tp_btf/net_dev_queue")
int on_queue(u64 *ctx)
{
	const struct sk_buff *skb = (void *)ctx[0];
	const struct sock *sk = skb->sk;
	struct net_device *dev;
	struct waiting *w;

	if (!sk || !is_full(sk->__sk_common.skc_state) || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	w = waiting_of(sk);
	if (!w || !w->written)
		return 0;
	/* The host's namespace sees the packet of a container too, a little later. */
	dev = skb->dev;
	if (!dev || dev->nd_net.net != sk->__sk_common.skc_net.net)
		return 0;
	return sent(ctx, skb, sk, w);
}

/* Whether it waits at all: a socket that does not block does not. */
static __always_inline bool blocks_begin(const struct sock *sk, const long *patience, bool typed)
{
	struct netns netns = netns_of_sock_at(sk, typed);
	struct blocked blocked = {.netns = netns.inum, .cookie = netns.cookie};
	u64 thread = bpf_get_current_pid_tgid();
	struct stats *st = stats_here();
	long left = 0;

	bpf_probe_read_kernel(&left, sizeof(left), patience);
	if (!left || !st)
		return false;
	blocked.since = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&waits, &thread, &blocked, BPF_ANY))
		count(st, map_full);
	return true;
}

/* How long it was; 0 if its beginning was not seen. */
static __always_inline u64 blocks_end(struct stats *st)
{
	u64 thread = bpf_get_current_pid_tgid(), latency;
	struct blocked *blocked = bpf_map_lookup_elem(&waits, &thread);
	struct netns netns;

	if (!blocked)
		return 0;
	netns.inum = blocked->netns;
	netns.cookie = blocked->cookie;
	latency = bpf_ktime_get_ns() - blocked->since;
	bpf_map_delete_elem(&waits, &thread);
	observe_time(&blocks, netns, TCP, latency, st);
	return latency;
}

/* Who waits here has not come to the end of its write, and perhaps never does. */
SEC("fentry/sk_stream_wait_memory")
int fentry_blocks(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];

	return blocks_begin(sk, (void *)ctx[1], true) ? written(sk, true) : 0;
}

SEC("fexit/sk_stream_wait_memory")
int fexit_blocks(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	struct stats *st = stats_here();
	u64 latency = st ? blocks_end(st) : 0;

	if (st && latency && latency >= options.slow_ns && is_internet(sk) &&
	    sk->sk_protocol == IPPROTO_TCP)
		tell_of_task(ctx, sk, netns_of_sock(sk), BLOCKED, latency, st);
	return 0;
}

SEC("kprobe/sk_stream_wait_memory")
int kprobe_blocks(struct pt_regs *ctx)
{
	blocks_begin((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false);
	return 0;
}

SEC("kretprobe/sk_stream_wait_memory")
int kretprobe_blocks(struct pt_regs *ctx)
{
	struct stats *st = stats_here();

	if (st)
		blocks_end(st);
	return 0;
}

static __always_inline bool still_unread(const struct sock *sk, const struct waiting *w)
{
	const struct tcp_sock *tp = (const void *)sk;
	u32 copied;

	if (sk->sk_protocol == IPPROTO_UDP)
		return udp_rest(sk);
	copied = BPF_CORE_READ(tp, copied_seq);
	return copied == w->copied && tcp_rest(sk, BPF_CORE_READ(tp, rcv_nxt), copied);
}

/* Since when the oldest data waits for its reader, if that is to be told; else 0. */
static __always_inline u64 unread_since(const struct sock *sk, struct waiting *w, u64 now)
{
	u64 oldest = w->oldest;

	/* It may have come a moment ago, on another CPU. */
	if (!oldest || oldest > now || now - oldest < options.slow_ns || w->told == oldest)
		return 0;
	if (!still_unread(sk, w))
		return 0;
	w->told = oldest;
	return oldest;
}

/* A closed socket still sends what was written before. In other states nothing goes out. */
static __always_inline bool sends(u8 state)
{
	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || state == TCP_FIN_WAIT1 ||
	       state == TCP_LAST_ACK || state == TCP_CLOSING;
}

/*
 * The same of what is not sent. What a packet leaves behind is noticed here and not where the
 * packet is sent, which is a place that all of them come by: it waits from now on as far as anybody
 * knows.
 */
static __always_inline u64 unsent_since(const struct sock *sk, struct waiting *w, u64 now)
{
	const struct tcp_sock *tp = bpf_skc_to_tcp_sock((void *)sk);
	u64 written = w->written;
	u32 next;

	if (!tp || !sends(sk->__sk_common.skc_state))
		return 0;
	next = tp->snd_nxt;
	if (next == tp->write_seq)
		return 0;
	if (!written || w->next != next) {
		waits_to_be_sent(tp, w, next, true);
		return 0;
	}
	if (written > now || now - written < options.slow_ns || w->told_unsent)
		return 0;
	w->told_unsent = true;
	return written;
}

/*
 * Runs for each socket that something is known of, now and then: who never reads comes by nowhere
 * else, and nor does what is never sent. Each time of it is told once; of two at the same time, the
 * other when it runs again.
 */
SEC("iter/bpf_sk_storage_map")
int on_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct sock *sk = ctx->sk;
	struct waiting *w = ctx->value;
	struct stats *st = stats_here();
	struct socketlatency_event *e;
	u64 now = bpf_ktime_get_ns(), since;
	u16 kind = UNREAD;
	struct netns netns;

	if (!sk || !w || !st)
		return 0;
	since = unread_since(sk, w, now);
	if (!since && sk->sk_protocol == IPPROTO_TCP) {
		kind = UNSENT;
		since = unsent_since(sk, w, now);
	}
	if (!since)
		return 0;
	netns = netns_of_sock(sk);
	count_found(netns, kind, st);
	e = tell(ctx, sk, netns, kind, now - since, st);
	if (!e)
		return 0;
	e->head.pid = kind == UNREAD ? w->reader : w->writer;
	__builtin_memcpy(e->head.comm, kind == UNREAD ? w->reader_comm : w->writer_comm,
			 sizeof(e->head.comm));
	event_submit(e, st);
	return 0;
}
