/* SPDX-License-Identifier: GPL-2.0-only */
/* The numbers of exits: each is given once, to the exit of the first flow that has it. */
#pragma once

/*
 * What an exit's way is compared by: the way without its number. IPv4 exits have tags of their own; two IPv6 exits
 * share one with a chance of 2^-40.
 */
static __always_inline u64 exit_tag(const struct flow *flow)
{
	u64 tag = flow->exit.half[0];

	if (flow->family)
		tag = (tag * 0x9e3779b97f4a7c15ULL ^ flow->exit.half[1] * 0xc2b2ae3d27d4eb4fULL) >> NUMBER_BITS + 1;
	return tag << (NUMBER_BITS + 1) | (u64)flow->family << NUMBER_BITS;
}

static __always_inline bool is_exit(u64 way, u64 tag)
{
	return way && (way & ~NUMBER_MASK) == tag;
}

static __always_inline struct exit_line *exit_line(u64 tag, u32 probe)
{
	u32 index = (mix(tag) + probe) & (EP_EXIT_LINES - 1);

	return exit_lines.lookup(&index);
}

#define NUMBER_TRIES 64 /* as often as other processors may be faster */

/* A number that nobody has, EP_EXITS when all are given. By compare-and-swap: BCC has no fetch-and-add. */
static __always_inline u32 next_number(void)
{
	u32 zero = 0;
	u64 *met = next_exit_id.lookup(&zero);

#pragma nounroll
	for (u32 i = 0; met && i < NUMBER_TRIES; i++) {
		u64 number = *met;

		if (number >= EP_EXITS || __sync_val_compare_and_swap(met, number, number + 1) == number)
			return number;
	}
	return EP_EXITS;
}

/* An exit that is met for the first time; the number + 1, or 0 when there is no room. */
static __always_inline u32 add_exit(const struct flow *flow, u64 tag)
{
	u32 number = next_number();
	struct address *name = exits.lookup(&number);

	if (!name)
		return 0;
	*name = flow->exit;
	if (!flow->family) {
		name->half[1] = name->half[0] << 32 | bpf_htonl(0xffff);
		name->half[0] = 0;
	}
	for (u32 probe = 0; probe < EXIT_PROBES; probe++) {
		struct exit_line *line = exit_line(tag, probe);

		if (!line)
			return 0;
#pragma nounroll
		for (u32 i = 0; i < EXIT_WAYS; i++) {
			u64 way = __sync_val_compare_and_swap(&line->way[i], 0, tag | (number + 1));

			if (!way)
				return number + 1;
			if (is_exit(way, tag)) /* another processor was faster: our number stays unused */
				return way & NUMBER_MASK;
		}
	}
	return 0;
}

/* The number + 1, 0 when there is no room for it. */
static __always_inline u32 exit_id(const struct flow *flow)
{
	u64 tag = exit_tag(flow);

	for (u32 probe = 0; probe < EXIT_PROBES; probe++) {
		struct exit_line *line = exit_line(tag, probe);

		if (!line)
			return 0;
#pragma unroll
		for (int i = 0; i < EXIT_WAYS; i++) {
			u64 way = line->way[i];

			if (likely(is_exit(way, tag)))
				return way & NUMBER_MASK;
			if (!way)
				return add_exit(flow, tag);
		}
	}
	return 0;
}
