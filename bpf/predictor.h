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

/* Is the exit in the pool? Words in host order from the most significant one. */
static __always_inline bool in_pool(const struct pool *pool, const struct flow *flow)
{
	bool above = false, below = false; /* strictly, decided by a more significant word */

	if (pool->family != flow->family + 1)
		return false;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		u32 word = bpf_ntohl(address_word(&flow->exit, i));

		if (i && !flow->family)
			break;
		if ((!above && word < pool->first[i]) || (!below && word > pool->last[i]))
			return false;
		above |= word > pool->first[i];
		below |= word < pool->last[i];
	}
	return true;
}

static __always_inline bool destination_predicts(const struct pool *pool, const struct flow *flow)
{
	struct address destination = destination_of(flow);
	u32 last = address_word(&destination, flow->family ? 3 : 0);
	u32 hash = jhash_address(&flow->source, last ^ zone_of(flow));
	bool full = false;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		u32 base = full ? 0 : pool->first[i];
		u32 width = full ? ~0U : pool->last[i] - pool->first[i] + 1;
		u32 word = base + (u32)(((u64)hash * width) >> 32);

		if (i && !flow->family)
			break;
		if (word != bpf_ntohl(address_word(&flow->exit, i)))
			return false;
		full |= word != pool->last[i];
		hash ^= address_word(&destination, i);
	}
	return true;
}

/* One vote, one trial: by the pool that holds the exit. */
static __always_inline void try_destination(struct slot *slot, const struct flow *flow)
{
	for (u32 i = 0; i < EP_POOLS; i++) {
		u32 index = i;
		struct pool *pool;

		pool = pools.lookup(&index);
		if (!pool || !pool->family)
			return;
		if (!in_pool(pool, flow))
			continue;
		add32(&slot->destination_tried, 1);
		add64(&slot->destination_expected, pool->chance);
		if (destination_predicts(pool, flow))
			add32(&slot->destination_hit, 1);
		return;
	}
}
