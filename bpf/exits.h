/* SPDX-License-Identifier: GPL-2.0-only */
/* The numbers of exits: each is given once, to the exit of the first flow that has it. */
#pragma once

/*
 * What an exit's way is compared by: the way without its number. IPv4 exits have tags of their own; two IPv6 exits
 * share one with a chance of 2^-40.
 */
static __always_inline u64 exit_tag(const struct flow *flow, u64 hash)
{
	u64 tag = flow->family ? hash >> (NUMBER_BITS + 1) : flow->exit.half[0];

	return tag << (NUMBER_BITS + 1) | (u64)flow->family << NUMBER_BITS;
}

static __always_inline bool is_exit(u64 way, u64 tag)
{
	return way && (way & ~NUMBER_MASK) == tag;
}

/* Which half is used, of this family. */
static __always_inline u32 exits_part(const struct flow *flow, const struct control *control)
{
	return (control->halves & EXITS_HALF) + flow->family;
}

static __always_inline struct exit_line *exit_line(u32 part, u64 hash, u32 probe)
{
	u32 place = (place_of(hash >> 32, EP_EXIT_LINES) + probe) & (EP_EXIT_LINES - 1);
	u32 index = part * EP_EXIT_LINES + place;

	return exit_lines.lookup(&index);
}

static __always_inline void name_exit(u32 part, u32 number, const struct flow *flow)
{
	u32 index = part * NUMBERS + number;
	struct address *name = exits.lookup(&index);

	if (name)
		*name = exit_name(flow);
}

#define NUMBER_TRIES 64 /* as often as other processors may be faster */
#define CLAIM_NUMBER (1ULL << 62)
#define CLAIM_EXIT (1ULL << 63)

/* A number that nobody has, EP_EXITS when all are given. By compare-and-swap: BCC has no fetch-and-add. */
static __always_inline u32 next_number(u32 part, const struct control *control)
{
	u64 *met = exits_met.lookup(&part);

#pragma nounroll
	for (u32 i = 0; met && i < NUMBER_TRIES; i++) {
		u64 number = *met;

		if (number >= EP_EXITS)
			return EP_EXITS;
#ifdef EP_NO_SWAP
		u64 name = CLAIM_NUMBER | (u64)(control->drain & 0xffff) << 40 | (u64)part << 32 | number;
		u8 one = 1;

		if (!claims.insert(&name, &one)) {
			*met = number + 1;
			return number;
		}
#else
		if (__sync_val_compare_and_swap(met, number, number + 1) == number)
			return number;
#endif
	}
	return EP_EXITS;
}

/* Where exits are counted together. */
static __always_inline u32 bucket_of(u32 part, const struct flow *flow, u64 hash)
{
	u32 number = EP_EXITS + (hash >> 20 & (EP_EXIT_BUCKETS - 1)), index = part * NUMBERS + number;
	struct address *name = exits.lookup(&index);

	if (name && !name->half[1])
		*name = exit_name(flow);
	return number + 1;
}

/* An exit that is met for the first time; the number + 1. */
static __always_inline u32 add_exit(const struct flow *flow, struct slot *slot, const struct control *control, u64 tag, u64 hash)
{
	u32 part = exits_part(flow, control), number;

	if (slot->exits_named >= EP_EXIT_SHARE)
		return bucket_of(part, flow, hash);
	number = next_number(part, control);
	if (number >= EP_EXITS)
		return bucket_of(part, flow, hash);
	slot->exits_named++;
	name_exit(part, number, flow);
	for (u32 probe = 0; probe < EXIT_PROBES; probe++) {
		struct exit_line *line = exit_line(part, hash, probe);

		if (!line)
			return 0;
#pragma nounroll
		for (u32 i = 0; i < EXIT_WAYS; i++) {
			u64 name = CLAIM_EXIT | (u64)(control->drain & 0xffff) << 40 | (u64)part << 36 | (u64)(hash >> 44) << 6 |
			           probe * EXIT_WAYS + i;

			if (claim(&line->way[i], tag | (number + 1), name))
				return number + 1;
			if (is_exit(line->way[i], tag)) /* another processor was faster: our number stays unused */
				return line->way[i] & NUMBER_MASK;
		}
	}
	return bucket_of(part, flow, hash);
}

/* The number + 1, 0 when there is no room for it. */
static __always_inline u32 exit_number(const struct flow *flow, struct slot *slot, const struct control *control)
{
	u64 hash = address_hash(&flow->exit), tag = exit_tag(flow, hash);
	u32 part = exits_part(flow, control);

	for (u32 probe = 0; probe < EXIT_PROBES; probe++) {
		struct exit_line *line = exit_line(part, hash, probe);

		if (!line)
			return 0;
#pragma unroll
		for (int i = 0; i < EXIT_WAYS; i++) {
			u64 way = line->way[i];

			if (likely(is_exit(way, tag)))
				return way & NUMBER_MASK;
			if (!way)
				return add_exit(flow, slot, control, tag, hash);
		}
	}
	return bucket_of(part, flow, hash);
}
