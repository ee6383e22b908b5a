/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map, and the outcomes that are counted. The Python side of these layouts is detector/kernel/tables.py and
 * drain.py; a test compares the two field by field.
 *
 * A slot stands for one tunnel address (one allowed-ip of one peer). Addresses are 16 bytes as on the wire;
 * an IPv4 address is ::ffff:a.b.c.d.
 *
 * All that is counted is in arrays that user space maps, so that who counts needs no bpf() call.
 */
#pragma once

struct address {
	u64 half[2];
};

static __always_inline u32 address_word(const struct address *address, u32 index)
{
	return address->half[index / 2] >> 32 * (index & 1);
}

/*
 * What a flow is, as far as rules choose by it, and how long ago its fellow was: those of detector/base/flows.py.
 * DRAIN: since the same look of user space; PANE: in the same session and pane; PANES: in another pane of the window;
 * SESSIONS: in another session of the slot.
 */
enum flow_class { TCP, QUIC, DNS, OTHER, CLASSES };
enum lag { DRAIN, PANE, PANES, SESSIONS, LAGS };

/* Written by who counts, one word at a time, read at each flow. One line. */
struct control {
	u32 now;         /* ms; set at each drain, which is as fine as sessions need and costs a flow nothing */
	u32 session_gap; /* ms without a new flow that end a session */
	u32 pane;        /* number of the current pane of the window */
	u32 halves;      /* which half is written: bit 0 of the pairs, bit 1 of the exits */
	u32 drain;       /* number of the drain that is to come */
	u8 votes;        /* budgets of a slot, class and pane: votes, */
	u8 returns;      /* returns to a known destination, */
	u8 reuses;       /* known source ports, */
	u8 looked;       /* and flows that are looked at for them, whatever they are; all below 128 */
	u8 numbers[4];   /* 0, 1, 2, 3: see forget() */
	u32 nothing;     /* 0, which the verifier does not know */
	u32 spare[8];
};
#define PAIRS_HALF 1U
#define EXITS_HALF 2U
BPF_F_TABLE("array", u32, struct control, controls, 1, BPF_F_MMAPABLE);

/*
 * A small number again, whose value the verifier does not know then: it checks paths that differ in such a number alone
 * as one.
 */
static __always_inline u32 forget(const struct control *control, u32 number)
{
	return control->numbers[number & 3] & 3;
}

/*
 * Tunnel address -> slot, by interface, so that two interfaces may hand out the same addresses. Nearly every
 * allowed-ip is one address: those are in lines of the cache, at a place that follows from a hash or in one of
 * the next lines. Networks are in the tries, and so is an address that finds those lines full.
 *
 * Of the lines only the first peer_lines are used, a power of two that grows with the peers, so that few peers are
 * in few pages. While it grows a peer is in both its places.
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
BPF_F_TABLE("array", u32, struct peer_line, peers, EP_PEER_LINES, BPF_F_MMAPABLE);
BPF_LPM_TRIE(networks4, struct network4, u32, EP_PEERS);
BPF_LPM_TRIE(networks6, struct network6, u32, EP_PEERS);

/* Written by who knows the peers. A flow that came in by a tunnel and has no slot is unattributed. */
#define TUNNEL_LINES 64
#define TUNNELS_IN_LINE 16
struct tunnel_line {
	u32 ifindex[TUNNELS_IN_LINE]; /* those that are equal modulo TUNNEL_LINES; 0: none */
};
struct watched {
	u32 peer_lines;
	u32 spare[15];
	struct tunnel_line tunnels[TUNNEL_LINES];
};
BPF_F_TABLE("array", u32, struct watched, watched, 1, BPF_F_MMAPABLE);

/*
 * Exit -> its number, from 0 on in the order in which exits are met, for each family. A way is one word, so that it
 * is claimed by one compare-and-swap: a tag that stands for the exit, its family, and its number + 1.
 *
 * Each family has its own numbers, and a slot may name EP_EXIT_SHARE exits in a pane: what goes beyond that, or
 * beyond EP_EXITS, is counted in EP_EXIT_BUCKETS buckets by a keyed hash of the exit, which keeps all that compares
 * two flows. A bucket bears the name of an exit that fell into it.
 *
 * There are two halves, of which one is used; user space empties the other and swaps them, together with the pairs,
 * when the rules have changed or room is short.
 */
#define EXIT_WAYS 8
#define EXIT_PROBES 4
#define NUMBER_BITS 23
#define NUMBER_MASK ((1ULL << NUMBER_BITS) - 1)
#define FAMILIES 2
#define NUMBERS (EP_EXITS + EP_EXIT_BUCKETS) /* of a family; numbers of IPv6 begin here */
struct exit_line {
	u64 way[EXIT_WAYS];
};
BPF_F_TABLE("array", u32, struct exit_line, exit_lines, 2 * FAMILIES * EP_EXIT_LINES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, exits_met, 2 * FAMILIES, BPF_F_MMAPABLE); /* [half][family] */

/* What a number stands for, for user space; written before the number is used. [half][number] */
BPF_F_TABLE("array", u32, struct address, exits, 2 * FAMILIES * NUMBERS, BPF_F_MMAPABLE);

/*
 * (slot, exit) -> counts, in blocks of neighbouring exits: a flow costs above all the lines that are no longer in
 * a cache, and this way those of a slot are few. A block is claimed by a compare-and-swap of its key and never
 * moves. Flows are in blocks of one kind; votes, by class, and first flows of sessions, which are few, in blocks of
 * two others.
 *
 * There are two halves, of which one is written: user space swaps them, waits until every program that may have read
 * the old word has ended (membarrier(2), which waits for a grace period of RCU), then reads and clears the other.
 * So nothing is counted into a half that is read.
 */
#define EXITS_IN_BLOCK 6
struct block {
	u64 key; /* kind, slot + 1, and in the low word which six exits; 0 is free */
	u32 count[EXITS_IN_BLOCK];
};
#define FLOWS 0ULL
#define VOTES (1ULL << 63)  /* four packed u8, by class: budgets keep each below 256 between two drains */
#define FIRSTS (1ULL << 62) /* flows that began a session */
BPF_F_TABLE("array", u32, struct block, pairs, 2 * EP_BLOCKS_STRIDE, BPF_F_MMAPABLE);

/* State of a slot, and all that a settled flow touches of it. One line. */
struct slot {
	u32 generation;     /* how many peers it has stood for before: part of the keys of both memories */
	u32 last_flow;      /* ms, as control.now */
	u32 sessions;       /* that began; only grows */
	u32 settled;        /* pane << CLASSES, and a bit for each class of which nothing is to be found out in that pane */
	u8 looked[CLASSES]; /* what was spent of the budgets in that pane */
	u8 votes[CLASSES];
	u8 returns[CLASSES];
	u8 reuses[CLASSES];
	u32 exits_named;     /* in that pane */
	u32 blocks;          /* claimed in the half of pairs that is written: drain << 16 | number */
	u32 refused;         /* flows that a table had no room for, since this slot's share is used up or the table */
	u32 untranslated[2]; /* flows that left by no tunnel with the peer's own address: a global one, a private one */
	u32 untracked;       /* packets that did so without a conntrack entry */
	u32 spare[2];
};
BPF_F_TABLE("array", u32, struct slot, slots, EP_PEERS, BPF_F_MMAPABLE);

/*
 * Evidence of a slot, which measured flows alone touch. All but the last exit, the port blocks and `last_vote` only
 * grows, for as long as the slot has a generation: take differences, modulo 2^32 for packed words.
 *
 * A sandwich is a flow of mine, then another slot's in the same place, then mine again: `both` when the exit is that
 * of my last flow and of the other's, `mine` or `other` when of one alone, `none` when of neither. For votes the
 * place is the relay and the class, for returns the destination and the class.
 */
enum sandwich { BOTH, MINE, OTHERS, NONE };
struct evidence {
	u32 vote_sandwiches[CLASSES][LAGS]; /* four packed u8, by enum sandwich */
	u64 last_vote[CLASSES];             /* mark of the exit | pane | session | drain, 16 bits each; 0: none */
	u32 return_sandwiches[LAGS];        /* as those of votes */
	u32 lone_returns[LAGS];             /* tried | the same exit << 16: nobody else was there meanwhile */
	u64 port_blocks;          /* of this pane: bit b for source ports that became one of the 1,024 from b * 1024 on */
	u64 destination_expected; /* hits of the destination predictor that chance gives, in units of 2^-24 */
	u32 destination_tried;
	u32 destination_hit;
	u32 same_port_tried;
	u32 same_port_true;
	struct address last_exit; /* of the last vote, for who knows the tunnel address */
	u32 votes;
	u32 spare[3];
};
BPF_F_TABLE("array", u32, struct evidence, evidences, EP_PEERS, BPF_F_MMAPABLE);

/*
 * The bounded memories behind the contrasts: (slot, destination) -> exit, (slot, protocol, source port) -> exit, and
 * (destination, class) -> exit and slot, whoever was there. A way is one word, so it is read and written whole: 28
 * bits of a keyed hash, the flow's class, session and drain or the owner, the pane, and 16 bits that stand for the
 * exit. The key is drawn at load and known to nobody; user space never gets these maps.
 */
#define EP_WAYS 4
struct bucket {
	u64 way[EP_WAYS];
};
BPF_ARRAY(destinations, struct bucket, EP_DESTINATION_BUCKETS);
BPF_ARRAY(visits, struct bucket, EP_VISIT_BUCKETS);
BPF_ARRAY(ports, struct bucket, EP_PORT_BUCKETS);

/* The last vote of anybody, by family and class: mark of the exit << 48 | pane << 32 | slot + 1. */
BPF_ARRAY(last_votes, u64, FAMILIES *CLASSES);

/* Exit ranges, for the destination predictor; words in host order. */
struct pool {
	u32 first[4];
	u32 last[4];
	u32 family; /* one more than a flow's; 0 ends the list */
	u32 chance; /* 2^24 / size */
};
#define POOLS_TRIED 4 /* ranges that may hold one exit: two rules may choose from the same addresses */
BPF_F_TABLE("array", u32, struct pool, pools, EP_POOLS, BPF_F_MMAPABLE);

/* What became of the flows, for each processor. */
enum outcome {
	COUNTED,
	NOT_A_PEER,
	NOT_TRANSLATED,
	UNATTRIBUTED,      /* came in by a WireGuard interface, belongs to no slot */
	UNREADABLE,        /* its conntrack entry could not be read */
	LOST_PAIRS,        /* not counted: the table of pairs is full, or the slot's share of it used up */
	LOST_DESTINATIONS, /* counted, not measured: no room in a memory of destinations */
	LOST_PORTS,        /* counted, not measured: no room in the memory of ports */
	LOST_EXITS,        /* not counted: the table of exits is full */
	UNTRACKED,         /* a packet without a conntrack entry that went from a tunnel to no tunnel */
	OUTCOMES,
};
#define OUTCOME_ROOM 32 /* counters of a processor: whole lines */
BPF_F_TABLE("array", u32, u64, outcomes, OUTCOME_ROOM *EP_PROCESSORS, BPF_F_MMAPABLE);

static __always_inline void count_outcome(u32 family, enum outcome outcome)
{
	u32 index = bpf_get_smp_processor_id() * OUTCOME_ROOM + outcome * FAMILIES + family;
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

/*
 * Makes a word that is 0 another one; true for the one processor that does. The oldest kernels have no
 * compare-and-swap in BPF: there a word belongs to who enters its name into a map that takes each name once. Names of
 * long ago fall out of it.
 */
#ifdef EP_NO_SWAP
BPF_TABLE("lru_hash", u64, u8, claims, 4096);

static __always_inline bool claim(u64 *word, u64 value, u64 name)
{
	u8 one = 1;

	if (*word || claims.insert(&name, &one))
		return false;
	*word = value;
	return true;
}
#else
static __always_inline bool claim(u64 *word, u64 value, u64 name)
{
	return !__sync_val_compare_and_swap(word, 0, value);
}
#endif

/* Where in the table of peers to look first: detector/kernel/peer_table.py computes it, too. */
static __always_inline u32 mix(u64 key)
{
	return (key ^ key >> 32) * 0x9e3779b97f4a7c15ULL >> 32;
}

/*
 * Where in a table of so many places to look first (Dietzfelbinger and others, "A reliable randomized algorithm for
 * the closest-pair problem", 1997): who does not know the key cannot choose what collides.
 */
static __always_inline u32 keyed(u64 key)
{
	return (key * (EP_SECRET_0 | 1) + EP_SECRET_1) >> 32;
}

static __always_inline u32 place_of(u32 hash, u32 places)
{
	return (u64)hash * places >> 32;
}

/* 64 bits that stand for an exit or another address: few of them, and keyed. */
static __always_inline u64 address_hash(const struct address *address)
{
	u64 folded = address->half[0] * (EP_SECRET_1 | 1) + address->half[1] * (EP_SECRET_2 | 1);

	return (folded ^ folded >> 32) * (EP_SECRET_3 | 1);
}
