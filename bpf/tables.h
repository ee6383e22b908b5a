/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map, and the outcomes that are counted. The Python side of these layouts is detector/kernel/tables.py.
 *
 * A slot stands for one tunnel address (one allowed-ip of one peer). Addresses are 16 bytes as on the wire;
 * an IPv4 address is ::ffff:a.b.c.d.
 */
#pragma once

struct address {
	u64 half[2];
};

static __always_inline u32 address_word(const struct address *address, u32 index)
{
	return address->half[index / 2] >> 32 * (index & 1);
}

/* Written by user space, read at each flow. */
struct control {
	u32 now;         /* ms; set at each drain, which is as fine as sessions need and costs a flow nothing */
	u32 session_gap; /* ms without a new flow that end a session */
	u32 pane;        /* number of the current pane of the window */
	u32 spare;
};
BPF_ARRAY(controls, struct control, 1);

/*
 * Tunnel address -> slot, by interface, so that two interfaces may hand out the same addresses. Nearly every
 * allowed-ip is one address: those are in lines of the cache, at a place that follows from a hash or in one of
 * the next lines. Networks are in the tries, and so is an address that finds those lines full.
 */
struct peer {
	u32 ifindex;
	u32 slot; /* + 1; 0: nobody's */
	struct address address;
};
#define PEERS_IN_LINE 2
#define PEER_PROBES 4
struct peer_line {
	struct peer peer[PEERS_IN_LINE];
	u64 spare[2];
};
struct network4 {
	u32 prefix;
	u32 ifindex;
	u32 address;
};
struct network6 {
	u32 prefix;
	u32 ifindex;
	struct address address;
};
BPF_ARRAY(peers, struct peer_line, EP_PEER_LINES);
BPF_LPM_TRIE(networks4, struct network4, u32, EP_PEERS);
BPF_LPM_TRIE(networks6, struct network6, u32, EP_PEERS);

/* Indices of the WireGuard interfaces: a flow that came in by one and has no slot is unattributed. */
BPF_HASH(tunnels, u32, u32, 256);

/*
 * Exit -> its number, from 0 on in the order in which exits are met. A way is one word, so that it is claimed by
 * one compare-and-swap: a tag that stands for the exit, its family, and its number + 1. Ways are never emptied.
 */
#define EXIT_WAYS 8
#define EXIT_PROBES 4
#define NUMBER_BITS 23
#define NUMBER_MASK ((1ULL << NUMBER_BITS) - 1)
struct exit_line {
	u64 way[EXIT_WAYS];
};
BPF_ARRAY(exit_lines, struct exit_line, EP_EXIT_LINES);
BPF_ARRAY(next_exit_id, u64, 1);

/* What a number stands for, for user space; written before the number is used. */
BPF_F_TABLE("array", u32, struct address, exits, EP_EXITS, BPF_F_MMAPABLE);

/*
 * (slot, exit) -> counts, in blocks of neighbouring exits: a flow costs above all the lines that are no longer in
 * a cache, and this way those of a slot are few. A block is claimed by a compare-and-swap of its key and never
 * moves. Flows are in blocks of one kind, votes and firsts, which are few, in blocks of the other.
 *
 * There are two tables, of which one is written: user space swaps them, then reads and clears the other.
 * Changing a map of maps waits until no program uses the old one, so nothing is counted into a table that is read.
 */
#define EXITS_IN_BLOCK 6
struct block {
	u64 key; /* VOTES_FIRSTS, slot + 1, and in the low word which six exits; 0 is free */
	u32 count[EXITS_IN_BLOCK];
};
#define VOTES_FIRSTS (1ULL << 63)
#define VOTE 1U          /* a flow with a destination and a source port new for the slot in the window */
#define FIRST (1U << 16) /* a flow that began a session */
BPF_F_TABLE("array", u32, struct block, pairs_a, EP_BLOCKS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct block, pairs_b, EP_BLOCKS, BPF_F_MMAPABLE);
BPF_ARRAY_OF_MAPS(pairs, "pairs_a", 1);

/* What is known of a slot; the trials only ever grow. One cache line. */
struct slot {
	u64 destination_expected; /* hits of the destination predictor that chance gives, in units of 2^-24 */
	u32 pane;                 /* the pane in which measuring began */
	u32 measured;             /* flows measured since, for as long as a window lasts */
	u32 last_flow;            /* ms, as control.now */
	u32 sessions;
	u32 same_destination_tried;
	u32 same_destination_true;
	u32 same_port_tried;
	u32 same_port_true;
	u32 destination_tried;
	u32 destination_hit;
	u32 generation; /* how many peers it has stood for before: part of the keys of both memories */
	u32 spare[3];
};
BPF_F_TABLE("array", u32, struct slot, slots, EP_PEERS, BPF_F_MMAPABLE);

/*
 * The two bounded memories behind the contrasts: (slot, destination) -> exit and (slot, protocol, source port)
 * -> exit. A way is one word, so it is read and written whole: 36 bits of a keyed hash, the pane, and 16 bits
 * of the exit. The key is drawn at load and known to nobody; user space never gets these maps.
 */
#define EP_WAYS 4
struct bucket {
	u64 way[EP_WAYS];
};
BPF_ARRAY(destinations, struct bucket, EP_DESTINATION_BUCKETS);
BPF_ARRAY(ports, struct bucket, EP_PORT_BUCKETS);

/* Exit pools, for the destination predictor; words in host order. */
struct pool {
	u32 first[4];
	u32 last[4];
	u32 family; /* one more than a flow's; 0 ends the list */
	u32 chance; /* 2^24 / size */
};
BPF_ARRAY(pools, struct pool, EP_POOLS);

/* What became of the flows. */
enum outcome {
	COUNTED,
	NOT_A_PEER,
	NOT_TRANSLATED,
	UNATTRIBUTED,      /* came in by a WireGuard interface, belongs to no slot */
	UNREADABLE,        /* its conntrack entry could not be read */
	LOST_PAIRS,        /* not counted: the table of pairs is full */
	LOST_DESTINATIONS, /* counted, not measured: no room in the memory of destinations */
	LOST_PORTS,        /* counted, not measured: no room in the memory of ports */
	LOST_EXITS,        /* not counted: the table of exits is full */
	OUTCOMES,
};
#define FAMILIES 2
BPF_PERCPU_ARRAY(outcomes, u64, (OUTCOMES * FAMILIES));

static __always_inline void count_outcome(u32 family, enum outcome outcome)
{
	u32 index = outcome * FAMILIES + family;
	u64 *counter = outcomes.lookup(&index);

	if (counter)
		*counter += 1;
}

/* Two processors may add to the same slot or pair at once. */
static __always_inline void add32(u32 *counter, u32 n)
{
	__sync_fetch_and_add(counter, n);
}

static __always_inline void add64(u64 *counter, u64 n)
{
	__sync_fetch_and_add(counter, n);
}

/* Where in a table to look first. */
static __always_inline u32 mix(u64 key)
{
	return (key ^ key >> 32) * 0x9e3779b97f4a7c15ULL >> 32;
}
