/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long processes ran, and how long they waited for a CPU while they could have run. */
#define USES 2
#include "tasks.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline void used(const struct task_struct *task, u64 *now)
{
	now[0] = task->se.sum_exec_runtime;
	if (bpf_core_field_exists(task->sched_info.run_delay))
		now[1] = task->sched_info.run_delay;
}
