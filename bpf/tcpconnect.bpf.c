/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections made from here: how long the handshake took, and why there was none. */
#include "netskoop.bpf.h"
#include "packet.bpf.h"
#include "histogram.bpf.h"
#include "flows.bpf.h"
#include "filter.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { FAILED, SLOW };

enum cause { OTHER, REFUSED, TIMEOUT, UNREACHABLE, CANCELLED, NO_PORT };

/* Errors as they are on all architectures that Linux has in common use. */
enum {
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
	__uint(max_entries, 8192);
	__type(key, struct tcpconnect_key);
	__type(value, u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} handshakes SEC(".maps");

/* By the socket's address. Every attempt leaves the state SYN_SENT, and its entry goes with it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct attempt);
} attempts SEC(".maps");

static __always_inline void begin(const struct sock *sk, struct stats *st)
{
	struct attempt attempt = {.began = bpf_ktime_get_ns()};
	u64 key = (u64)sk;

	/* The system call that connects: the current task is the one that wants it. */
	attempt.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(attempt.comm, sizeof(attempt.comm));
	if (bpf_map_update_elem(&attempts, &key, &attempt, BPF_ANY))
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
		return UNREACHABLE;
	default:
		return OTHER;
	}
}

static __always_inline int tell(void *ctx, const struct sock *sk, struct netns netns, u16 kind,
				const struct attempt *attempt, const struct tuple *t, u64 latency,
				u32 error, u32 cause, struct stats *st)
{
	struct tcpconnect_event *e;

	if (!is_wanted(&options.filter, t, st))
		return 0;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = cgroup_of_sock(sk);
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

/* Without a port none was found: the socket's own number of it is set too late to tell. */
static __always_inline bool has_port(const struct sock *sk)
{
	return BPF_CORE_READ((const struct inet_sock *)sk, inet_sport) != 0;
}

SEC("tp_btf/inet_sock_set_state")
int on_state(u64 *ctx)
{
	const struct sock *sk = (void *)ctx[0];
	u32 old = ctx[1], new = ctx[2], error = 0, cause;
	struct tcpconnect_key counter_key = {};
	struct attempt *found, attempt;
	struct tuple t = {.proto = 6};
	struct netns netns;
	struct stats *st;
	u64 key = (u64)sk, latency, *value, zero = 0;

	if (new != TCP_SYN_SENT && old != TCP_SYN_SENT)
		return 0;
	st = stats_here();
	if (!st || sk->sk_protocol != 6)
		return 0;
	if (new == TCP_SYN_SENT) {
		begin(sk, st);
		return 0;
	}
	found = bpf_map_lookup_elem(&attempts, &key);
	if (!found)
		return 0;
	attempt = *found;
	bpf_map_delete_elem(&attempts, &key);
	latency = bpf_ktime_get_ns() - attempt.began;
	netns = netns_of_sock(sk);
	tuple_of_sock(sk, &t, false);
	if (new == TCP_ESTABLISHED) {
		observe(&handshakes, netns, 0, latency / 1000, st);
		if (latency < options.slow_ns)
			return 0;
		return tell(ctx, sk, netns, SLOW, &attempt, &t, latency, 0, OTHER, st);
	}
	if (new != TCP_CLOSE)
		return 0;
	error = sk->sk_err;
	cause = cause_of(error, has_port(sk));
	counter_key.netns = netns.inum;
	counter_key.cause = cause;
	counter_key.cookie = netns.cookie;
	value = counter(&counters, &counter_key, &zero, st);
	if (value)
		__sync_fetch_and_add(value, 1);
	if (options.flows) {
		struct tuple peer = t;

		/* By peer: the port at this end is another one each time. */
		peer.sport = 0;
		peer.pad = cause;
		count_flow(netns, &peer, 1, st);
	}
	/* A program that gives up by itself knows it. */
	if (cause == CANCELLED && latency < options.slow_ns)
		return 0;
	return tell(ctx, sk, netns, FAILED, &attempt, &t, latency, error, cause, st);
}
