/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Of which connections somebody wants events. It is asked only where an event would be sent, and
 * before the rate limit, so that what nobody wants takes nothing of the rate. What is counted is
 * counted before.
 */
#ifndef NETSKOOP_FILTER_BPF_H
#define NETSKOOP_FILTER_BPF_H

#include "netskoop.bpf.h"
#include "packet.bpf.h"

#define PORT_WORDS 1024
#define PROTOCOL_WORDS 4

/* Sets, with a bit for each number. */
struct event_filter {
	u64 ports[PORT_WORDS];	      /* those wanted, if only some are */
	u64 ignore_ports[PORT_WORDS]; /* those not wanted */
	u64 protocols[PROTOCOL_WORDS];
	u8 is_set; /* whether anything is left out at all */
	u8 by_port;
	u8 by_protocol;
	u8 pad[5];
};

#define has_bit(set, words, number) ((set)[inside((number) / 64, words)] >> (number) % 64 & 1)

/* A port that is not known is 0, which is in no set. */
static __always_inline bool passes(const struct event_filter *filter, const struct tuple *t)
{
	u64 sport = t->sport, dport = t->dport, protocol = t->proto;

	if (filter->by_protocol && !has_bit(filter->protocols, PROTOCOL_WORDS, protocol))
		return false;
	if (filter->by_port && !has_bit(filter->ports, PORT_WORDS, sport) &&
	    !has_bit(filter->ports, PORT_WORDS, dport))
		return false;
	return !has_bit(filter->ignore_ports, PORT_WORDS, sport) &&
	       !has_bit(filter->ignore_ports, PORT_WORDS, dport);
}

/* Whether an event of this connection is wanted. One that is not is none that was seen. */
static __always_inline bool is_wanted(const struct event_filter *filter, const struct tuple *t,
				      struct stats *st)
{
	if (!filter->is_set || passes(filter, t))
		return true;
	count(st, filtered);
	return false;
}

#endif
