/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Network namespaces as they come and go, without looking for them. */
#include "netskoop.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum kind { SEEN, CREATED, EXIT };

/* Only for its type, which user space takes over from here. */
const volatile struct event_head anchor = {};

const volatile u32 host_netns = 0;
/* Place of `size` among the tracepoint's arguments; newer kernels put the caller first. */
const volatile u32 size_argument = 2;

struct limit limit = {};

struct known_netns {
	u64 cookie; /* 0: not known, so it is the right one */
	u32 pending;
	u32 leader; /* whose exit is told; 0: everybody's */
};

/* For its type. */
const volatile struct known_netns known_anchor = {};

/*
 * Namespaces that user space has been told of, and whether it still has to look after an exit. A
 * burst of exits in one namespace is one record.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, struct known_netns);
} known SEC(".maps");

/*
 * Without a task it is the current one, which 5.10 has no typed pointer to: 3ca1032ab7ab ("bpf:
 * Implement get_current_task_btf and RET_PTR_TO_BTF_ID", 5.11). One bucket for all namespaces:
 * there would be no end of them.
 */
static __always_inline bool submit(void *ctx, u16 kind, struct netns netns,
				   const struct task_struct *task, struct stats *st)
{
	struct netns all = {};
	struct event_head *e = event_begin(sizeof(*e), &limit, all, kind, false, st);

	if (!e)
		return false;
	e->netns = netns.inum;
	e->cookie = netns.cookie;
	/* The process may be gone before user space can ask for its name. */
	if (task) {
		e->pid = task->tgid;
		__builtin_memcpy(e->comm, task->comm, sizeof(e->comm));
	} else {
		e->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(e->comm, sizeof(e->comm));
	}
	event_submit(e, st);
	return true;
}

static __always_inline struct netns netns_of_task(const struct task_struct *task)
{
	struct nsproxy *proxy = task->nsproxy;

	return netns_of(proxy ? proxy->net_ns : 0);
}

/* A namespace is announced once; if the record found no room, the next process tries again. */
static __always_inline int seen(void *ctx, const struct task_struct *task)
{
	struct netns ns = netns_of_task(task);
	struct known_netns *old, new = {.cookie = ns.cookie};
	struct stats *st;

	if (!ns.inum || ns.inum == host_netns)
		return 0;
	old = bpf_map_lookup_elem(&known, &ns.inum);
	if (old && (!old->cookie || !ns.cookie || old->cookie == ns.cookie))
		return 0;
	st = stats_here();
	if (!st)
		return 0;
	if (!submit(ctx, SEEN, ns, task, st))
		return 0;
	if (bpf_map_update_elem(&known, &ns.inum, &new, BPF_ANY) == -7 /* E2BIG */)
		count(st, map_full);
	return 0;
}

SEC("tp_btf/task_newtask")
int on_newtask(u64 *ctx)
{
	return seen(ctx, (void *)ctx[0]);
}

SEC("tp_btf/sched_process_exec")
int on_exec(u64 *ctx)
{
	return seen(ctx, (void *)ctx[0]);
}

SEC("tp_btf/sched_process_exit")
int on_exit(u64 *ctx)
{
	const struct task_struct *task = (void *)ctx[0];
	struct netns ns = netns_of_task(task);
	struct known_netns *old;
	struct stats *st;

	if (!ns.inum || ns.inum == host_netns)
		return 0;
	old = bpf_map_lookup_elem(&known, &ns.inum);
	if (!old || old->pending)
		return 0;
	/* Most that end in a namespace are not the process through which user space reads it. */
	if (old->leader && old->leader != (u32)task->pid)
		return 0;
	st = stats_here();
	if (!st)
		return 0;
	old->pending = 1;
	if (!submit(ctx, EXIT, ns, task, st))
		old->pending = 0;
	return 0;
}

/*
 * A process that unshares and neither forks nor execs is seen by neither hook above. But every new
 * namespace gets counters of its own, and those of this size belong to nothing else of note. The
 * namespace is not finished yet, so user space looks a little later.
 */
SEC("tp_btf/percpu_alloc_percpu")
int on_percpu_alloc(u64 *ctx)
{
	u64 old = ctx[2], new = ctx[3], size = size_argument == 2 ? old : new;
	struct netns none = {};
	struct stats *st;

	if (size != bpf_core_type_size(struct linux_mib))
		return 0;
	st = stats_here();
	if (st)
		submit(ctx, CREATED, none, 0, st);
	return 0;
}
