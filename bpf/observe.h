/* SPDX-License-Identifier: GPL-2.0-only */
/* What both hooks do with a packet: find out whether it begins a translated flow of a peer, and count it. */
#pragma once

/* Where the packet leaves by, 0 when that cannot be read. */
static __always_inline u32 output_interface(const struct flow *flow)
{
#ifdef EP_RDONLY_CAST
	return direct_read32((const void *)direct_read64(flow->where, EP_STATE_OUT), EP_DEV_IFINDEX);
#else
	u64 device = 0;
	u32 ifindex = 0;

	if (read_kernel(&device, sizeof(device), flow->where + EP_SKB_DEV) ||
	    read_kernel(&ifindex, sizeof(ifindex), (void *)device + EP_DEV_IFINDEX))
		return 0;
	return ifindex;
#endif
}

/* The slot + 1, 0 for none. */
static __always_inline u32 find_slot(const struct flow *flow)
{
	u32 first = mix(flow->source.half[0] ^ flow->source.half[1] ^ flow->ifindex), zero = 0, *slot;
	struct watched *sizes = watched.lookup(&zero);

	if (!sizes)
		return 0;
	for (u32 probe = 0; probe < PEER_PROBES; probe++) {
		u32 index = (first + probe) & (sizes->peer_lines - 1) & (EP_PEER_LINES - 1);
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

static __always_inline bool is_tunnel(u32 ifindex)
{
	u32 zero = 0;
	struct watched *interfaces = watched.lookup(&zero);
	struct tunnel_line *line;

	if (!interfaces || !ifindex)
		return false;
	line = &interfaces->tunnels[ifindex & (TUNNEL_LINES - 1)];
#pragma unroll
	for (int i = 0; i < TUNNELS_IN_LINE; i++)
		if (line->ifindex[i] == ifindex)
			return true;
	return false;
}

static __always_inline bool starts_session(struct slot *slot, const struct control *control)
{
	bool first = !slot->sessions || control->now - slot->last_flow > control->session_gap;

	slot->last_flow = control->now;
	if (first)
		add32(&slot->sessions, 1);
	return first;
}

/* A new pane: the budgets are whole again. */
static __always_inline void begin_pane(u32 id, struct slot *slot, const struct control *control)
{
	struct evidence *evidence = evidences.lookup(&id);

#pragma unroll
	for (int i = 0; i < CLASSES; i++)
		slot->looked[i] = slot->votes[i] = slot->returns[i] = slot->reuses[i] = 0;
	slot->exits_named = 0;
	slot->settled = control->pane << CLASSES;
	if (evidence)
		evidence->port_blocks = 0;
}

static __always_inline bool in_pane(const struct slot *slot, const struct control *control)
{
	return slot->settled >> CLASSES == control->pane << CLASSES >> CLASSES;
}

/*
 * Only the first flows of a slot and class in a pane are looked at, and of these so many votes, returns and reuses
 * are measured, whatever they say: that keeps the trials unbiased, the memories small, all later flows cheap and one
 * class from using up the others' room.
 */
static __always_inline bool look(u32 id, struct slot *slot, const struct flow *flow, const struct control *control, u32 class)
{
	bool is_vote;

	slot->looked[class] += 1;
	is_vote = measure(id, slot, flow, control, class);
	if (slot->looked[class] >= control->looked ||
	    (slot->votes[class] >= control->votes && slot->returns[class] >= control->returns))
		slot->settled |= 1U << class;
	return is_vote;
}

/* Most flows: nothing is left to be found out that was not at the slot's flow before, since the same drain. */
static __always_inline bool is_settled(const struct slot *slot, const struct control *control, u32 class)
{
	return slot->last_flow == control->now && in_pane(slot, control) && slot->settled & 1U << class;
}

/* The peer's own address left the relay by no tunnel, for the internet. */
static __always_inline enum outcome not_translated(struct slot *slot, const struct flow *flow)
{
	struct address destination = destination_of(flow);
	u32 out = output_interface(flow);

	if (out && !is_tunnel(out) && is_global(flow->family, &destination))
		add32(&slot->untranslated[!is_global(flow->family, &flow->source)], 1);
	return NOT_TRANSLATED;
}

static __always_inline enum outcome observe_flow(const struct flow *flow)
{
	u32 zero = 0, votes = 0, found = find_slot(flow), id = found - 1, class;
	struct control *control;
	struct slot *slot;
	bool first = false;
	enum outcome outcome;

	if (unlikely(!found))
		return is_tunnel(flow->ifindex) ? UNATTRIBUTED : NOT_A_PEER;
	control = controls.lookup(&zero);
	slot = slots.lookup(&id);
	if (unlikely(!control || !slot))
		return LOST_PAIRS;
	if (unlikely(same_address(&flow->source, &flow->exit)))
		return not_translated(slot, flow);
	class = forget(control, class_of(flow));
	if (unlikely(!is_settled(slot, control, class))) {
		first = starts_session(slot, control);
		if (!in_pane(slot, control))
			begin_pane(id, slot, control);
		if (!(slot->settled & 1U << class))
			votes = forget(control, look(id, slot, flow, control, class)) << 8 * class;
		first = forget(control, first);
	}
	outcome = add_pair(id, slot, flow, control, votes, first);
	if (unlikely(votes)) /* last, for the verifier */
		try_destination(id, flow, control);
	return outcome;
}

static __always_inline void observe_entry(const struct entry *entry, const void *where, u32 l3, u32 ifindex)
{
	struct flow flow;

	if (flow_of(&flow, entry, where, l3, ifindex))
		count_outcome(flow.family, observe_flow(&flow));
	else
		count_outcome(0, UNREADABLE);
}

/*
 * Only a packet that may begin a flow is looked at: what conntrack says of it is in the pointer's low bits. One of an
 * established flow, or of one in reply, has a number there that neither of the two is.
 */
static __always_inline bool may_begin(u64 nfct)
{
	u64 info = nfct & NFCT_INFOMASK;

	return nfct & ~NFCT_INFOMASK && (info == IP_CT_NEW || info == IP_CT_RELATED);
}

/* And one that conntrack knows nothing of. */
static __always_inline bool may_matter(u64 nfct)
{
	u64 info = nfct & NFCT_INFOMASK;

	return info == IP_CT_NEW || info == IP_CT_RELATED || !(nfct & ~NFCT_INFOMASK);
}

static __always_inline u64 entry_address_of(u64 nfct)
{
	return (nfct & ~NFCT_INFOMASK) + EP_CT_FIRST;
}

#ifdef EP_RDONLY_CAST
/*
 * A packet without a conntrack entry: nothing translates it. Counted when it goes from a tunnel to none. The other
 * hook is never called for such a packet.
 */
static __always_inline void observe_untracked(const void *state, void *skb)
{
	u32 ifindex = direct_read32(skb, EP_SKB_IIF), id, protocol = direct_read8(state, EP_STATE_PF);
	struct flow flow = {.ifindex = ifindex, .where = state, .family = protocol == EP_AF_INET6};
	struct address destination = {};
	const void *header;
	struct slot *slot;

	if (!is_tunnel(ifindex) || is_tunnel(output_interface(&flow)))
		return;
	header = rdonly_cast(direct_read64(skb, EP_SKB_HEAD) + direct_read16(skb, EP_SKB_NETWORK_HEADER), EP_WORDS);
	if (flow.family) {
		flow.source.half[0] = direct_read64(header, 8);
		flow.source.half[1] = direct_read64(header, 16);
		destination.half[0] = direct_read64(header, 24);
	} else {
		flow.source.half[0] = direct_read32(header, 12);
		destination.half[0] = direct_read32(header, 16);
	}
	if (!is_global(flow.family, &destination))
		return;
	count_outcome(flow.family, UNTRACKED);
	id = find_slot(&flow) - 1;
	slot = slots.lookup(&id);
	if (slot)
		add32(&slot->untracked, 1);
}

/* The netfilter link: sees every packet of its own namespace; the verifier lets it read the skb directly. */
static __always_inline void observe_packet(const void *state, void *skb, u64 nfct)
{
	const struct entry *entry;

	if (unlikely(!(nfct & ~NFCT_INFOMASK)))
		return observe_untracked(state, skb);
	entry = rdonly_cast(entry_address_of(nfct), EP_WORDS);
	if (!(ENTRY(entry, u64, EP_CT_STATUS) & IPS_CONFIRMED))
		observe_entry(entry, state, direct_read8(state, EP_STATE_PF), direct_read32(skb, EP_SKB_IIF));
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
	observe_entry(&entry, skb, ENTRY(&entry, u16, ORIGINAL + EP_TUPLE_L3NUM), ifindex);
}
#endif
