/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Softirqs: how long they waited for their CPU, how long they ran, and which task was on the CPU.
 */
#include "netskoop.bpf.h"
#include "histogram.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Softirq vectors; there have been ten since 2.6.28. */
#define VECTORS 10

/* Places for them: a power of two, for inside(). */
#define PLACES 16

enum kind { SCHEDULED_LATE, RAN_LONG };

struct softirq_options {
	struct limit limit;
	u64 slow_ns;
	u32 vectors; /* a bit for each that is looked at */
	u8 stack;
};

struct softirq_event {
	struct event_head head;
	u64 latency_ns;
	u64 held_ns; /* for how long of it the task of the head was on the CPU */
	u32 cpu;
	u32 vector;
};

struct softirq_key {
	u32 netns; /* of nobody, as the cookie: softirqs are the node's */
	u32 vector;
	u64 cookie;
};

struct softirq_value {
	u64 late;
	u64 late_100ms;
	u64 longer;
	u64 longer_100ms;
};

/* A task that was on the CPU. */
struct holder {
	u64 from;
	u64 to;
	struct netns netns;
	u64 cgroup;
	u32 pid;
	u8 comm[16];
	u32 pad;
};

/*
 * What is known of a CPU. Its softirqs are raised with interrupts off, and run one after the other;
 * but an interrupt may raise one while the programs for entry and exit are at work.
 */
struct cpu_state {
	u64 raised[PLACES];
	u64 began[PLACES];
	u64 pending;  /* how many have been raised and have not begun */
	u64 switched; /* when the current task came, or the first of the pending ones was raised */
	struct holder holder; /* the longest one since then */
};

/* Only for its type, which user space takes over from here. */
const volatile struct softirq_event anchor = {};

struct softirq_options options = {};

/* Inode of the node's own network namespace. */
const volatile u32 host_netns = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_state);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VECTORS);
	__type(key, struct softirq_key);
	__type(value, struct softirq_value);
} counters SEC(".maps");

/* One for each CPU and vector: the loader knows how many CPUs there may be. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VECTORS);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} schedule SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VECTORS);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} execution SEC(".maps");

static __always_inline struct cpu_state *this_cpu(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cpus, &zero);
}

static __always_inline bool wanted(u32 vector)
{
	return options.vectors >> vector & 1;
}

/* The current task as the holder of the CPU. In a switch that is the one that goes. */
static __always_inline void hold(struct holder *holder, u64 from, u64 to)
{
	const struct task_struct *task = (const void *)bpf_get_current_task();

	holder->from = from;
	holder->to = to;
	holder->netns = netns_read(BPF_CORE_READ(task, nsproxy, net_ns), false);
	/* A task that is about to end has left its namespaces. */
	if (!holder->netns.inum)
		holder->netns.inum = host_netns;
	holder->cgroup = bpf_get_current_cgroup_id();
	holder->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(holder->comm, sizeof(holder->comm));
}

/* Who had the CPU for the longest part of the time since a vector was raised, until now. */
static __always_inline u64 longest_since(struct cpu_state *state, u64 raised, u64 now)
{
	u64 own_from = state->switched > raised ? state->switched : raised;
	u64 from = state->holder.from > raised ? state->holder.from : raised;
	u64 held = state->holder.to > from ? state->holder.to - from : 0;

	if (now - own_from < held)
		return held;
	hold(&state->holder, own_from, now);
	return now - own_from;
}

static __always_inline void count_slow(u32 vector, u16 kind, u64 latency, struct stats *st)
{
	struct softirq_key key = {.vector = vector};
	struct softirq_value zero = {}, *value;

	if (latency < TEN_MS)
		return;
	value = counter(&counters, &key, &zero, st);
	if (!value)
		return;
	__sync_fetch_and_add(kind == RAN_LONG ? &value->longer : &value->late, 1);
	if (latency >= HUNDRED_MS)
		__sync_fetch_and_add(kind == RAN_LONG ? &value->longer_100ms : &value->late_100ms,
				     1);
}

/* An event of the task that had the CPU, or of the node if no task is the cause. */
static __always_inline int tell(void *ctx, const struct holder *holder, u16 kind, u32 vector,
				u64 latency, u64 held, struct stats *st)
{
	struct softirq_event *e;
	struct netns netns = {.inum = host_netns};

	if (holder)
		netns = holder->netns;
	e = event_begin(sizeof(*e), &options.limit, netns, kind, options.stack, st);
	if (!e)
		return 0;
	if (holder) {
		e->head.cgroup = holder->cgroup;
		e->head.pid = holder->pid;
		__builtin_memcpy(e->head.comm, holder->comm, sizeof(e->head.comm));
	}
	e->latency_ns = latency;
	e->held_ns = held;
	e->cpu = bpf_get_smp_processor_id();
	e->vector = vector;
	event_submit(e, st);
	return 0;
}

static __always_inline void observe_here(void *map, u32 vector, u64 latency, struct stats *st)
{
	struct netns nobody = {};

	observe_time(map, nobody, bpf_get_smp_processor_id() << 8 | vector, latency, st);
}

SEC("tp_btf/softirq_raise")
int on_raise(u64 *ctx)
{
	u64 vector = ctx[0]; /* the first argument of all three */
	struct cpu_state *state;
	u64 now;

	if (vector >= VECTORS || !wanted(vector))
		return 0;
	state = this_cpu();
	/* Raised already: it has been waiting since then. */
	if (!state || state->raised[inside(vector, PLACES)])
		return 0;
	now = bpf_ktime_get_ns();
	if (!state->pending) {
		state->switched = now;
		state->holder.from = state->holder.to = now;
	}
	state->raised[inside(vector, PLACES)] = now;
	__sync_fetch_and_add(&state->pending, 1);
	return 0;
}

/* For every switch: mostly nothing is pending. */
SEC("tp_btf/sched_switch")
int on_switch(u64 *ctx)
{
	struct cpu_state *state = this_cpu();
	u64 now;

	if (!state || !state->pending)
		return 0;
	now = bpf_ktime_get_ns();
	if (now - state->switched > state->holder.to - state->holder.from)
		hold(&state->holder, state->switched, now);
	state->switched = now;
	return 0;
}

SEC("tp_btf/softirq_entry")
int on_entry(u64 *ctx)
{
	u64 vector = ctx[0];
	struct cpu_state *state = this_cpu();
	u64 now, raised, latency;
	struct stats *st = stats_here();

	if (vector >= VECTORS || !state || !st)
		return 0;
	raised = state->raised[inside(vector, PLACES)];
	now = bpf_ktime_get_ns();
	state->began[inside(vector, PLACES)] = wanted(vector) ? now : 0;
	/* Raised before the object was loaded, or while the run before this one was about to begin.
	 */
	if (!raised)
		return 0;
	/* From here on it may be raised again. It counts as pending until the end of this program,
	 * so that the holder stays. */
	state->raised[inside(vector, PLACES)] = 0;
	if (wanted(vector) && now >= raised) {
		latency = now - raised;
		observe_here(&schedule, vector, latency, st);
		count_slow(vector, SCHEDULED_LATE, latency, st);
		if (latency >= options.slow_ns) {
			u64 held = longest_since(state, raised, now);

			tell(ctx, &state->holder, SCHEDULED_LATE, vector, latency, held, st);
		}
	}
	__sync_fetch_and_add(&state->pending, -1);
	return 0;
}

SEC("tp_btf/softirq_exit")
int on_exit(u64 *ctx)
{
	u64 vector = ctx[0];
	struct cpu_state *state = this_cpu();
	u64 began, latency;
	struct stats *st = stats_here();

	if (vector >= VECTORS || !state || !st)
		return 0;
	began = state->began[inside(vector, PLACES)];
	if (!began)
		return 0;
	state->began[inside(vector, PLACES)] = 0;
	latency = bpf_ktime_get_ns() - began;
	observe_here(&execution, vector, latency, st);
	count_slow(vector, RAN_LONG, latency, st);
	if (latency < options.slow_ns)
		return 0;
	/* The current task was only interrupted: it has nothing to do with it. */
	return tell(ctx, 0, RAN_LONG, vector, latency, 0, st);
}
