/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What tasks have used of something, added up where they are: by network namespace, and in the
 * node's own by tenant. Sums never fall, and nothing is counted twice: for each task it is kept how
 * much of it is in the sums already, and only what has come since is added, when user space asks
 * (it walks all tasks) and when the task ends. A task that ends while it is walked is counted by
 * whoever comes first; a dead one that nobody has buried yet has nothing new.
 *
 * A program defines USES, the number of values, and `used`, which reads those of a task.
 */
#ifndef NETSKOOP_TASKS_BPF_H
#define NETSKOOP_TASKS_BPF_H

#include "netskoop.bpf.h"
#include "whose.bpf.h"

struct usage {
	u64 of[USES];
};

/* How much of a task's use has been counted. */
struct counted {
	struct bpf_spin_lock lock;
	u64 of[USES];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct counted);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct owner);
	__type(value, struct usage);
} counters SEC(".maps");

/* For their types. */
const volatile struct owner key_anchor = {};
const volatile struct usage usage_anchor = {};

static __always_inline void used(const struct task_struct *task, u64 *now);

static __always_inline void add_use(struct task_struct *task)
{
	u64 now[USES] = {}, grown[USES] = {}, any = 0;
	struct owner key = {};
	struct usage zero = {}, *usage;
	struct counted *counted;
	struct stats *st = stats_here();
	int i;

	if (!st)
		return;
	used(task, now);
#pragma unroll
	for (i = 0; i < USES; i++)
		any |= now[i];
	/* Most threads of the kernel itself never use anything. */
	if (!any || !owner_of_task(task, &key, true))
		return;
	usage = counter(&counters, &key, &zero, st);
	if (!usage)
		return;
	counted = bpf_task_storage_get(&tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!counted) {
		count(st, map_full);
		return;
	}
	bpf_spin_lock(&counted->lock);
#pragma unroll
	for (i = 0; i < USES; i++) {
		if (now[i] > counted->of[i]) {
			grown[i] = now[i] - counted->of[i];
			counted->of[i] = now[i];
		}
	}
	bpf_spin_unlock(&counted->lock);
#pragma unroll
	for (i = 0; i < USES; i++) {
		if (grown[i])
			__sync_fetch_and_add(&usage->of[i], grown[i]);
	}
}

/* The last moment at which a task still has its namespaces. */
SEC("tp_btf/sched_process_exit")
int on_exit(u64 *ctx)
{
	add_use((void *)ctx[0]);
	return 0;
}

/* Runs for every task when user space reads. */
SEC("iter/task")
int on_walk(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;

	if (task)
		add_use(task);
	return 0;
}

#endif
