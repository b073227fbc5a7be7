/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Commands to virtual network devices: their driver waits for the answer of the machine's host, and
 * the CPU with it. */
#include "netskoop.bpf.h"
#include "histogram.bpf.h"
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define DEVICE_NAME 16
#define TEN_MS 10000000ULL
#define HUNDRED_MS 100000000ULL

struct virtcmdlatency_event {
	struct event_head head;
	u64 latency_ns;
	u32 cpu;
	u8 class;
	u8 command;
	u16 pad;
	u8 device[DEVICE_NAME];
};

struct virtcmdlatency_key {
	u32 netns;
	u32 pad;
	u8 device[DEVICE_NAME];
	u64 cookie;
};

struct virtcmdlatency_value {
	struct histogram histogram;
	u64 slow;
	u64 slow_100ms;
};

struct virtcmdlatency_options {
	struct limit limit;
	u64 slow_ns;
	u8 stack;
};

/* A command that has no answer yet. */
struct command {
	u64 began;
	u64 device; /* the driver's own structure of it */
	u8 class;
	u8 command;
	u8 pad[6];
};

/* Only for their types, which user space takes over from here. */
const volatile struct virtcmdlatency_event anchor = {};
const volatile struct virtcmdlatency_key key_anchor = {};

struct virtcmdlatency_options options = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct virtcmdlatency_key);
	__type(value, struct virtcmdlatency_value);
} counters SEC(".maps");

/* By thread. Whoever sends a command waits for its answer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, u64);
	__type(value, struct command);
} commands SEC(".maps");

static const struct virtcmdlatency_value nothing = {};

static __always_inline int sends(u64 device, u8 class, u8 command)
{
	struct command sent = {.device = device, .class = class, .command = command};
	u64 thread = bpf_get_current_pid_tgid();
	struct stats *st = stats_here();

	sent.began = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&commands, &thread, &sent, BPF_ANY) && st)
		count(st, map_full);
	return 0;
}

static __always_inline int has_answer(void *ctx)
{
	u64 thread = bpf_get_current_pid_tgid(), latency;
	struct command *sent = bpf_map_lookup_elem(&commands, &thread);
	struct virtcmdlatency_key key = {};
	struct virtcmdlatency_value *value;
	struct virtcmdlatency_event *e;
	const struct net_device *dev;
	struct stats *st = stats_here();
	struct netns netns;

	if (!sent || !st)
		return 0;
	latency = bpf_ktime_get_ns() - sent->began;
	dev = device_of_virtnet(sent->device);
	netns = netns_read(BPF_CORE_READ(dev, nd_net.net), false);
	key.netns = netns.inum;
	key.cookie = netns.cookie;
	bpf_probe_read_kernel_str(key.device, sizeof(key.device), &dev->name);
	value = counter(&counters, &key, &nothing, st);
	if (value) {
		add_value(&value->histogram, log2_slot(latency / 1000), latency);
		if (latency >= TEN_MS)
			__sync_fetch_and_add(&value->slow, 1);
		if (latency >= HUNDRED_MS)
			__sync_fetch_and_add(&value->slow_100ms, 1);
	}
	if (latency < options.slow_ns)
		goto out;
	e = event_begin(sizeof(*e), &options.limit, netns, 0, options.stack, st);
	if (!e)
		goto out;
	e->head.cgroup = bpf_get_current_cgroup_id();
	e->head.pid = thread >> 32;
	bpf_get_current_comm(e->head.comm, sizeof(e->head.comm));
	e->latency_ns = latency;
	e->cpu = bpf_get_smp_processor_id();
	e->class = sent->class;
	e->command = sent->command;
	e->pad = 0;
	__builtin_memcpy(e->device, key.device, sizeof(e->device));
	event_submit(e, st);
out:
	bpf_map_delete_elem(&commands, &thread);
	return 0;
}

/* The function that all commands go through, under both of its names. */
SEC("fentry/virtnet_send_command_reply")
int fentry_reply(u64 *ctx)
{
	return sends(ctx[0], ctx[1], ctx[2]);
}

SEC("fexit/virtnet_send_command_reply")
int fexit_reply(u64 *ctx)
{
	return has_answer(ctx);
}

SEC("fentry/virtnet_send_command")
int fentry_command(u64 *ctx)
{
	return sends(ctx[0], ctx[1], ctx[2]);
}

SEC("fexit/virtnet_send_command")
int fexit_command(u64 *ctx)
{
	return has_answer(ctx);
}

SEC("kprobe/virtnet_send_command_reply")
int kprobe_reply(struct pt_regs *ctx)
{
	return sends(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}

SEC("kretprobe/virtnet_send_command_reply")
int kretprobe_reply(struct pt_regs *ctx)
{
	return has_answer(ctx);
}

SEC("kprobe/virtnet_send_command")
int kprobe_command(struct pt_regs *ctx)
{
	return sends(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}

SEC("kretprobe/virtnet_send_command")
int kretprobe_command(struct pt_regs *ctx)
{
	return has_answer(ctx);
}
