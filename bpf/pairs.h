/* SPDX-License-Identifier: GPL-2.0-only */
/* Where the counts of a slot and an exit are. */
#pragma once

/* The first blocks of a slot lie together, of either kind; the others are scattered over the table. */
#define NEAR_BLOCKS 16
#define BLOCK_PROBES 16

static __always_inline struct block *find_block(void *table, u64 key)
{
	u32 group = key, slot = key >> 32, mixed = mix(key);
	u32 place = group < NEAR_BLOCKS ? (slot * 2 + !!(key & VOTES_FIRSTS)) * NEAR_BLOCKS + group : mixed;

#pragma nounroll
	for (u32 probe = 0; probe < BLOCK_PROBES; probe++) {
		u32 index = place & (EP_BLOCKS - 1);
		struct block *block = map_lookup(table, &index);
		u64 owner;

		if (!block)
			return 0;
		owner = block->key;
		if (unlikely(!owner))
			owner = __sync_val_compare_and_swap(&block->key, 0, key);
		if (likely(!owner || owner == key))
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

static __always_inline enum outcome add_pair(u32 id, const struct flow *flow, u32 votes_firsts)
{
	u32 zero = 0, number = exit_id(flow) - 1;
	u32 group = (u64)number * 0xaaaaaaab >> 34; /* number / EXITS_IN_BLOCK, without a division */
	u64 key = (u64)(id + 1) << 32 | group, place = number - group * EXITS_IN_BLOCK;
	struct block *flows, *rest;
	void *table = pairs.lookup(&zero);

	if (number == ~0U)
		return LOST_EXITS;
	if (!table)
		return LOST_PAIRS;
	flows = find_block(table, key);
	if (!flows)
		return LOST_PAIRS;
	if (unlikely(votes_firsts)) {
		rest = find_block(table, key | VOTES_FIRSTS);
		if (!rest)
			return LOST_PAIRS;
		add_count(rest, place, votes_firsts);
	}
	add_count(flows, place, 1);
	return COUNTED;
}
