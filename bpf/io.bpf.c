/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What processes read and write. */
#define USES 6
#include "tasks.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * The task's own, not its group's: that of a group has in it what its children had used when they
 * were waited for.
 */
static __always_inline void used(const struct task_struct *task, u64 *now)
{
	now[0] = task->ioac.syscr;
	now[1] = task->ioac.syscw;
	now[2] = task->ioac.rchar;
	now[3] = task->ioac.wchar;
	if (bpf_core_field_exists(task->ioac.read_bytes)) {
		now[4] = task->ioac.read_bytes;
		now[5] = task->ioac.write_bytes;
	}
}
