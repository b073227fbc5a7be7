/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tasks that could run and waited for a CPU. */
#include "netskoop.bpf.h"
#include "histogram.bpf.h"
#include "whose.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * Since when a task waits: a table by the lowest 16 bits of its number, because a hash would cost a
 * multiple for each switch. A number has 22 bits at most: the upper six are kept in the slot, and
 * behind them whether the task was preempted. The rest, the time, is enough for four years.
 */
#define TABLE_BITS 16
#define TAG_SHIFT 58
#define PREEMPTED (1ULL << 57)
#define TIME_MASK (PREEMPTED - 1)

struct tasklatency_event {
	struct event_head head;
	u64 waited_ns;
	u32 cpu;
	u32 before_pid; /* who had the CPU until now; 0: nobody */
	u8 before_comm[16];
	u32 preempted;
	u32 pad;
};

struct tasklatency_options {
	struct limit limit;
	u64 slow_ns;
	u8 stack;
};

/* Only for its type, which user space takes over from here. */
const volatile struct tasklatency_event anchor = {};

/* Number of arguments of sched_switch. */
const volatile u8 arguments = 0;

struct tasklatency_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << TABLE_BITS);
	__type(key, u32);
	__type(value, u64);
} waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct histogram_key); /* the kind is the tenant */
	__type(value, struct histogram);
} counters SEC(".maps");

static __always_inline u64 *slot_of(u32 pid)
{
	u32 index = pid & ((1 << TABLE_BITS) - 1);

	return bpf_map_lookup_elem(&waiting, &index);
}

static __always_inline u64 tag_of(u32 pid)
{
	return pid >> TABLE_BITS;
}

/* A task can run from now on. One that could already has been waiting since then; and where another
 * one waits whose slot is the same, this one is not measured, which is counted. */
static __always_inline int begin(const struct task_struct *task)
{
	u32 pid = task->pid;
	u64 *slot = slot_of(pid), old;
	struct stats *st;

	if (!slot)
		return 0;
	old = *slot;
	if (!old) {
		*slot = tag_of(pid) << TAG_SHIFT | (bpf_ktime_get_ns() & TIME_MASK);
	} else if (old >> TAG_SHIFT != tag_of(pid)) {
		st = stats_here();
		if (st)
			count(st, map_full);
	}
	return 0;
}

/* A task leaves the CPU, and could go on or not. What was noted while it ran is void. */
static __always_inline void leave(u32 pid, bool can_run, u64 now)
{
	u64 *slot = slot_of(pid);

	if (slot && (!*slot || *slot >> TAG_SHIFT == tag_of(pid)))
		*slot = can_run ? tag_of(pid) << TAG_SHIFT | PREEMPTED | (now & TIME_MASK) : 0;
}

/* What was noted of a task that comes to a CPU; 0 if nothing was. */
static __always_inline u64 take(u32 pid)
{
	u64 *slot = slot_of(pid), found;

	if (!slot)
		return 0;
	found = *slot;
	if (!found || found >> TAG_SHIFT != tag_of(pid))
		return 0;
	*slot = 0;
	return found;
}

static __always_inline int tell(void *ctx, const struct task_struct *prev,
				const struct task_struct *next, struct netns netns, u64 waited,
				bool preempted, struct stats *st)
{
	struct tasklatency_event *e;

	e = event_begin(sizeof(*e), &options.limit, netns, 0, options.stack, st);
	if (!e)
		return 0;
	e->head.cgroup = next->cgroups->dfl_cgrp->kn->id;
	e->head.pid = next->tgid;
	bpf_probe_read_kernel(e->head.comm, sizeof(e->head.comm), &next->comm);
	e->waited_ns = waited;
	e->cpu = bpf_get_smp_processor_id();
	e->before_pid = prev->pid ? prev->tgid : 0;
	bpf_probe_read_kernel(e->before_comm, sizeof(e->before_comm), &prev->comm);
	e->preempted = preempted;
	e->pad = 0;
	event_submit(e, st);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int on_wakeup(u64 *ctx)
{
	return begin((void *)ctx[0]);
}

SEC("tp_btf/sched_wakeup_new")
int on_wakeup_new(u64 *ctx)
{
	return begin((void *)ctx[0]);
}

SEC("tp_btf/sched_switch")
int on_switch(u64 *ctx)
{
	const struct task_struct *prev = (void *)ctx[1], *next = (void *)ctx[2];
	u64 now = bpf_ktime_get_ns(), noted, waited;
	struct stats *st = stats_here();
	struct owner owner = {};
	struct netns netns;

	/* The idle task waits for nothing. */
	if (prev->pid)
		leave(prev->pid, sched_switch_can_run(ctx, prev, arguments), now);
	if (!next->pid || !st)
		return 0;
	noted = take(next->pid);
	if (!noted || !owner_of_task(next, &owner, true))
		return 0;
	waited = (now - noted) & TIME_MASK;
	netns = (struct netns){.inum = owner.netns, .cookie = owner.cookie};
	/* It began to wait on another CPU after this one had looked at the clock. */
	if (waited > TIME_MASK / 2)
		waited = 0;
	observe_time(&counters, netns, owner.tenant, waited, st);
	if (waited < options.slow_ns)
		return 0;
	return tell(ctx, prev, next, netns, waited, noted & PREEMPTED, st);
}
