/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Since when packets are under way, in a table of fixed size: nothing is allocated for a packet,
 * and one that vanishes leaves nothing behind that would have to be searched for. A packet has one
 * place in it, which its address tells. What is there is one word, so that nobody finds half of it:
 * 24 bits tell whose it is, 40 bits when it was put there, in nanoseconds that go round in 18
 * minutes.
 */
#ifndef NETSKOOP_UNDER_WAY_BPF_H
#define NETSKOOP_UNDER_WAY_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#define PLACES_BITS 14
#define TIME_MASK ((1ULL << 40) - 1)

/*
 * 8.6 seconds. The place of a packet that is younger is left to it: whoever lets the newer one have
 * it loses those first that are slow.
 */
#define YOUNG_NS (1ULL << 33)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << PLACES_BITS);
	__type(key, u32);
	__type(value, u64);
} under_way SEC(".maps");

struct place {
	u64 *word; /* NULL never, but the verifier wants to see it checked */
	u64 tag;   /* in the place of the word's tag, never 0 */
};

/* `what` tells things apart that are under way at the same address. */
static __always_inline struct place place_of(u64 skb, u64 what)
{
	u64 hash = (skb ^ what << 32 ^ what >> 32) * 0x9e3779b97f4a7c15ULL;
	u32 index = hash >> (64 - PLACES_BITS);

	return (struct place){
		.word = bpf_map_lookup_elem(&under_way, &index),
		.tag = (hash << PLACES_BITS & ~TIME_MASK) | 1ULL << 40,
	};
}

/* Notes that it begins. False if another one has the place. */
static __always_inline bool begins(const struct place *place, u64 now)
{
	u64 word;

	if (!place->word)
		return false;
	word = *(volatile u64 *)place->word;
	if (word && (word & ~TIME_MASK) != place->tag && ((now - word) & TIME_MASK) < YOUNG_NS)
		return false;
	*(volatile u64 *)place->word = place->tag | (now & TIME_MASK);
	return true;
}

/* Takes what was noted, 0 if there is nothing. */
static __always_inline u64 take(const struct place *place)
{
	u64 word;

	if (!place->word)
		return 0;
	word = *(volatile u64 *)place->word;
	if ((word & ~TIME_MASK) != place->tag)
		return 0;
	*(volatile u64 *)place->word = 0;
	return word;
}

/* How long ago that was. */
static __always_inline u64 passed(u64 word, u64 now)
{
	return (now - word) & TIME_MASK;
}

#endif
