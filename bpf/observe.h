/* SPDX-License-Identifier: GPL-2.0-only */
/* What both hooks do with a packet: find out whether it begins a translated flow of a peer, and count it. */
#pragma once

/* Where in a table to look first. */
static __always_inline u32 mix(u64 key)
{
	return (key ^ key >> 32) * 0x9e3779b97f4a7c15ULL >> 32;
}


/* The slot + 1, 0 for none. */
static __always_inline u32 find_slot(const struct flow *flow)
{
	u32 first = mix(flow->source.half[0] ^ flow->source.half[1] ^ flow->ifindex), *slot;

	for (u32 probe = 0; probe < PEER_PROBES; probe++) {
		u32 index = (first + probe) & (EP_PEER_LINES - 1);
		struct peer_line *line = peers.lookup(&index);

		if (!line)
			return 0;
#pragma unroll
		for (int i = 0; i < PEERS_IN_LINE; i++) {
			struct peer *peer = &line->peer[i];

			if (often(same_address(&peer->address, &flow->source) && peer->ifindex == flow->ifindex && peer->slot))
				return peer->slot;
		}
	}
	if (!flow->family) {
		struct network4 key = {64, flow->ifindex, flow->source.half[0]};

		slot = networks4.lookup(&key);
	} else {
		struct network6 key = {160, flow->ifindex, flow->source};

		slot = networks6.lookup(&key);
	}
	return slot ? *slot + 1 : 0;
}

static __always_inline bool starts_session(struct slot *slot, const struct control *control)
{
	bool first = !slot->sessions || control->now - slot->last_flow > control->session_gap;

	if (slot->last_flow != control->now) /* a line that is not written stays in other processors' caches */
		slot->last_flow = control->now;
	if (first)
		add32(&slot->sessions, 1);
	return first;
}

/*
 * Only the first flows of a slot in a window are measured, whatever they say: that keeps the trials unbiased, the
 * memories small and all later flows cheap.
 */
static __always_inline bool to_measure(struct slot *slot, const struct control *control)
{
	if (!slot->measured || control->pane - slot->pane >= EP_PANES) {
		slot->pane = control->pane;
		slot->measured = 0;
	}
	if (slot->measured >= EP_MEASURED)
		return false;
	slot->measured++;
	return true;
}

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

#define NUMBER_TRIES 64 /* as often as other processors are faster */

static __always_inline bool is_exit(u64 way, u64 tag)
{
	return way && (way & ~NUMBER_MASK) == tag;
}

static __always_inline struct exit_line *exit_line(u64 tag, u32 probe)
{
	u32 index = (mix(tag) + probe) & (EP_EXIT_LINES - 1);

	return exit_lines.lookup(&index);
}

/* A number that nobody has, EP_EXITS when all are given. By compare-and-swap: BCC has no fetch-and-add. */
static __always_inline u32 next_number(void)
{
	u32 zero = 0;
	u64 *met = exits_met.lookup(&zero);

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
static __always_inline u32 number_exit(const struct flow *flow)
{
	u64 tag = exit_tag(flow);

	for (u32 probe = 0; probe < EXIT_PROBES; probe++) {
		struct exit_line *line = exit_line(tag, probe);

		if (!line)
			return 0;
#pragma unroll
		for (int i = 0; i < EXIT_WAYS; i++) {
			u64 way = line->way[i];

			if (often(is_exit(way, tag)))
				return way & NUMBER_MASK;
			if (!way)
				return add_exit(flow, tag);
		}
	}
	return 0;
}

/* The first blocks of a slot lie together, of either kind; the others are scattered over the table. */
#define NEAR_BLOCKS 16
#define BLOCK_PROBES 16

static __always_inline struct block *find_block(void *table, u64 key)
{
	u32 group = key, slot = key >> 32, mixed = mix(key);
	u32 place = group < NEAR_BLOCKS ? (slot * 2 + !!(key & VOTES_FIRSTS)) * NEAR_BLOCKS + group : mixed;

#pragma nounroll
	for (u32 probe = 0; probe < BLOCK_PROBES; probe++) {
		u32 index = place & (EP_BLOCKS - 1);
		struct block *block = map_lookup(table, &index);
		u64 owner;

		if (!block)
			return 0;
		owner = block->key;
		if (rarely(!owner))
			owner = __sync_val_compare_and_swap(&block->key, 0, key);
		if (often(!owner || owner == key))
			return block;
		place += mixed >> 16 | 1;
	}
	return 0;
}

static __always_inline void add_count(struct block *block, u64 place, u32 n)
{
	asm volatile("" : "+r"(place)); /* so that what is checked is what is used, which the verifier wants to see */
	if (place < EXITS_IN_BLOCK)
		add32(&block->count[place], n);
}

static __always_inline enum outcome add_pair(u32 id, const struct flow *flow, u32 votes_firsts)
{
	u32 zero = 0, number = number_exit(flow) - 1;
	u32 group = (u64)number * 0xaaaaaaab >> 34; /* number / EXITS_IN_BLOCK, without a division */
	u64 key = (u64)(id + 1) << 32 | group, place = number - group * EXITS_IN_BLOCK;
	struct block *flows, *rest;
	void *table = pairs.lookup(&zero);

	if (number == ~0U)
		return LOST_EXITS;
	if (!table)
		return LOST_PAIRS;
	flows = find_block(table, key);
	if (!flows)
		return LOST_PAIRS;
	if (rarely(votes_firsts)) {
		rest = find_block(table, key | VOTES_FIRSTS);
		if (!rest)
			return LOST_PAIRS;
		add_count(rest, place, votes_firsts);
	}
	add_count(flows, place, 1);
	return COUNTED;
}

static __always_inline enum outcome observe_flow(const struct flow *flow)
{
	struct control *control;
	struct slot *slot;
	u32 zero = 0, votes_firsts = 0, found = find_slot(flow), id = found - 1;

	if (rarely(!found)) {
		u32 ifindex = flow->ifindex; /* a copy, so that the flow itself can be in registers */

		return tunnels.lookup(&ifindex) ? UNATTRIBUTED : NOT_A_PEER;
	}
	if (same_address(&flow->source, &flow->exit))
		return NOT_TRANSLATED;
	control = controls.lookup(&zero);
	slot = slots.lookup(&id);
	if (rarely(!control || !slot))
		return LOST_PAIRS;
	if (rarely(to_measure(slot, control)) && measure(id, slot, flow, control))
		votes_firsts = VOTE;
	if (starts_session(slot, control))
		votes_firsts += FIRST;
	return add_pair(id, flow, votes_firsts);
}

static __always_inline void observe_entry(const struct entry *entry, u32 l3, u32 ifindex)
{
	struct flow flow;

	if (flow_of(&flow, entry, l3, ifindex))
		count_outcome(flow.family, observe_flow(&flow));
	else
		count_outcome(0, UNREADABLE);
}

/* Only a packet that may begin a flow is looked at: what conntrack says of it is in the pointer's low bits. */
static __always_inline bool may_begin(u64 nfct)
{
	u64 info = nfct & NFCT_INFOMASK;

	return nfct & ~NFCT_INFOMASK && (info == IP_CT_NEW || info == IP_CT_RELATED);
}

static __always_inline u64 entry_address_of(u64 nfct)
{
	return (nfct & ~NFCT_INFOMASK) + EP_CT_FIRST;
}

#ifdef EP_RDONLY_CAST
/* The netfilter link: sees every packet of its own namespace; the verifier lets it read the skb directly. */
static __always_inline void observe_packet(const void *state, void *skb, u64 nfct)
{
	const struct entry *entry = rdonly_cast(entry_address_of(nfct), EP_WORDS);

	if (entry && !(ENTRY(entry, u64, EP_CT_STATUS) & IPS_CONFIRMED))
		observe_entry(entry, direct_read8(state, EP_STATE_PF), direct_read32(skb, EP_SKB_IIF));
}
#else
/* The kprobe: sees unconfirmed entries only, of every namespace. */
static __always_inline void observe_confirm(void *skb)
{
	struct entry entry;
	u64 nfct;
	u32 ifindex, namespace;

	if (read_kernel(&nfct, sizeof(nfct), skb + EP_SKB_NFCT))
		return count_outcome(0, UNREADABLE);
	if (!may_begin(nfct))
		return;
	if (read_kernel(&entry, sizeof(entry), (void *)entry_address_of(nfct)) ||
	    read_kernel(&namespace, sizeof(namespace), (void *)ENTRY(&entry, u64, EP_CT_NET) + EP_NET_INUM))
		return count_outcome(0, UNREADABLE);
	if (namespace != EP_NAMESPACE)
		return;
	if (read_kernel(&ifindex, sizeof(ifindex), skb + EP_SKB_IIF))
		return count_outcome(0, UNREADABLE);
	observe_entry(&entry, ENTRY(&entry, u16, ORIGINAL + EP_TUPLE_L3NUM), ifindex);
}
#endif
