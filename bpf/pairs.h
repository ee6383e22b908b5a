/* SPDX-License-Identifier: GPL-2.0-only */
/* Where the counts of a slot and an exit are. */
#pragma once

/* The first blocks of a slot lie together, flows apart from the others; the rest is scattered over the table. */
#define NEAR_BLOCKS 16
#define BLOCK_PROBES 16
#define IPV6_EXITS (1ULL << 61) /* in a block's key: its exits are numbered among those of IPv6 */

/* How many blocks a slot has claimed in this half counts from the drain that it was taken into use. */
static __always_inline bool may_claim(const struct slot *slot, const struct control *control)
{
	return slot->blocks >> 16 != (control->drain & 0xffff) || (slot->blocks & 0xffff) < EP_BLOCK_SHARE;
}

static __always_inline void has_claimed(struct slot *slot, const struct control *control)
{
	u32 begun = control->drain << 16;

	slot->blocks = (slot->blocks & 0xffff0000) == begun ? slot->blocks + 1 : begun | 1;
}

static __always_inline struct block *find_block(u64 key, struct slot *slot, const struct control *control)
{
	u32 group = key, id = (key >> 32 & 0xfffffff) - 1, mixed = keyed(key);
	u32 near = id * NEAR_BLOCKS + group + (key & (VOTES | FIRSTS) ? EP_BLOCKS / 2 : 0);
	u32 place = group < NEAR_BLOCKS ? near : mixed;
	u32 half = control->halves & PAIRS_HALF ? EP_BLOCKS_STRIDE : 0;

#pragma nounroll
	for (u32 probe = 0; probe < BLOCK_PROBES; probe++) {
		u32 index = half + (place & (EP_BLOCKS - 1));
		struct block *block = pairs.lookup(&index);
		u64 owner;

		if (!block)
			return 0;
		owner = block->key;
		if (unlikely(!owner)) {
			if (!may_claim(slot, control))
				return 0;
			if (claim(&block->key, key, (u64)control->drain << 32 | index)) {
				has_claimed(slot, control);
				return block;
			}
			owner = block->key;
		}
		if (likely(owner == key))
			return block;
		place += mixed >> 16 | 1;
	}
	return 0;
}

static __always_inline void add_count(struct block *block, u64 place, u32 n)
{
	asm volatile("" : "+r"(place)); /* so that what is checked is what is used, which the verifier wants to see */
	if (place < EXITS_IN_BLOCK)
		add32(&block->count[place], n);
}

/* Votes are packed by class; a flow that began a session is a first one. */
static __always_inline enum outcome add_pair(u32 id, struct slot *slot, const struct flow *flow, const struct control *control,
                                             u32 votes, bool first)
{
	u32 number = exit_number(flow, slot, control) - 1;
	u32 group = (u64)number * 0xaaaaaaab >> 34; /* number / EXITS_IN_BLOCK, without a division */
	u64 key = (u64)(id + 1) << 32 | group, place = number - group * EXITS_IN_BLOCK;
	struct block *flows, *votes_there = 0, *firsts = 0;

	if (unlikely(number == ~0U)) {
		add32(&slot->refused, 1);
		return LOST_EXITS;
	}
	if (flow->family)
		key |= IPV6_EXITS;
	flows = find_block(key, slot, control);
	if (unlikely(!flows))
		goto refused;
	if (unlikely(votes)) {
		votes_there = find_block(key | VOTES, slot, control);
		if (!votes_there)
			goto refused;
	}
	if (unlikely(first)) {
		firsts = find_block(key | FIRSTS, slot, control);
		if (!firsts)
			goto refused;
	}
	add_count(flows, place, 1);
	if (votes_there)
		add_count(votes_there, place, votes);
	if (firsts)
		add_count(firsts, place, 1);
	return COUNTED;
refused:
	add32(&slot->refused, 1);
	return LOST_PAIRS;
}
