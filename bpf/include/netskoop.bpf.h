/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What all programs share: the head of an event record, the shared ring, the rate limit in front of
 * it, and the statistics that account for every event that did not make it.
 */
#ifndef NETSKOOP_BPF_H
#define NETSKOOP_BPF_H

#include "vmlinux.h"
#include "core_fixes.bpf.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

/* As deep as a packet's way from send() through the loopback device to where it ends, and half as
 * much again. */
#define STACK_FRAMES 64

/* A record of the ring starts with this; the stack, if there is one, is at its end. */
struct event_head {
	u64 time;	/* CLOCK_MONOTONIC */
	u64 cookie;	/* of the namespace; 0 if the kernel gives it none */
	u64 cgroup;	/* id of the socket's, in the unified hierarchy; 0 if there is none */
	u32 netns;	/* inode; 0 if the context does not tell */
	u16 probe;	/* number that the loader gave this object */
	u16 kind;	/* which of the object's events */
	u32 suppressed; /* events of this kind and namespace withheld since the last one */
	u32 pid;	/* thread group; 0 where the context does not tell who it was */
	u8 comm[16];
	s32 stack_bytes;
	u32 pad;
};

/*
 * A namespace. The inode of one that is gone is given to the next at once; the cookie is given
 * once.
 */
struct netns {
	u32 inum;
	u64 cookie;
};

/* An argument of a tracepoint, with its type. Written out, or the compiler might read it through an
 * address that was moved. */
#define typed_argument(ctx, argument)                                                              \
	({                                                                                         \
		const void *__pointer;                                                             \
		asm volatile("%0 = *(u64 *)(%1 + %2)"                                              \
			     : "=r"(__pointer)                                                     \
			     : "r"(ctx), "i"((argument)*8));                                       \
		__pointer;                                                                         \
	})

static __always_inline struct netns netns_read(const struct net *net, bool typed)
{
	struct netns ns = {};

	if (!net)
		return ns;
	ns.inum = load(typed, net, ns.inum);
	ns.cookie = cookie_of_net(net, typed);
	return ns;
}

static __always_inline struct netns netns_of(const struct net *net)
{
	return netns_read(net, true);
}

/* How the loader sets the rate: one event per interval, and a burst worth of tolerance. */
struct limit {
	u64 interval_ns; /* 0: no limit */
	u64 tolerance_ns;
};

struct bucket_key {
	u32 netns;
	u16 kind;
	u16 probe;
};

struct bucket {
	u64 next; /* when the next event is due if they come at exactly the rate */
	u64 suppressed;
	u64 reported;
};

/*
 * seen = submitted + ring_full + suppressed, once nothing is in flight. What filters leave out is
 * not seen.
 */
struct stats {
	u64 seen;
	u64 submitted;
	u64 ring_full;
	u64 suppressed;
	u64 map_full;
	u64 filtered;
};

/* The loader makes the ring and the buckets first, and gives them to every object. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct bucket_key);
	__type(value, struct bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct stats);
} stats SEC(".maps");

/* Number that the loader gave this object. */
const volatile u16 probe = 0;

/*
 * Whether this is an object of one program, and the kernel has 05b24ff9b2cf ("bpf: Prevent bpf
 * program recursion for raw tracepoint probes", 6.1): then a run has its CPU's entries of maps to
 * itself.
 */
const volatile bool alone = false;

/* The length of a tick of the kernel's clock in nanoseconds; 0 where nobody asks for it. */
const volatile u64 tick_ns = 0;

/* Never NULL for index 0 of an array, but the verifier wants to see it checked. */
static __always_inline struct stats *stats_here(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&stats, &zero);
}

/*
 * Even a per-CPU counter needs an atomic add: two programs of one object may nest on one CPU. The
 * result is never used, which keeps it the plain add that kernels before 5.12 know. An object of
 * one program does without, where the kernel does not let a program interrupt itself.
 */
#define count(stats, what)                                                                         \
	do {                                                                                       \
		if (alone)                                                                         \
			(stats)->what++;                                                           \
		else                                                                               \
			__sync_fetch_and_add(&(stats)->what, 1);                                   \
	} while (0)

/*
 * An index into an array whose size is a power of two, kept inside in the very register that is
 * used. A comparison before does not do for verifiers like that of 6.1: the compiler may take the
 * value from the stack once more, of which they do not know that it was compared.
 */
#define inside(index, size)                                                                        \
	({                                                                                         \
		u64 __index = (index);                                                             \
		asm volatile("" : "+r"(__index));                                                  \
		__index % (size);                                                                  \
	})

/*
 * What one CPU remembers of the last bucket that it found empty: for how many ticks of the kernel's
 * clock nothing comes into it. Meanwhile a storm is withheld without asking for the bucket and the
 * time, which is half of what a withheld event costs. What was withheld so is in none of the
 * buckets until this CPU asks for one again. Only for a program that is alone.
 */
struct hold {
	struct bucket_key key;
	u64 since; /* ticks */
	u64 ticks;
	u64 withheld;
};

/* Whether an event is withheld without asking its bucket. */
static __always_inline bool withheld(struct hold *hold, u32 netns, u32 kind, struct stats *st)
{
	if (!alone || hold->key.netns != netns || hold->key.kind != kind ||
	    bpf_jiffies64() - hold->since >= hold->ticks)
		return false;
	hold->withheld++;
	count(st, seen);
	count(st, suppressed);
	return true;
}

/* The bucket is told what was withheld in its name; if it is gone, so is its namespace. */
static __always_inline void settle(struct hold *hold, const struct bucket_key *key,
				   struct bucket *bucket)
{
	u64 missing = hold->withheld;

	if (!missing)
		return;
	if (hold->key.netns != key->netns || hold->key.kind != key->kind)
		bucket = bpf_map_lookup_elem(&buckets, &hold->key);
	if (bucket)
		__sync_fetch_and_add(&bucket->suppressed, missing);
	hold->withheld = 0;
}

/*
 * Decides whether an event may take room in the ring. It runs before anything expensive, since user
 * space cannot keep up with a storm. Two CPUs may race for a bucket: then one event too many
 * passes, which does no harm. `hold` is NULL where nothing is remembered.
 */
static __always_inline bool allowed(const struct limit *limit, u32 netns, u32 kind, u64 now,
				    struct stats *st, u32 *suppressed, struct hold *hold)
{
	struct bucket_key key = {.netns = netns, .kind = kind, .probe = probe};
	struct bucket *bucket;
	u64 next, total;

	if (!limit->interval_ns)
		return true;
	bucket = bpf_map_lookup_elem(&buckets, &key);
	if (!bucket) {
		struct bucket fresh = {.next = now};

		bpf_map_update_elem(&buckets, &key, &fresh, BPF_NOEXIST);
		bucket = bpf_map_lookup_elem(&buckets, &key);
		if (!bucket) {
			/* Without a bucket nothing bounds this namespace, so it stays silent. */
			count(st, map_full);
			count(st, suppressed);
			return false;
		}
	}
	if (hold)
		settle(hold, &key, bucket);
	next = bucket->next > now ? bucket->next : now;
	if (next - now > limit->tolerance_ns) {
		__sync_fetch_and_add(&bucket->suppressed, 1);
		count(st, suppressed);
		if (hold && alone && tick_ns) {
			hold->key = key;
			hold->since = bpf_jiffies64();
			/* The tick that has begun already is none of them. */
			hold->ticks = (next - now - limit->tolerance_ns) / tick_ns;
		}
		return false;
	}
	bucket->next = next + limit->interval_ns;
	total = bucket->suppressed;
	*suppressed = total - bucket->reported;
	bucket->reported = total;
	return true;
}

/*
 * Reserves a record of `size` bytes, or of `size` and a stack. The empty asm keeps the compiler
 * from making one call with a variable size of the two: the verifier wants a constant.
 *
 * Each of the two calls is followed by the one question whether there is a record. Verifiers that
 * do not take a checked record for one (reg_not_null() without PTR_TO_MEM, as in 5.10 and 6.1)
 * would walk both ways again at a second question, and find a record that is never submitted.
 */
#define reserve(size, with_stack, st)                                                              \
	({                                                                                         \
		struct event_head *__head;                                                         \
		if (with_stack) {                                                                  \
			__head = bpf_ringbuf_reserve(&events, (size) + STACK_FRAMES * sizeof(u64), \
						     0);                                           \
			if (__head) {                                                              \
				__head->stack_bytes =                                              \
					bpf_get_stack(ctx, (void *)__head + (size),                \
						      STACK_FRAMES * sizeof(u64), 0);              \
				asm volatile("" ::: "memory");                                     \
			} else {                                                                   \
				count(st, ring_full);                                              \
			}                                                                          \
		} else {                                                                           \
			__head = bpf_ringbuf_reserve(&events, size, 0);                            \
			if (__head) {                                                              \
				__head->stack_bytes = 0;                                           \
				asm volatile("" ::: "memory");                                     \
			} else {                                                                   \
				count(st, ring_full);                                              \
			}                                                                          \
		}                                                                                  \
		__head;                                                                            \
	})

/*
 * The record of an event that is allowed, with its head filled in. NULL, and counted, if the ring
 * is full.
 */
#define event_record(size, netns_, kind_, with_stack, st, now, suppressed_)                        \
	({                                                                                         \
		struct event_head *__r = reserve(size, with_stack, st);                            \
		if (__r) {                                                                         \
			__r->time = now;                                                           \
			__r->netns = (netns_).inum;                                                \
			__r->cookie = (netns_).cookie;                                             \
			__r->cgroup = 0;                                                           \
			__r->probe = probe;                                                        \
			__r->kind = kind_;                                                         \
			__r->suppressed = suppressed_;                                             \
			__r->pid = 0;                                                              \
			__builtin_memset(__r->comm, 0, sizeof(__r->comm));                         \
			__r->pad = 0;                                                              \
		}                                                                                  \
		(void *)__r;                                                                       \
	})

/*
 * Everything between the filters and the record's own fields: counts, limits, reserves, fills the
 * head. NULL if the event is withheld or lost, which is then accounted for.
 */
#define event_begin(size, limit, netns_, kind_, with_stack, st)                                    \
	({                                                                                         \
		void *__e = 0;                                                                     \
		u64 __now = bpf_ktime_get_ns();                                                    \
		u32 __suppressed = 0;                                                              \
		count(st, seen);                                                                   \
		if (allowed(limit, (netns_).inum, kind_, __now, st, &__suppressed, 0))             \
			__e = event_record(size, netns_, kind_, with_stack, st, __now,             \
					   __suppressed);                                          \
		__e;                                                                               \
	})

static __always_inline void event_submit(void *event, struct stats *st)
{
	bpf_ringbuf_submit(event, 0);
	count(st, submitted);
}

/* The value of `key` in a map, made if there is none. NULL if there is no room for it. */
static __always_inline void *entry(void *map, const void *key, const void *zero)
{
	void *value = bpf_map_lookup_elem(map, key);

	if (value)
		return value;
	bpf_map_update_elem(map, key, zero, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

/*
 * The same in an exact counters map. That it is full is counted: nothing is ever evicted, since the
 * total would fall.
 */
static __always_inline void *counter(void *map, const void *key, const void *zero, struct stats *st)
{
	void *value = entry(map, key, zero);

	if (!value)
		count(st, map_full);
	return value;
}

#endif
