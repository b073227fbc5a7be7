/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections made from here: how long the handshake took, and why there was none. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "histogram.bpf.h"
#include "flows.bpf.h"
#include "filter.bpf.h"
#include "shares.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { FAILED, SLOW };

enum cause { OTHER, REFUSED, TIMEOUT, UNREACHABLE, CANCELLED, NO_PORT, NO_ROUTE, NO_ADDRESS };

/* Errors as they are on all architectures that Linux has in common use. */
enum {
	EACCES = 13,
	EINVAL = 22,
	EADDRNOTAVAIL = 99,
	ENETUNREACH = 101,
	ETIMEDOUT = 110,
	ECONNREFUSED = 111,
	EHOSTUNREACH = 113,
};

struct tcpconnect_event {
	struct event_head head;
	struct tuple tuple;
	u64 latency_ns;
	u32 error; /* an errno, 0 if there was none */
	u8 cause;
	u8 pad[3];
};

struct tcpconnect_key {
	u32 netns;
	u32 cause;
	u64 cookie;
};

struct tcpconnect_options {
	struct limit limit;
	struct event_filter filter;
	u64 slow_ns;
	u8 stack;
	u8 flows;
};

/* A handshake that has begun, and who began it. */
struct attempt {
	u64 began;
	u32 pid;
	u8 comm[16];
	u32 pad;
};

/* Only for its type, which user space takes over from here. */
const volatile struct tcpconnect_event anchor = {};

struct tcpconnect_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct tcpconnect_key);
	__type(value, u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} handshakes SEC(".maps");

/* So many attempts of a namespace are followed at once. Failures are counted all the same. */
#define MOST_ATTEMPTS 2048

/* By the socket's address. Every attempt leaves the state SYN_SENT, and its entry goes with it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct attempt);
} attempts SEC(".maps");

/*
 * Attempts that ended within connect() itself after they had begun, by the socket's address: they
 * are counted when they end. Closing a socket does not make an entry, disconnecting it does, and
 * then nobody takes it out again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
} counted SEC(".maps");

/* Whether there are hooks at the end of connect(). */
const volatile bool sees_calls = false;

static __always_inline void begin(const struct sock *sk, struct netns netns, struct stats *st)
{
	struct attempt attempt = {.began = bpf_ktime_get_ns()};
	u64 key = (u64)sk;

	/* The system call that connects: the current task is the one that wants it. */
	attempt.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(attempt.comm, sizeof(attempt.comm));
	if (!put_in_place(&attempts, &key, &attempt, netns, 0, MOST_ATTEMPTS))
		count(st, map_full);
}

static __always_inline u32 cause_of(u32 error, bool has_port)
{
	if (!has_port)
		return NO_PORT;
	switch (error) {
	case 0:
		return CANCELLED;
	case ECONNREFUSED:
		return REFUSED;
	case ETIMEDOUT:
		return TIMEOUT;
	case ENETUNREACH:
	case EHOSTUNREACH:
	/* What ICMPv6 says where somebody forbids it. */
	case EACCES:
		return UNREACHABLE;
	default:
		return OTHER;
	}
}

static __always_inline int tell(void *ctx, const struct sock *sk, struct netns netns, u16 kind,
				const struct attempt *attempt, const struct tuple *t, u64 latency,
				u32 error, u32 cause, struct stats *st, bool typed)
{
	struct tcpconnect_event *e;

	if (!is_wanted(&options.filter, t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock_at(sk, typed);
	e->head.pid = attempt->pid;
	__builtin_memcpy(e->head.comm, attempt->comm, sizeof(e->head.comm));
	e->tuple = *t;
	e->latency_ns = latency;
	e->error = error;
	e->cause = cause;
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	event_submit(e, st);
	return 0;
}

/*
 * Without a port none was found: the socket's own number of it is set too late to tell. One that
 * was asked for may be taken to this peer: then it ends, while nobody closes it and nothing has
 * failed, before the first packet is made.
 */
static __always_inline bool has_port(const struct sock *sk)
{
	if (!BPF_CORE_READ((const struct inet_sock *)sk, inet_sport))
		return false;
	return sk->sk_err || sk->sk_shutdown ||
	       BPF_CORE_READ((const struct tcp_sock *)sk, packets_out);
}

static __always_inline void count_failure(struct netns netns, u32 cause, const struct tuple *t,
					  struct stats *st)
{
	struct tcpconnect_key key = {.netns = netns.inum, .cause = cause, .cookie = netns.cookie};
	u64 *value, zero = 0;

	value = counter(&counters, &key, &zero, st);
	if (!value)
		return;
	if (options.flows) {
		struct tuple peer = *t;

		/* By peer: the port at this end is another one each time. */
		peer.sport = 0;
		peer.pad = cause;
		count_flow(netns, &peer, 1);
	}
	__sync_fetch_and_add(value, 1);
}

SEC("tp_btf/inet_sock_set_state")
int on_state(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	u32 old = ctx[1], new = ctx[2], error = 0, cause;
	struct attempt *found, attempt = {};
	struct tuple t = {.proto = 6};
	struct netns netns;
	struct stats *st;
	u64 key = (u64)sk, latency = 0;

	if (new != TCP_SYN_SENT && old != TCP_SYN_SENT)
		return 0;
	st = stats_here();
	if (!st || sk->sk_protocol != 6)
		return 0;
	netns = netns_of_sock(sk);
	if (new == TCP_SYN_SENT) {
		begin(sk, netns, st);
		return 0;
	}
	found = bpf_map_lookup_elem(&attempts, &key);
	if (found) {
		attempt = *found;
		take_out(&attempts, &key, netns, 0);
		latency = bpf_ktime_get_ns() - attempt.began;
	} else if (new != TCP_CLOSE) {
		return 0;
	}
	tuple_of_sock(sk, &t, false);
	if (new == TCP_ESTABLISHED) {
		observe(&handshakes, netns, 0, latency / 1000, st);
		if (latency < options.slow_ns)
			return 0;
		return tell(ctx, sk, netns, SLOW, &attempt, &t, latency, 0, OTHER, st, true);
	}
	if (new != TCP_CLOSE)
		return 0;
	error = sk->sk_err;
	cause = cause_of(error, has_port(sk));
	count_failure(netns, cause, &t, st);
	/* An answer and a time-out are errors of the socket, and who closes it shuts it down
	 * before. */
	if (sees_calls && !error && !sk->sk_shutdown)
		bpf_map_update_elem(&counted, &key, &key, BPF_ANY);
	/* connect() says so only later. */
	if (cause == NO_PORT)
		error = EADDRNOTAVAIL;
	/* A program that gives up by itself knows it. */
	if (cause == CANCELLED && latency < options.slow_ns)
		return 0;
	return tell(ctx, sk, netns, FAILED, &attempt, &t, latency, error, cause, st, true);
}

/* What connect() was asked for. */
static __always_inline void read_peer(struct tuple *t, u64 address, bool is_ipv6)
{
	const struct sockaddr_in *in = (const void *)address;
	const struct sockaddr_in6 *in6 = (const void *)address;

	if (BPF_CORE_READ(in, sin_family) != (is_ipv6 ? AF_INET6 : AF_INET))
		return;
	if (is_ipv6) {
		t->family = 6;
		t->dport = bpf_ntohs(BPF_CORE_READ(in6, sin6_port));
		BPF_CORE_READ_INTO(&t->daddr, in6, sin6_addr.in6_u.u6_addr32);
	} else {
		t->family = 4;
		t->dport = bpf_ntohs(BPF_CORE_READ(in, sin_port));
		t->daddr[0] = BPF_CORE_READ(in, sin_addr.s_addr);
	}
}

/* What the socket was bound to, if it was. */
static __always_inline void read_own(struct tuple *t, const struct sock *sk)
{
	t->sport = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (t->family == 6 && bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr))
		BPF_CORE_READ_INTO(&t->saddr, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32);
	else if (t->family == 4 && BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET)
		t->saddr[0] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
}

static __always_inline bool is_link_local(const struct tuple *t)
{
	return t->family == 6 && (t->daddr[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* An IPv4 address on an IPv6 socket: that is left to the function for IPv4, if it may be. */
static __always_inline bool is_left_to_ipv4(const struct tuple *t, const struct sock *sk)
{
	return t->family == 6 && !t->daddr[0] && !t->daddr[1] && t->daddr[2] == bpf_htonl(0xffff) &&
	       !BPF_CORE_READ_BITFIELD_PROBED(&sk->__sk_common, skc_ipv6only);
}

/* Why an attempt did not even begin. A route of the type blackhole says EINVAL, and so does a
 * link-local address without an interface. */
static __always_inline u32 cause_at_start(u32 error, const struct tuple *t)
{
	switch (error) {
	case ENETUNREACH:
	case EHOSTUNREACH:
	case EACCES:
		return NO_ROUTE;
	case EINVAL:
		return t->family && !is_link_local(t) ? NO_ROUTE : OTHER;
	case EADDRNOTAVAIL:
		return NO_ADDRESS;
	default:
		return OTHER;
	}
}

/* The end of connect(). What began is followed by its state, also if it ended at once. */
static __always_inline int called(void *ctx, u64 socket, u64 address, s32 result, bool is_ipv6)
{
	const struct sock *sk = (const void *)socket;
	u32 error = -result, cause;
	struct attempt attempt = {};
	struct tuple t = {.proto = 6};
	struct netns netns;
	struct stats *st;

	if (result >= 0)
		return 0;
	if (bpf_map_lookup_elem(&counted, &socket)) {
		bpf_map_delete_elem(&counted, &socket);
		return 0;
	}
	st = stats_here();
	if (!st)
		return 0;
	read_peer(&t, address, is_ipv6);
	if (is_left_to_ipv4(&t, sk))
		return 0;
	read_own(&t, sk);
	cause = cause_at_start(error, &t);
	netns = netns_of_sock_at(sk, false);
	count_failure(netns, cause, &t, st);
	attempt.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(attempt.comm, sizeof(attempt.comm));
	return tell(ctx, sk, netns, FAILED, &attempt, &t, 0, error, cause, st, false);
}

SEC("fexit/tcp_v4_connect")
int fexit_v4(u64 *ctx)
{
	return called(ctx, ctx[0], number_of(ctx, 1), ctx[3], false);
}

SEC("fexit/tcp_v6_connect")
int fexit_v6(u64 *ctx)
{
	return called(ctx, ctx[0], number_of(ctx, 1), ctx[3], true);
}

/* What kprobes at the beginning keep for those at the end. The function for IPv6 may call the one
 * for IPv4. */
struct call {
	u64 socket;
	u64 address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct call);
} calls SEC(".maps");

static __always_inline u64 call_here(bool is_ipv6)
{
	return bpf_get_current_pid_tgid() | (u64)is_ipv6 << 63;
}

static __always_inline int calls_begin(struct pt_regs *ctx, bool is_ipv6)
{
	struct call call = {.socket = PT_REGS_PARM1(ctx), .address = PT_REGS_PARM2(ctx)};
	u64 key = call_here(is_ipv6);

	bpf_map_update_elem(&calls, &key, &call, BPF_ANY);
	return 0;
}

static __always_inline int calls_end(struct pt_regs *ctx, bool is_ipv6)
{
	u64 key = call_here(is_ipv6);
	struct call *found = bpf_map_lookup_elem(&calls, &key), call;

	if (!found)
		return 0;
	call = *found;
	bpf_map_delete_elem(&calls, &key);
	return called(ctx, call.socket, call.address, PT_REGS_RC(ctx), is_ipv6);
}

SEC("kprobe/tcp_v4_connect")
int kprobe_v4(struct pt_regs *ctx)
{
	return calls_begin(ctx, false);
}

SEC("kprobe/tcp_v6_connect")
int kprobe_v6(struct pt_regs *ctx)
{
	return calls_begin(ctx, true);
}

SEC("kretprobe/tcp_v4_connect")
int kretprobe_v4(struct pt_regs *ctx)
{
	return calls_end(ctx, false);
}

SEC("kretprobe/tcp_v6_connect")
int kretprobe_v6(struct pt_regs *ctx)
{
	return calls_end(ctx, true);
}
