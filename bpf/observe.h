/* SPDX-License-Identifier: GPL-2.0-only */
/* What both hooks do with a packet: find out whether it begins a translated flow of a peer, and count it. */
#pragma once

static __always_inline u32 *find_slot(const struct flow *flow)
{
	struct tunnel_address exact = {flow->ifindex, flow->source};
	u32 *slot = peers.lookup(&exact);

	if (slot)
		return slot;
	if (!flow->family) {
		struct network4 key = {64, flow->ifindex, flow->source.word[0]};

		return networks4.lookup(&key);
	} else {
		struct network6 key = {160, flow->ifindex, flow->source};

		return networks6.lookup(&key);
	}
}

static __always_inline bool starts_session(struct slot *slot, const struct control *control)
{
	bool first = !slot->sessions || control->now - slot->last_flow > control->session_gap;

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
 * IPv4 exits have tags of their own, and so have IPv6 exits that differ in their last word alone. Others share
 * one with a chance of 2^-32.
 */
static __always_inline u32 exit_tag(const struct flow *flow)
{
	const u32 *word = flow->exit.word;

	return flow->family ? word[3] ^ (word[0] * 3 + word[1] * 5 + word[2] * 7) * 0x9e3779b1U : word[0];
}

/* Have the tag's address where user space looks it up. */
static __always_inline bool name_exit(const struct flow *flow, u32 tag)
{
	struct exit_tag key = {flow->family, tag};
	struct address exit = flow->exit;

	if (exits.lookup(&key))
		return true;
	if (!flow->family) {
		exit.word[3] = flow->exit.word[0];
		exit.word[0] = 0;
		exit.word[2] = bpf_htonl(0xffff);
	}
	exits.insert(&key, &exit);
	return exits.lookup(&key);
}

/* Whose the pair is after we have tried to claim it: 0 when it is ours for the first time. */
static __always_inline u64 claim(struct pair *pair, u64 key)
{
	u64 owner = pair->key;

	return owner ? owner : __sync_val_compare_and_swap(&pair->key, 0, key);
}

/* Lines near each other for one slot, then, if those are full, lines scattered over the table. */
#define NEAR_LINES 16
#define NEAR_PROBES 4
#define FAR_PROBES 16

static __always_inline u32 line_of(u64 key, u32 probe)
{
	u32 slot = (key >> 32) * 0x9e3779b1U, mixed = (key * 0x9e3779b97f4a7c15ULL) >> 32;
	u32 line = probe < NEAR_PROBES ? (slot >> 8) + ((mixed + probe) & (NEAR_LINES - 1)) : mixed + probe * (slot | 1);

	return line & (EP_PAIR_LINES - 1);
}

static __always_inline enum outcome add_pair(u32 id, const struct flow *flow, u32 votes_firsts)
{
	u32 zero = 0, tag = exit_tag(flow);
	u64 key = (u64)(flow->family << 31 | (id + 1)) << 32 | tag;
	void *table = pairs.lookup(&zero);

	if (!table)
		return LOST_PAIRS;
	for (u32 probe = 0; probe < NEAR_PROBES + FAR_PROBES; probe++) {
		u32 index = line_of(key, probe);
		struct pair_line *line = map_lookup(table, &index);

		if (!line)
			return LOST_PAIRS;
#pragma unroll
		for (int i = 0; i < PAIRS_IN_LINE; i++) {
			struct pair *pair = &line->pair[i];
			u64 owner = claim(pair, key);

			if (owner && owner != key)
				continue;
			if (!owner && !name_exit(flow, tag))
				return LOST_EXITS; /* the pair stays claimed; user space sees that it has no name */
			add32(&pair->flows, 1);
			if (votes_firsts)
				add32(&pair->votes_firsts, votes_firsts);
			return COUNTED;
		}
	}
	return LOST_PAIRS;
}

static __always_inline enum outcome observe_flow(const struct flow *flow)
{
	struct control *control;
	struct slot *slot;
	u32 zero = 0, id, votes_firsts = 0, *found = find_slot(flow);

	if (!found)
		return tunnels.lookup((u32 *)&flow->ifindex) ? UNATTRIBUTED : NOT_A_PEER;
	if (same_address(&flow->source, &flow->exit))
		return NOT_TRANSLATED;
	id = *found;
	control = controls.lookup(&zero);
	slot = slots.lookup(&id);
	if (!control || !slot)
		return LOST_PAIRS;
	if (!to_measure(slot, control))
		count_outcome(flow->family, SETTLED);
	else if (measure(id, slot, flow, control))
		votes_firsts = VOTE;
	if (starts_session(slot, control))
		votes_firsts += FIRST;
	return add_pair(id, flow, votes_firsts);
}

static __always_inline void observe_entry(const struct entry *entry, u32 ifindex)
{
	struct flow flow;

	if (flow_of(&flow, entry, ifindex))
		count_outcome(flow.family, observe_flow(&flow));
}

/* Only a packet that may begin a flow is looked at: what conntrack says of it is in the pointer's low bits. */
static __always_inline bool may_begin(u64 nfct)
{
	u64 info = nfct & NFCT_INFOMASK;

	return nfct & ~NFCT_INFOMASK && (info == IP_CT_NEW || info == IP_CT_RELATED);
}

/* The netfilter link: sees every packet of its own namespace; the verifier lets it read the skb directly. */
static __always_inline void observe_packet(void *skb, u64 nfct)
{
	struct entry entry;

	if (read_kernel(&entry, sizeof(entry), (void *)((nfct & ~NFCT_INFOMASK) + EP_CT_FIRST)))
		return count_outcome(0, UNREADABLE);
	if (ENTRY(&entry, u64, EP_CT_STATUS) & IPS_CONFIRMED)
		return;
	observe_entry(&entry, direct_read32(skb, EP_SKB_IIF));
}

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
	if (read_kernel(&entry, sizeof(entry), (void *)((nfct & ~NFCT_INFOMASK) + EP_CT_FIRST)) ||
	    read_kernel(&namespace, sizeof(namespace), (void *)ENTRY(&entry, u64, EP_CT_NET) + EP_NET_INUM))
		return count_outcome(0, UNREADABLE);
	if (namespace != EP_NAMESPACE)
		return;
	if (read_kernel(&ifindex, sizeof(ifindex), skb + EP_SKB_IIF))
		return count_outcome(0, UNREADABLE);
	observe_entry(&entry, ifindex);
}
