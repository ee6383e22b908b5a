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
	const void *where;         /* likewise: what the hook was given, for output_interface() */
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

/* Source ports as on the wire: before and after source NAT. */
static __always_inline u16 source_port(const struct flow *flow)
{
	return ENTRY(flow->entry, u16, ORIGINAL + EP_TUPLE_SRC_PORT);
}

static __always_inline u16 translated_port(const struct flow *flow)
{
	return ENTRY(flow->entry, u16, REPLY + EP_TUPLE_DST_PORT);
}

static __always_inline u8 protocol_of(const struct flow *flow)
{
	return ENTRY(flow->entry, u8, ORIGINAL + EP_TUPLE_PROTONUM);
}

static __always_inline bool has_ports(const struct flow *flow)
{
	u8 protocol = protocol_of(flow);

	return protocol == EP_TCP || protocol == EP_UDP;
}

/* By the destination port that the peer chose. */
static __always_inline enum flow_class class_of(const struct flow *flow)
{
	u16 port = ENTRY(flow->entry, u16, ORIGINAL + EP_TUPLE_DST_PORT);
	u8 protocol = protocol_of(flow);

	if (protocol != EP_TCP && protocol != EP_UDP)
		return OTHER;
	if (port == bpf_htons(53) || port == bpf_htons(853))
		return DNS;
	if (protocol == EP_TCP)
		return TCP;
	return port == bpf_htons(443) ? QUIC : OTHER;
}

static __always_inline u32 zone_of(const struct flow *flow)
{
#ifdef EP_CT_ZONE
	return ENTRY(flow->entry, u16, EP_CT_ZONE);
#else
	return 0;
#endif
}

/* As everybody writes it: IPv4 as ::ffff:a.b.c.d. */
static __always_inline struct address exit_name(const struct flow *flow)
{
	struct address name = flow->exit;

	if (!flow->family) {
		name.half[1] = name.half[0] << 32 | bpf_htonl(0xffff);
		name.half[0] = 0;
	}
	return name;
}

/* Whether the internet can route to an address (RFC 1918, 6598, 3927, 4193, 4291). */
static __always_inline bool is_global(u32 family, const struct address *address)
{
	u32 word = bpf_ntohl((u32)address->half[0]);

	if (family)
		return (word >> 29) == 1; /* 2000::/3 */
	return word >> 24 != 0 && word >> 24 != 10 && word >> 24 != 127 && word >> 20 != 0xac1 && word >> 16 != 0xc0a8 &&
	       word >> 16 != 0xa9fe && word >> 22 != 0x191 && word >> 29 != 7;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

/* False for a protocol family that is not ours. */
static __always_inline bool flow_of(struct flow *flow, const struct entry *entry, const void *where, u32 l3, u32 ifindex)
{
	if (l3 != EP_AF_INET && l3 != EP_AF_INET6)
		return false;
	flow->entry = entry;
	flow->where = where;
	flow->family = l3 == EP_AF_INET6;
	flow->ifindex = ifindex;
	flow->source = entry_address(entry, flow->family, ORIGINAL + EP_TUPLE_SRC);
	flow->exit = entry_address(entry, flow->family, REPLY + EP_TUPLE_DST);
	return true;
}
