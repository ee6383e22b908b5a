/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contrasts that need the destination or the source port: the two bounded memories, and what a flow says
 * given what they hold (docs/leak-modes.md, section 3).
 *
 *                      port new                          port known
 *   destination new    a vote                            a trial of "same port"
 *   destination known  a trial of "same destination"     nothing: it may inherit a live mapping
 */
#pragma once

#define PANE_BITS 12
#define PANE_MASK ((1U << PANE_BITS) - 1)
#define EXIT_BITS 16
#define TAG_SHIFT (PANE_BITS + EXIT_BITS)

enum memory {
	NEW,
	KNOWN_SAME, /* known, and the exit is the one of last time */
	KNOWN_OTHER,
	FULL,
};

/* 16 bits that differ when exits differ, but for one pair of exits in 65,536. */
static __always_inline u32 exit_hash16(const struct flow *flow)
{
	u64 folded = flow->exit.half[0] ^ flow->exit.half[1];

	return ((u32)folded ^ (u32)(folded >> 32)) * 0x9e3779b1U >> 16;
}

static __always_inline bool way_is_free(u64 way, u32 pane)
{
	return !way || ((pane - (u32)(way >> EXIT_BITS)) & PANE_MASK) >= EP_PANES;
}

/* Looks the key up and puts the exit in its place; a key that is not there takes a free way, or finds none. */
static __always_inline enum memory lookup_or_insert(struct bucket *bucket, u64 tag, u32 mark, u32 pane)
{
	u64 now = tag << TAG_SHIFT | (u64)(pane & PANE_MASK) << EXIT_BITS | mark;
	int free = -1;

#pragma unroll
	for (int i = EP_WAYS - 1; i >= 0; i--) {
		u64 way = bucket->way[i];

		if (way_is_free(way, pane)) {
			free = i;
		} else if (way >> TAG_SHIFT == now >> TAG_SHIFT) {
			bucket->way[i] = now;
			return (u16)way == mark ? KNOWN_SAME : KNOWN_OTHER;
		}
	}
	if (free < 0)
		return FULL;
	bucket->way[free & (EP_WAYS - 1)] = now;
	return NEW;
}

static __always_inline enum memory lookup_destination(u64 owner, const struct flow *flow, u32 mark, u32 pane)
{
	struct address destination = destination_of(flow);
	struct siphash s;
	struct bucket *bucket;
	u64 hash;
	u32 index;

	siphash_start(&s);
	siphash_word(&s, owner);
	siphash_word(&s, destination.half[0]);
	if (flow->family)
		siphash_word(&s, destination.half[1]);
	hash = siphash_end(&s);
	index = (u32)hash & (EP_DESTINATION_BUCKETS - 1);
	bucket = destinations.lookup(&index);
	return bucket ? lookup_or_insert(bucket, hash >> TAG_SHIFT, mark, pane) : FULL;
}

static __always_inline enum memory lookup_port(u64 owner, const struct flow *flow, u32 mark, u32 pane)
{
	struct siphash s;
	struct bucket *bucket;
	u64 hash;
	u32 index;

	siphash_start(&s);
	siphash_word(&s, owner);
	siphash_word(&s, port_of(flow));
	hash = siphash_end(&s);
	index = (u32)hash & (EP_PORT_BUCKETS - 1);
	bucket = ports.lookup(&index);
	return bucket ? lookup_or_insert(bucket, hash >> TAG_SHIFT, mark, pane) : FULL;
}

/* True when the flow is a vote. */
static __always_inline bool measure(u32 id, struct slot *slot, const struct flow *flow, const struct control *control)
{
	u64 owner = (u64)slot->generation << 32 | id; /* what a peer of before has left in the memories is not found */
	u32 mark = exit_hash16(flow);
	enum memory destination = lookup_destination(owner, flow, mark, control->pane);
	enum memory port = lookup_port(owner, flow, mark, control->pane);

	if (destination == FULL || port == FULL) {
		count_outcome(flow->family, destination == FULL ? LOST_DESTINATIONS : LOST_PORTS);
		return false;
	}
	if (port == NEW && destination == NEW) {
		try_destination(slot, flow);
		return true;
	}
	if (port == NEW) {
		add32(&slot->same_destination_tried, 1);
		if (destination == KNOWN_SAME)
			add32(&slot->same_destination_true, 1);
	} else if (destination == NEW) {
		add32(&slot->same_port_tried, 1);
		if (port == KNOWN_SAME)
			add32(&slot->same_port_true, 1);
	}
	return false;
}
