/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose a task is: its network namespace, and in the node's own a tenant, by its cgroup. */
#ifndef NETSKOOP_WHOSE_BPF_H
#define NETSKOOP_WHOSE_BPF_H

#include "netskoop.bpf.h"

/* From a process's cgroup up to its container's: further below nobody nests. */
#define LEVELS 8

/* Keys of counters begin with it, or end with its cookie. */
struct owner {
	u32 netns;
	u32 tenant; /* of the node's own namespace; 0 everywhere else */
	u64 cookie;
};

/*
 * Cgroups of the tenants of the node's own namespace, by their ids: user space says whose they are,
 * of as many as there is room for here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, u32);
} tenants SEC(".maps");

const volatile u32 host_netns = 0;
/* The daemon, whose threads visit the namespaces of others: what they use is the host's. */
const volatile u32 daemon = 0;

static __always_inline u32 tenant_of(const struct task_struct *task, bool typed)
{
	struct cgroup *cgroup =
		typed ? task->cgroups->dfl_cgrp : BPF_CORE_READ(task, cgroups, dfl_cgrp);
	struct cgroup_subsys_state *parent;
	int level;

#pragma unroll
	for (level = 0; level < LEVELS; level++) {
		u64 id = typed ? cgroup->kn->id : BPF_CORE_READ(cgroup, kn, id);
		u32 *tenant = bpf_map_lookup_elem(&tenants, &id);

		if (tenant)
			return *tenant;
		parent = load(typed, cgroup, self.parent);
		if (!parent)
			return 0;
		cgroup = load(typed, parent, cgroup);
	}
	return 0;
}

/* Where a task is. One that is being moved, or is all but gone, is nowhere just now. */
static __always_inline bool owner_of_task(const struct task_struct *task, struct owner *owner,
					  bool typed)
{
	struct nsproxy *proxy = load(typed, task, nsproxy);
	struct netns ns;

	if ((u32)load(typed, task, tgid) == daemon) {
		owner->netns = host_netns;
		return true;
	}
	if (!proxy)
		return false;
	ns = netns_read(load(typed, proxy, net_ns), typed);
	/* Another task's proxy may be freed while it is read. */
	asm volatile("" ::: "memory");
	if (load(typed, task, nsproxy) != proxy || !ns.inum)
		return false;
	owner->netns = ns.inum;
	owner->cookie = ns.cookie;
	if (ns.inum == host_netns)
		owner->tenant = tenant_of(task, typed);
	return true;
}

#endif
