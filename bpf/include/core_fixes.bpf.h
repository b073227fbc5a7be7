/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where kernels differ, each difference with the commit that made it. Whether a kernel has a change
 * is never told from its version, since distributions backport: a type's fields are looked up when
 * the object is loaded, and the loader says how many arguments a tracepoint has.
 */
#ifndef NETSKOOP_CORE_FIXES_BPF_H
#define NETSKOOP_CORE_FIXES_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/*
 * A field through a pointer that the verifier knows the type of (tp_btf, fentry), or does not
 * (kprobe: there it is a number). `typed` is a constant, so that only one of the two remains.
 */
#define load(typed, from, field) ((typed) ? (from)->field : BPF_CORE_READ(from, field))

/*
 * 3d368ab87cf6 ("net: initialize net->net_cookie at netns setup", 5.12): before, the cookie was
 * made on demand and was not a plain number. 0 then.
 */
static __always_inline u64 cookie_of_net(const struct net *net, bool typed)
{
	return bpf_core_field_exists(net->net_cookie) ? load(typed, net, net_cookie) : 0;
}

/*
 * 8520e224f547 ("bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed mode", 5.15): before, the
 * pointer shared its place with other data, told apart by its lowest bits.
 */
static __always_inline u64 cgroup_id_of(const struct sock *sk, bool typed)
{
	const struct sock_cgroup_data___shared *shared = (const void *)&sk->sk_cgrp_data;
	u64 val;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return typed ? sk->sk_cgrp_data.cgroup->kn->id
			     : BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	if (!bpf_core_field_exists(shared->val))
		return 0;
	val = BPF_CORE_READ(shared, val);
	/* A class for packets, or a socket made before cgroups of sockets were asked for. */
	if (val & 3)
		return 0;
	return BPF_CORE_READ((const struct cgroup *)val, kn, id);
}

/* Reasons are numbered anew with each kernel, so the loader fills in the running one's numbers. */
#define is_drop_reason(reason, name)                                                               \
	(bpf_core_enum_value_exists(enum skb_drop_reason, name) &&                                 \
	 (reason) == bpf_core_enum_value(enum skb_drop_reason, name))

/* kfree_skb: c504e5c2f964 ("net: skb: introduce kfree_skb_reason()", 5.17). */
#define kfree_skb_reason(ctx, arguments) ((arguments) > 2 ? (u32)(ctx)[2] : 0)

/* kfree_skb: c53795d48ee8 ("net: add rx_sk to trace_kfree_skb", 6.11). The number of this argument,
 * which may be NULL. */
#define RX_SK 3

/*
 * tcp_send_reset: b533fb9cf4f7 ("rstreason: make it work in trace world", 6.10). The same release
 * made it tell of resets without a socket: 19822a980e19 ("trace: tcp: fully support
 * trace_tcp_send_reset").
 */
#define tcp_send_reset_reason(ctx, arguments) ((arguments) > 2 ? (u32)(ctx)[2] : 0)

/*
 * tcp_retransmit_skb: ad892e912b84 ("tcp: trace retransmit failures in tcp_retransmit_skb", 6.17).
 * Before, only what was sent was told; since then the third argument says whether it was.
 */
#define tcp_retransmit_skb_error(ctx, arguments) ((arguments) > 2 ? (s32)(ctx)[2] : 0)

/*
 * sched_switch: fa2c3254d7cf ("sched/tracing: Don't re-read p->state when emitting sched_switch
 * event", 5.18). Before, whether a task that leaves its CPU stays in the queue tells whether it can
 * run; since 152e11f6df29 ("sched/fair: Implement delayed dequeue", 6.12) one that cannot may stay
 * there for a while, but by then there is the argument.
 */
#define sched_switch_can_run(ctx, prev, arguments)                                                 \
	((arguments) > 3 ? (ctx)[0] & 1 || !(u32)(ctx)[3] : (prev)->on_rq != 0)

/*
 * A request's disk: d152c682f03c ("block: add an explicit ->disk backpointer to the request_queue",
 * 5.15), and since f3fa33acca9f ("block: remove the ->rq_disk field in struct request", 5.17) there
 * is no other way.
 */
static __always_inline const struct gendisk *disk_of_request(const struct request *rq)
{
	const struct request___before_5_17 *old = (const void *)rq;

	if (bpf_core_field_exists(old->rq_disk))
		return old->rq_disk;
	return rq->q->disk;
}

/*
 * The types of modules: 36e68442d1af ("bpf: Load and verify kernel module BTFs", 5.11). Before, the
 * kernel does not tell where the driver of virtual network devices keeps the device: it has been
 * the third pointer since the driver has command queues.
 */
static __always_inline const struct net_device *device_of_virtnet(u64 info)
{
	const struct virtnet_info *known = (const void *)info;
	const struct net_device *dev = 0;

	if (bpf_core_field_exists(known->dev))
		return BPF_CORE_READ(known, dev);
	bpf_probe_read_kernel(&dev, sizeof(dev), (const void *)(info + 2 * sizeof(void *)));
	return dev;
}

#endif
