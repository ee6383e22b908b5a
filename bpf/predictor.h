/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The exit that the kernel's own hash gives to (source, destination), computed here because no destination
 * may leave the kernel. From find_best_ips_proto() in net/netfilter/nf_nat_core.c, without NF_NAT_RANGE_PERSISTENT.
 */
#pragma once

#define ROTATE32(x, n) ((x) << (n) | (x) >> (32 - (n)))

/* jhash2() over four words, from include/linux/jhash.h. */
static __always_inline u32 jhash_address(const struct address *key, u32 initial)
{
	u32 a, b, c;

	a = b = c = 0xdeadbeef + (4 << 2) + initial;
	a += address_word(key, 0);
	b += address_word(key, 1);
	c += address_word(key, 2);
	/* clang-format off */
	a -= c; a ^= ROTATE32(c, 4); c += b;
	b -= a; b ^= ROTATE32(a, 6); a += c;
	c -= b; c ^= ROTATE32(b, 8); b += a;
	a -= c; a ^= ROTATE32(c, 16); c += b;
	b -= a; b ^= ROTATE32(a, 19); a += c;
	c -= b; c ^= ROTATE32(b, 4); b += a;
	a += address_word(key, 3);
	c ^= b; c -= ROTATE32(b, 14);
	a ^= c; a -= ROTATE32(c, 11);
	b ^= a; b -= ROTATE32(a, 25);
	c ^= b; c -= ROTATE32(b, 16);
	a ^= c; a -= ROTATE32(c, 4);
	b ^= a; b -= ROTATE32(a, 14);
	c ^= b; c -= ROTATE32(b, 24);
	/* clang-format on */
	return c;
}

/*
 * From here on without branches: a loop over many ranges has few paths then, which is what the verifier counts.
 * All ones where a word is not 0, zeros where it is.
 */
static __always_inline u32 mask32(u32 word)
{
	return (u32)((s32)(word | -word) >> 31);
}

/* 1 where a < b with numbers of 64 bits: the borrow of a - b. */
static __always_inline u64 borrow(u64 a, u64 b)
{
	return ((~a & b) | (~(a ^ b) & (a - b))) >> 63;
}

/* 1 where a < b with numbers of 128 bits; the difference of their upper halves is at most 2^64 - 1. */
static __always_inline u64 is_below(u64 a_high, u64 a_low, u64 b_high, u64 b_low)
{
	u64 lower = borrow(a_low, b_low), apart = a_high ^ b_high;
	u64 equal = ~((apart | -apart) >> 63) & 1;

	return borrow(a_high, b_high) | (equal & lower);
}

/* Is the exit in the pool? Words in host order from the most significant one. */
static __always_inline bool in_pool(const struct pool *pool, const struct flow *flow)
{
	u64 high = (u64)bpf_ntohl(address_word(&flow->exit, 0)) << 32 | bpf_ntohl(address_word(&flow->exit, 1));
	u64 low = (u64)bpf_ntohl(address_word(&flow->exit, 2)) << 32 | bpf_ntohl(address_word(&flow->exit, 3));
	u64 first_high = (u64)pool->first[0] << 32 | pool->first[1], first_low = (u64)pool->first[2] << 32 | pool->first[3];
	u64 last_high = (u64)pool->last[0] << 32 | pool->last[1], last_low = (u64)pool->last[2] << 32 | pool->last[3];
	u64 out = is_below(high, low, first_high, first_low) | is_below(last_high, last_low, high, low);

	return !(out | (pool->family ^ (flow->family + 1)));
}

/* 1 where the kernel's hash gives the exit of the flow. */
static __always_inline u32 destination_predicts(const struct pool *pool, const struct flow *flow)
{
	struct address destination = destination_of(flow);
	u32 six = mask32(flow->family), last = (address_word(&destination, 3) & six) | (address_word(&destination, 0) & ~six);
	u32 hash = jhash_address(&flow->source, last ^ zone_of(flow));
	u32 full = 0, wrong = 0;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		u32 base = pool->first[i] & ~full;
		u32 width = (pool->last[i] - pool->first[i] + 1) | full;
		u32 word = base + (u32)(((u64)hash * width) >> 32);

		wrong |= (word ^ bpf_ntohl(address_word(&flow->exit, i))) & (i ? six : ~0U);
		full |= mask32(word ^ pool->last[i]);
		hash ^= address_word(&destination, i);
	}
	return ~mask32(wrong) & 1;
}

/*
 * One vote, one trial: a hit when one of the ranges that hold the exit predicts it, where two rules may choose from the
 * same addresses.
 */
static __always_inline void try_destination(u32 id, const struct flow *flow, const struct control *control)
{
	struct evidence *evidence = evidences.lookup(&id);
	u32 tried = control->nothing, hit = control->nothing, chance = control->nothing;

	for (u32 i = 0; i < EP_POOLS; i++) {
		u32 index = i;
		struct pool *pool = pools.lookup(&index);

		if (!pool || !pool->family)
			break;
		if (!in_pool(pool, flow))
			continue;
		chance += pool->chance;
		hit |= destination_predicts(pool, flow);
		if (++tried >= POOLS_TRIED)
			break;
	}
	if (!tried || !evidence)
		return;
	add32(&evidence->destination_tried, 1);
	add64(&evidence->destination_expected, chance < 1U << 24 ? chance : 1U << 24);
	if (hit)
		add32(&evidence->destination_hit, 1);
}
