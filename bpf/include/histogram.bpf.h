/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Histograms in powers of two, one for each namespace and kind. */
#ifndef NETSKOOP_HISTOGRAM_BPF_H
#define NETSKOOP_HISTOGRAM_BPF_H

#include "netskoop.bpf.h"

/*
 * Slot 0 counts the values below 2, slot n those from 2^n to below 2^(n+1), the last one all above.
 * Of microseconds the last slot begins at 134 seconds.
 */
#define SLOTS 28

struct histogram {
	u64 sum;
	u64 slots[SLOTS];
};

struct histogram_key {
	u32 netns;
	u32 kind;
	u64 cookie;
};

/* What a new one begins with; too large for the stack. */
static const struct histogram no_values = {};

/* Times, how many of them were long, and how many could not be measured. */
struct latency {
	struct histogram times;
	u64 slow_10ms;
	u64 slow_100ms;
	u64 unmeasured;
	u64 skipped; /* of the unmeasured: another packet had the place */
};

#define TEN_MS 10000000ULL
#define HUNDRED_MS 100000000ULL

/* A fixed number of steps: older verifiers know no loops, and the processor likes it too. */
static __always_inline u32 log2_slot(u64 value)
{
	u32 slot = 0;

	if (value >> SLOTS)
		return SLOTS - 1;
	if (value >> 16) {
		value >>= 16;
		slot += 16;
	}
	if (value >> 8) {
		value >>= 8;
		slot += 8;
	}
	if (value >> 4) {
		value >>= 4;
		slot += 4;
	}
	if (value >> 2) {
		value >>= 2;
		slot += 2;
	}
	if (value >> 1)
		slot += 1;
	return slot;
}

/* Counts a value in a slot. */
static __always_inline void add_value(struct histogram *histogram, u32 slot, u64 value)
{
	if (slot >= SLOTS)
		return;
	__sync_fetch_and_add(&histogram->sum, value);
	__sync_fetch_and_add(&histogram->slots[slot], 1);
}

/* Counts a value in the slot of another one. `map` has a `struct histogram` for each
 * `struct histogram_key`. */
static __always_inline void observe_in(void *map, struct netns netns, u32 kind, u64 value,
				       u64 of_slot, struct stats *st)
{
	struct histogram_key key = {.netns = netns.inum, .kind = kind, .cookie = netns.cookie};
	struct histogram *histogram = counter(map, &key, &no_values, st);
	u32 slot = log2_slot(of_slot);

	if (histogram)
		add_value(histogram, slot, value);
}

/* Counts a value. */
static __always_inline void observe(void *map, struct netns netns, u32 kind, u64 value,
				    struct stats *st)
{
	observe_in(map, netns, kind, value, value, st);
}

/*
 * Counts a time. The slots are those of its microseconds, but the sum has nanoseconds: where most
 * times are shorter than a microsecond, a sum of whole ones would be next to nothing.
 */
static __always_inline void observe_time(void *map, struct netns netns, u32 kind, u64 ns,
					 struct stats *st)
{
	observe_in(map, netns, kind, ns, ns / 1000, st);
}

/* Counts a time where its histogram is at hand. The sum has nanoseconds, as above. */
static __always_inline void observe_latency(struct latency *latency, u64 ns)
{
	u32 slot = log2_slot(ns / 1000);

	if (slot >= SLOTS)
		return;
	__sync_fetch_and_add(&latency->times.sum, ns);
	__sync_fetch_and_add(&latency->times.slots[slot], 1);
	if (ns < TEN_MS)
		return;
	__sync_fetch_and_add(&latency->slow_10ms, 1);
	if (ns >= HUNDRED_MS)
		__sync_fetch_and_add(&latency->slow_100ms, 1);
}

#endif
