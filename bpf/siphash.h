/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF") over a few 64-bit words, without the
 * length block: each use hashes words of one fixed number, and has its own memory.
 */
#pragma once

struct siphash {
	u64 v0, v1, v2, v3;
};

#define ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

static __always_inline void siphash_round(struct siphash *s)
{
	s->v0 += s->v1;
	s->v1 = ROTATE(s->v1, 13) ^ s->v0;
	s->v0 = ROTATE(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = ROTATE(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = ROTATE(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = ROTATE(s->v1, 17) ^ s->v2;
	s->v2 = ROTATE(s->v2, 32);
}

static __always_inline void siphash_start(struct siphash *s)
{
	s->v0 = 0x736f6d6570736575ULL ^ EP_SECRET_0;
	s->v1 = 0x646f72616e646f6dULL ^ EP_SECRET_1;
	s->v2 = 0x6c7967656e657261ULL ^ EP_SECRET_0;
	s->v3 = 0x7465646279746573ULL ^ EP_SECRET_1;
}

static __always_inline void siphash_word(struct siphash *s, u64 word)
{
	s->v3 ^= word;
	siphash_round(s);
	s->v0 ^= word;
}

static __always_inline u64 siphash_end(struct siphash *s)
{
	s->v2 ^= 0xff;
	siphash_round(s);
	siphash_round(s);
	siphash_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}
