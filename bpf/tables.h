/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map, and the outcomes that are counted. The Python side of these layouts is detector/kernel/tables.py.
 *
 * A slot stands for one tunnel address (one allowed-ip of one peer). Addresses are 16 bytes as on the wire;
 * an IPv4 address is ::ffff:a.b.c.d.
 */
#pragma once

struct address {
	u32 word[4];
};

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
 * allowed-ip is one address, and for these a hash takes half the time of a trie; networks are in the tries.
 */
struct tunnel_address {
	u32 ifindex;
	struct address address;
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
BPF_HASH(peers, struct tunnel_address, u32, EP_PEERS);
BPF_LPM_TRIE(networks4, struct network4, u32, EP_PEERS);
BPF_LPM_TRIE(networks6, struct network6, u32, EP_PEERS);

/* Indices of the WireGuard interfaces: a flow that came in by one and has no slot is unattributed. */
BPF_HASH(tunnels, u32, u32, 256);

/*
 * (slot, exit) -> counts: open addressing in an array, four pairs to a cache line and those of a slot near each
 * other, since what a flow costs is the lines that are no longer in a cache: a hash map of the kernel touches
 * three for each pair. A pair is claimed by a compare-and-swap of its key and never moves.
 *
 * There are two tables, of which one is written: user space swaps them, then reads and clears the other.
 * Changing a map of maps waits until no program uses the old one, so nothing is counted into a table that is read.
 */
struct pair {
	u64 key; /* family in the top bit, slot + 1, and the exit's tag in the low word; 0 is free */
	u32 flows;
	u32 votes_firsts; /* see VOTE and FIRST */
};
#define PAIRS_IN_LINE 4
struct pair_line {
	struct pair pair[PAIRS_IN_LINE];
};
#define VOTE 1U          /* a flow with a destination and a source port new for the slot in the window */
#define FIRST (1U << 16) /* a flow that began a session */
BPF_F_TABLE("array", u32, struct pair_line, pairs_a, EP_PAIR_LINES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct pair_line, pairs_b, EP_PAIR_LINES, BPF_F_MMAPABLE);
BPF_ARRAY_OF_MAPS(pairs, "pairs_a", 1);

/* What the tags of exits stand for, written when a pair is claimed. */
struct exit_tag {
	u32 family;
	u32 tag;
};
BPF_HASH(exits, struct exit_tag, struct address, EP_EXITS);

/* What is known of a slot; the trials only ever grow. One cache line. */
struct slot {
	u64 destination_expected; /* hits of the destination predictor that chance gives, in units of 2^-24 */
	u32 pane;      /* the pane in which measuring began */
	u32 measured;  /* flows measured since, for as long as a window lasts */
	u32 last_flow; /* ms, as control.now */
	u32 sessions;
	u32 same_destination_tried;
	u32 same_destination_true;
	u32 same_port_tried;
	u32 same_port_true;
	u32 destination_tried;
	u32 destination_hit;
	u32 spare[4];
};
BPF_ARRAY(slots, struct slot, EP_PEERS);

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
	SETTLED,           /* counted, not measured: the slot has been measured enough for this window */
	OUTCOMES,
};
#define FAMILIES 2
BPF_PERCPU_ARRAY(outcomes, u64, OUTCOMES * FAMILIES);

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
