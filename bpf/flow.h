/* SPDX-License-Identifier: GPL-2.0-only */
/* A conntrack entry as the flow that the rest of the program speaks of. */
#pragma once

/* The part of nf_conn that is read, as words: in the kernel's memory itself, or a copy. */
struct entry {
	u64 words[EP_CT_SPAN / 8];
};

static __always_inline u64 entry_word(const struct entry *entry, const u32 offset)
{
	const u32 at = (offset & ~7) - EP_CT_FIRST;

#ifdef EP_RDONLY_CAST
	return direct_read64(entry, at);
#else
	return entry->words[at / 8];
#endif
}

/* A field that lies within one word. */
#define ENTRY(entry, type, offset) ((type)(entry_word(entry, offset) >> 8 * ((offset) & 7)))
#define ORIGINAL EP_CT_TUPLEHASH
#define REPLY (EP_CT_TUPLEHASH + EP_TUPLEHASH_SIZE)

struct flow {
	const struct entry *entry; /* for what is needed of few flows */
	u32 family;                /* 0: IPv4, 1: IPv6 */
	u32 ifindex;
	struct address source; /* the tunnel address */
	struct address exit;   /* the source that the internet sees */
};

/* As the kernel keeps it: IPv4 in the first word, then zeros. */
static __always_inline struct address entry_address(const struct entry *entry, u32 family, const u32 offset)
{
	struct address address = {{ENTRY(entry, u32, offset), 0}};

	if (family) {
		address.half[0] |= (u64)ENTRY(entry, u32, offset + 4) << 32;
		address.half[1] = ENTRY(entry, u32, offset + 8) | (u64)ENTRY(entry, u32, offset + 12) << 32;
	}
	return address;
}

/* After destination NAT. */
static __always_inline struct address destination_of(const struct flow *flow)
{
	return entry_address(flow->entry, flow->family, REPLY + EP_TUPLE_SRC);
}

/* Protocol << 16 | source port (or ICMP identifier) as on the wire. */
static __always_inline u32 port_of(const struct flow *flow)
{
	return (u32)ENTRY(flow->entry, u8, ORIGINAL + EP_TUPLE_PROTONUM) << 16 |
	       ENTRY(flow->entry, u16, ORIGINAL + EP_TUPLE_SRC_PORT);
}

static __always_inline u32 zone_of(const struct flow *flow)
{
#ifdef EP_CT_ZONE
	return ENTRY(flow->entry, u16, EP_CT_ZONE);
#else
	return 0;
#endif
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

/* False for a protocol family that is not ours. */
static __always_inline bool flow_of(struct flow *flow, const struct entry *entry, u32 l3, u32 ifindex)
{
	if (l3 != EP_AF_INET && l3 != EP_AF_INET6)
		return false;
	flow->entry = entry;
	flow->family = l3 == EP_AF_INET6;
	flow->ifindex = ifindex;
	flow->source = entry_address(entry, flow->family, ORIGINAL + EP_TUPLE_SRC);
	flow->exit = entry_address(entry, flow->family, REPLY + EP_TUPLE_DST);
	return true;
}
