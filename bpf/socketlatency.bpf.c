/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What sockets wait for: data until its application reads it, and what an application has written
 * until the first of it is sent. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { READ, WRITE, UNREAD };

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
};

/* What is known of a socket. */
struct waiting {
	u64 oldest;   /* when the oldest unread data came; 0: nothing is unread */
	u64 youngest; /* and the youngest */
	u64 told;     /* the oldest of which it was told that nobody reads it */
	u64 written;  /* when that was written which is not sent yet; 0: nothing */
	u32 copied;   /* TCP: up to where all was read when the oldest came */
	u32 next;     /* TCP: the first byte that is not sent */
	u32 pid;      /* who wrote it */
	u8 comm[16];
	u32 pad;
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
	__uint(max_entries, 8192);
	__type(key, struct socketlatency_key);
	__type(value, struct socketlatency_value);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} reads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} writes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
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
	__uint(max_entries, 8192);
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

static __always_inline void count_unread(struct netns netns, struct stats *st)
{
	struct socketlatency_key key = {.netns = netns.inum, .cookie = netns.cookie};
	struct socketlatency_value zero = {}, *value = counter(&counters, &key, &zero, st);

	if (value)
		__sync_fetch_and_add(&value->unread, 1);
}

/* An event without its process, in the direction in which the data goes. */
static __always_inline struct socketlatency_event *
tell(void *ctx, const struct sock *sk, struct netns netns, u16 kind, u64 latency, struct stats *st)
{
	struct tuple t = {.proto = sk->sk_protocol};
	struct socketlatency_event *e;

	tuple_of_sock(sk, &t, kind != WRITE);
	if (!is_wanted(&options.filter, &t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, kind != UNREAD && options.stack,
			st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
	e->tuple = t;
	e->latency_ns = latency;
	return e;
}

/* Data waited for its reader, which is the current task. */
static __always_inline int was_read(void *ctx, const struct sock *sk, u32 protocol, u64 latency)
{
	struct netns netns = netns_of_sock(sk);
	struct socketlatency_event *e;
	struct stats *st = stats_here();

	if (!st)
		return 0;
	observe_time(&reads, netns, protocol, latency, st);
	count_slow(netns, READ, latency, st);
	if (latency < options.slow_ns)
		return 0;
	e = tell(ctx, sk, netns, READ, latency, st);
	if (!e)
		return 0;
	e->head.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->head.comm, sizeof(e->head.comm));
	event_submit(e, st);
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

/* The end of a connection takes a number too, but there is nothing to read. */
static __always_inline bool tcp_rest(const struct sock *sk, u32 came, u32 copied)
{
	u8 state = sk->__sk_common.skc_state;
	bool ended = state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;

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
	return was_read(ctx, sk, TCP, bpf_ktime_get_ns() - oldest);
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
	return was_read(ctx, sk, UDP, bpf_ktime_get_ns() - oldest);
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

/* An application has written, and some of it may still be here. */
static __always_inline int written(const struct sock *sk)
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
	w->next = next;
	w->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(w->comm, sizeof(w->comm));
	w->written = bpf_ktime_get_ns();
	/* An acknowledgement may have let it go meanwhile. */
	if (tp->snd_nxt != next)
		w->written = 0;
	return 0;
}

/* Linux 6.3: the end of every sendmsg(), whatever the socket. */
SEC("tp_btf/sock_send_length")
int on_written(u64 *ctx)
{
	return written((void *)ctx[0]);
}

SEC("fexit/tcp_sendmsg_locked")
int fexit_sendmsg(u64 *ctx)
{
	return written((void *)ctx[0]);
}

/* Whether a packet of this socket has the byte with this number. */
static __always_inline bool has_byte(const struct sk_buff *skb, const struct sock *sk, u32 next)
{
	struct bytes b = {.head = (u64)BPF_CORE_READ(skb, head), .tail = skb->tail};
	u32 off = skb->transport_header, before, payload;
	struct tcphdr tcp;

	if (!read_at(&b, off, &tcp, sizeof(tcp)))
		return false;
	/* In a tunnel the header is not that of this connection. */
	if (bpf_ntohs(tcp.source) != sk->__sk_common.skc_num ||
	    tcp.dest != sk->__sk_common.skc_dport)
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
	if (!has_byte(skb, sk, w->next))
		return 0;
	latency = bpf_ktime_get_ns() - w->written;
	w->written = 0;
	observe_time(&writes, netns, TCP, latency, st);
	count_slow(netns, WRITE, latency, st);
	if (latency < options.slow_ns)
		return 0;
	e = tell(ctx, sk, netns, WRITE, latency, st);
	if (!e)
		return 0;
	e->head.pid = w->pid;
	__builtin_memcpy(e->head.comm, w->comm, sizeof(e->head.comm));
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

static __always_inline int blocks_begin(const struct sock *sk, const long *patience, bool typed)
{
	struct netns netns = netns_of_sock_at(sk, typed);
	struct blocked blocked = {.netns = netns.inum, .cookie = netns.cookie};
	u64 thread = bpf_get_current_pid_tgid();
	struct stats *st = stats_here();
	long left = 0;

	/* A socket that does not block does not wait. */
	bpf_probe_read_kernel(&left, sizeof(left), patience);
	if (!left || !st)
		return 0;
	blocked.since = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&waits, &thread, &blocked, BPF_ANY))
		count(st, map_full);
	return 0;
}

static __always_inline int blocks_end(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct blocked *blocked = bpf_map_lookup_elem(&waits, &thread);
	struct stats *st = stats_here();
	struct netns netns;
	u64 since;

	if (!blocked || !st)
		return 0;
	netns.inum = blocked->netns;
	netns.cookie = blocked->cookie;
	since = blocked->since;
	bpf_map_delete_elem(&waits, &thread);
	observe_time(&blocks, netns, TCP, bpf_ktime_get_ns() - since, st);
	return 0;
}

SEC("fentry/sk_stream_wait_memory")
int fentry_blocks(u64 *ctx)
{
	return blocks_begin((void *)ctx[0], (void *)ctx[1], true);
}

SEC("fexit/sk_stream_wait_memory")
int fexit_blocks(u64 *ctx)
{
	return blocks_end();
}

SEC("kprobe/sk_stream_wait_memory")
int kprobe_blocks(struct pt_regs *ctx)
{
	return blocks_begin((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), false);
}

SEC("kretprobe/sk_stream_wait_memory")
int kretprobe_blocks(struct pt_regs *ctx)
{
	return blocks_end();
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

/*
 * Runs for each socket that something is known of, now and then: who never reads comes by nowhere
 * else. Each time of it is told once.
 */
SEC("iter/bpf_sk_storage_map")
int on_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct sock *sk = ctx->sk;
	struct waiting *w = ctx->value;
	u64 now = bpf_ktime_get_ns(), oldest;
	struct socketlatency_event *e;
	struct stats *st = stats_here();
	struct netns netns;

	if (!sk || !w || !st)
		return 0;
	oldest = w->oldest;
	/* It may have come a moment ago, on another CPU. */
	if (!oldest || oldest > now || now - oldest < options.slow_ns || w->told == oldest)
		return 0;
	if (!still_unread(sk, w))
		return 0;
	w->told = oldest;
	netns = netns_of_sock(sk);
	count_unread(netns, st);
	e = tell(ctx, sk, netns, UNREAD, now - oldest, st);
	if (e)
		event_submit(e, st);
	return 0;
}
