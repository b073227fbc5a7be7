/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Requests to block devices: how long they took, and whose they were. */
#include "netskoop.bpf.h"
#include "histogram.bpf.h"
#include "whose.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define DEVICE_NAME 32
#define KERNEL_THREAD 0x00200000

/* Of the kernel's operations: from 32 on they are commands that programs send to drivers. */
enum { REQ_OP_READ, REQ_OP_WRITE, REQ_OP_COMMANDS = 32, REQ_OP_MASK = 0xff };

enum operation { READ, WRITE, OTHER };

struct biolatency_event {
	struct event_head head;
	u64 latency_ns;
	u32 bytes;
	u32 operation;
	u8 device[DEVICE_NAME];
};

struct biolatency_key {
	u32 netns;
	u32 tenant;
	u32 operation;
	u32 pad;
	u8 device[DEVICE_NAME];
	u64 cookie;
};

struct biolatency_options {
	struct limit limit;
	u64 slow_ns;
};

/* Who has submitted a bio, if it was a task on its own account. */
struct submitter {
	u64 time;
	u64 cgroup;
	struct owner owner;
	u32 pid;
	u8 comm[16];
	u32 pad;
};

/* Where the tasks of a cgroup are. */
struct place {
	struct owner owner;
	u64 differed; /* when not all were in one place, so that the cgroup does not tell; or 0 */
};

/* Only for their types, which user space takes over from here. */
const volatile struct biolatency_event anchor = {};
const volatile struct biolatency_key key_anchor = {};

/* Number of arguments of block_getrq. */
const volatile u8 arguments = 0;

struct biolatency_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, struct biolatency_key);
	__type(value, struct histogram);
} counters SEC(".maps");

/* By the address of the bio that a request was made for. An entry that is pushed out or left behind
 * costs an event its process. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct submitter);
} submitters SEC(".maps");

/* By the id of the cgroup in the hierarchy of block I/O. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct place);
} places SEC(".maps");

/* The cgroup that a task's I/O is put on the account of. */
static __always_inline const struct cgroup *io_cgroup_of_task(const struct task_struct *task)
{
	const struct cgroup_subsys_state *css = 0;
	const struct css_set *set;

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, io_cgrp_id))
		return 0;
	set = BPF_CORE_READ(task, cgroups);
	bpf_probe_read_kernel(&css, sizeof(css),
			      (void *)set + bpf_core_field_offset(set->subsys) +
				      bpf_core_enum_value(enum cgroup_subsys_id, io_cgrp_id) *
					      sizeof(css));
	return BPF_CORE_READ(css, cgroup);
}

/* The cgroup whose account a bio is put on: that of whoever wrote the data, where the kernel knows
 * it. */
static __always_inline const struct cgroup *io_cgroup_of_bio(const struct bio *bio)
{
	if (!bpf_core_field_exists(bio->bi_blkg))
		return 0;
	return BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup);
}

/* The root is everybody's. */
static __always_inline bool is_root(const struct cgroup *cgroup)
{
	return !cgroup || !BPF_CORE_READ(cgroup, self.parent);
}

/* So long tasks in different places are remembered of a cgroup: one may have been on its way, as
 * the runtime is that joins the container's cgroup before its namespaces. */
#define DIFFERENT_NS 300000000000ULL

/* Notes where a cgroup's tasks are. Whose tenant it is may come to be known later. */
static __always_inline void learn(const struct cgroup *cgroup, const struct owner *owner)
{
	struct place fresh = {.owner = *owner}, *known;
	u64 id = BPF_CORE_READ(cgroup, kn, id);

	known = bpf_map_lookup_elem(&places, &id);
	if (!known) {
		bpf_map_update_elem(&places, &id, &fresh, BPF_ANY);
	} else if (known->owner.netns != owner->netns || known->owner.cookie != owner->cookie ||
		   (known->owner.tenant && known->owner.tenant != owner->tenant)) {
		known->owner = *owner;
		known->differed = bpf_ktime_get_ns();
	} else {
		known->owner.tenant = owner->tenant;
	}
}

/* It is the last argument. */
static __always_inline const struct bio *bio_of_getrq(const u64 *ctx)
{
	return arguments > 1 ? typed_argument(ctx, 1) : typed_argument(ctx, 0);
}

/* A request is made for a bio, in the context of whoever submits it. It may be the kernel on behalf
 * of a task, or a task that makes room by writing what others have left: the cgroup tells. */
SEC("tp_btf/block_getrq")
int on_getrq(u64 *ctx)
{
	const struct task_struct *task = (const void *)bpf_get_current_task();
	const struct bio *bio = bio_of_getrq(ctx);
	const struct cgroup *cgroup;
	struct submitter s = {};
	u64 key = (u64)bio;

	if (!bio || BPF_CORE_READ(task, flags) & KERNEL_THREAD)
		return 0;
	cgroup = io_cgroup_of_bio(bio);
	if (cgroup && cgroup != io_cgroup_of_task(task))
		return 0;
	if (!owner_of_task(task, &s.owner, false))
		return 0;
	if (!is_root(cgroup))
		learn(cgroup, &s.owner);
	s.time = bpf_ktime_get_ns();
	s.cgroup = bpf_get_current_cgroup_id();
	s.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(s.comm, sizeof(s.comm));
	bpf_map_update_elem(&submitters, &key, &s, BPF_ANY);
	return 0;
}

/* What one who was at the same address before has left is not taken for this one's. The kernel may
 * look at the clock a little later than the program above. */
static __always_inline struct submitter *submitter_of(u64 bio, u64 began)
{
	struct submitter *found = bpf_map_lookup_elem(&submitters, &bio);

	return found && found->time + 10000000 >= began ? found : 0;
}

static __always_inline struct owner owner_of_bio(const struct bio *bio)
{
	const struct cgroup *cgroup = io_cgroup_of_bio(bio);
	struct owner owner = {};
	struct place *place;
	u64 id;

	if (is_root(cgroup)) {
		owner.netns = host_netns;
		return owner;
	}
	id = BPF_CORE_READ(cgroup, kn, id);
	place = bpf_map_lookup_elem(&places, &id);
	if (place && (!place->differed || bpf_ktime_get_ns() - place->differed > DIFFERENT_NS))
		owner = place->owner;
	return owner;
}

/* Its id, if it is one of the unified hierarchy, whose number is 0. */
static __always_inline u64 unified_cgroup_of_bio(const struct bio *bio)
{
	const struct cgroup *cgroup = io_cgroup_of_bio(bio);

	return cgroup && !BPF_CORE_READ(cgroup, root, hierarchy_id) ? BPF_CORE_READ(cgroup, kn, id)
								    : 0;
}

static __always_inline u32 operation_of(u32 op)
{
	return op == REQ_OP_READ ? READ : op == REQ_OP_WRITE ? WRITE : OTHER;
}

static __always_inline void tell(void *ctx, const struct bio *bio, const struct biolatency_key *key,
				 const struct submitter *by, u64 latency, u32 bytes,
				 struct stats *st)
{
	struct netns netns = {.inum = key->netns, .cookie = key->cookie};
	struct biolatency_event *e;

	e = event_begin(sizeof(*e), &options.limit, netns, 0, false, st);
	if (!e)
		return;
	if (by) {
		e->head.cgroup = by->cgroup;
		e->head.pid = by->pid;
		__builtin_memcpy(e->head.comm, by->comm, sizeof(e->head.comm));
	} else {
		e->head.cgroup = unified_cgroup_of_bio(bio);
	}
	e->latency_ns = latency;
	e->bytes = bytes;
	e->operation = key->operation;
	__builtin_memcpy(e->device, key->device, sizeof(e->device));
	event_submit(e, st);
}

/* The kernel itself notes when a request was made, so nothing has to be remembered for that. */
SEC("tp_btf/block_rq_complete")
int on_complete(u64 *ctx)
{
	const struct request *rq = (void *)ctx[0];
	u32 bytes = ctx[2], op = rq->cmd_flags & REQ_OP_MASK;
	const struct bio *bio = rq->bio;
	u64 began = rq->start_time_ns, address = (u64)bio, latency;
	const struct gendisk *disk = disk_of_request(rq);
	struct biolatency_key key = {};
	struct histogram *histogram;
	struct submitter *by;
	struct owner owner;
	struct stats *st = stats_here();

	/* Part of it only; or there are no statistics of the device; or it is a command. */
	if (!st || !bio || !disk || !began || bytes < rq->__data_len || op >= REQ_OP_COMMANDS)
		return 0;
	latency = bpf_ktime_get_ns() - began;
	by = submitter_of(address, began);
	owner = by ? by->owner : owner_of_bio(bio);
	key.netns = owner.netns;
	key.tenant = owner.tenant;
	key.cookie = owner.cookie;
	key.operation = operation_of(op);
	bpf_probe_read_kernel_str(key.device, sizeof(key.device), &disk->disk_name);
	histogram = counter(&counters, &key, &no_values, st);
	if (histogram)
		add_value(histogram, log2_slot(latency / 1000), latency);
	if (latency >= options.slow_ns)
		tell(ctx, bio, &key, by, latency, bytes, st);
	bpf_map_delete_elem(&submitters, &address);
	return 0;
}

/* Runs for every task when user space reads: of what is written later it is known by then whose
 * cgroup it is. */
SEC("iter/task")
int on_walk(struct bpf_iter__task *ctx)
{
	const struct task_struct *task = ctx->task;
	const struct cgroup *cgroup;
	struct owner owner = {};

	if (!task || task->flags & KERNEL_THREAD)
		return 0;
	cgroup = io_cgroup_of_task(task);
	if (!is_root(cgroup) && owner_of_task(task, &owner, true))
		learn(cgroup, &owner);
	return 0;
}
