/* SPDX-License-Identifier: GPL-2.0-only */
/* What both hooks do with a packet: find out whether it begins a translated flow of a peer, and count it. */
#pragma once

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

			if (likely(same_address(&peer->address, &flow->source) && peer->ifindex == flow->ifindex && peer->slot))
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

/* Most flows: nothing is left to be found out that was not at the slot's flow before, since the same drain. */
static __always_inline bool is_settled(const struct slot *slot, const struct control *control)
{
	return slot->last_flow == control->now && slot->measured >= EP_MEASURED;
}

static __always_inline enum outcome observe_flow(const struct flow *flow)
{
	struct control *control;
	struct slot *slot;
	u32 zero = 0, votes_firsts = 0, found = find_slot(flow), id = found - 1;

	if (unlikely(!found)) {
		u32 ifindex = flow->ifindex; /* a copy, so that the flow itself can be in registers */

		return tunnels.lookup(&ifindex) ? UNATTRIBUTED : NOT_A_PEER;
	}
	if (same_address(&flow->source, &flow->exit))
		return NOT_TRANSLATED;
	control = controls.lookup(&zero);
	slot = slots.lookup(&id);
	if (unlikely(!control || !slot))
		return LOST_PAIRS;
	if (unlikely(!is_settled(slot, control))) {
		if (to_measure(slot, control) && measure(id, slot, flow, control))
			votes_firsts = VOTE;
		if (starts_session(slot, control))
			votes_firsts += FIRST;
	}
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

	if (!(ENTRY(entry, u64, EP_CT_STATUS) & IPS_CONFIRMED))
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
