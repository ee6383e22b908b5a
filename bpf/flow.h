/* SPDX-License-Identifier: GPL-2.0-only */
/* A conntrack entry, read once, as the flow that the rest of the program speaks of. */
#pragma once

struct flow {
	u32 family; /* 0: IPv4, 1: IPv6 */
	u32 ifindex;
	u32 zone;
	u32 port; /* protocol << 16 | source port (or ICMP identifier) as on the wire */
	struct address source;      /* the tunnel address, as the kernel keeps it: IPv4 in word 0, then zeros */
	struct address destination; /* after destination NAT, likewise */
	struct address exit;        /* the source that the internet sees, likewise */
};

/* The part of nf_conn that is read, in one go. */
struct entry {
	u8 bytes[EP_CT_SPAN] __attribute__((aligned(8)));
};

#define ENTRY(entry, type, offset) (*(type *)((entry)->bytes + (offset) - EP_CT_FIRST))
#define ORIGINAL EP_CT_TUPLEHASH
#define REPLY (EP_CT_TUPLEHASH + EP_TUPLEHASH_SIZE)

static __always_inline void copy_address(struct address *to, const struct entry *entry, u32 offset)
{
	to->word[0] = ENTRY(entry, u32, offset);
	to->word[1] = ENTRY(entry, u32, offset + 4);
	to->word[2] = ENTRY(entry, u32, offset + 8);
	to->word[3] = ENTRY(entry, u32, offset + 12);
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

/* False for a protocol family that is not ours. */
static __always_inline bool flow_of(struct flow *flow, const struct entry *entry, u32 ifindex)
{
	u16 l3 = ENTRY(entry, u16, ORIGINAL + EP_TUPLE_L3NUM);

	if (l3 != EP_AF_INET && l3 != EP_AF_INET6)
		return false;
	flow->family = l3 == EP_AF_INET6;
	flow->ifindex = ifindex;
#ifdef EP_CT_ZONE
	flow->zone = ENTRY(entry, u16, EP_CT_ZONE);
#else
	flow->zone = 0;
#endif
	flow->port = (u32)ENTRY(entry, u8, ORIGINAL + EP_TUPLE_PROTONUM) << 16 |
		     ENTRY(entry, u16, ORIGINAL + EP_TUPLE_SRC_PORT);
	copy_address(&flow->source, entry, ORIGINAL + EP_TUPLE_SRC);
	copy_address(&flow->destination, entry, REPLY + EP_TUPLE_SRC);
	copy_address(&flow->exit, entry, REPLY + EP_TUPLE_DST);
	return true;
}
