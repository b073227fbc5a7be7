/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Since when packets are under way, in a table of fixed size: nothing is allocated for a packet,
 * and one that vanishes leaves nothing behind that would have to be searched for. A packet has one
 * of the few words of the place that its address tells. That is a single word, so that nobody finds
 * half of it: 24 bits tell whose it is, 40 bits when it was put there, in nanoseconds that go round
 * in 18 minutes.
 */
#ifndef NETSKOOP_UNDER_WAY_BPF_H
#define NETSKOOP_UNDER_WAY_BPF_H

#include "netskoop.bpf.h"

#define PLACES_BITS 12
#define WORDS 4
#define TIME_MASK ((1ULL << 40) - 1)

/*
 * 8.6 seconds. A packet that is younger keeps its word: whoever lets a newer one have it loses
 * those first that are slow.
 */
#define YOUNG_NS (1ULL << 33)

struct words {
	u64 of[WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << PLACES_BITS);
	__type(key, u32);
	__type(value, struct words);
} under_way SEC(".maps");

struct place {
	struct words *words; /* never NULL, but the verifier wants to see it checked */
	u64 tag;	     /* where it is in the word, never 0 */
};

/* `what` tells things apart that are under way at the same address. */
static __always_inline struct place place_of(u64 skb, u64 what)
{
	u64 hash = (skb ^ what << 32) * 0x9e3779b97f4a7c15ULL;
	u32 index = hash >> (64 - PLACES_BITS);

	return (struct place){
		.words = bpf_map_lookup_elem(&under_way, &index),
		.tag = (hash << PLACES_BITS & ~TIME_MASK) | 1ULL << 40,
	};
}

static __always_inline bool is_of(u64 word, const struct place *place)
{
	return (word & ~TIME_MASK) == place->tag;
}

/* Notes since when it is under way. False if others have the place. */
static __always_inline bool has_begun(const struct place *place, u64 since, u64 now)
{
	volatile u64 *room = 0;
	int i;

	if (!place->words)
		return false;
#pragma unroll
	for (i = 0; i < WORDS; i++) {
		volatile u64 *at = &place->words->of[i];
		u64 word = *at;

		/* One at the same address is gone. */
		if (is_of(word, place)) {
			room = at;
			break;
		}
		if (!room && (!word || ((now - word) & TIME_MASK) >= YOUNG_NS))
			room = at;
	}
	if (!room)
		return false;
	*room = place->tag | (since & TIME_MASK);
	return true;
}

static __always_inline bool begins(const struct place *place, u64 now)
{
	return has_begun(place, now, now);
}

/* What was noted, 0 if there is nothing. */
static __always_inline u64 find(const struct place *place, bool take)
{
	int i;

	if (!place->words)
		return 0;
#pragma unroll
	for (i = 0; i < WORDS; i++) {
		volatile u64 *at = &place->words->of[i];
		u64 word = *at;

		if (is_of(word, place)) {
			if (take)
				*at = 0;
			return word;
		}
	}
	return 0;
}

static __always_inline u64 take(const struct place *place)
{
	return find(place, true);
}

static __always_inline bool is_under_way(const struct place *place)
{
	return find(place, false);
}

/* Whether another stamp is there than that, which then is. Nothing is to become of what had the
 * word. */
static __always_inline bool is_new(const struct place *place, u64 stamp)
{
	u64 word = place->tag | (stamp & TIME_MASK);
	volatile u64 *at;

	if (!place->words)
		return false;
	at = &place->words->of[inside(place->tag >> 41, WORDS)];
	if (*at == word)
		return false;
	*at = word;
	return true;
}

/* How long ago that was. */
static __always_inline u64 passed(u64 word, u64 now)
{
	return (now - word) & TIME_MASK;
}

#endif
