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

/* Only the first flows of a slot in a pane are measured, whatever they say: that keeps the trials unbiased. */
static __always_inline bool to_measure(struct slot *slot, const struct control *control)
{
	if (slot->pane != control->pane) {
		slot->pane = control->pane;
		slot->measured = 0;
	}
	if (slot->measured >= EP_MEASURED)
		return false;
	slot->measured++;
	return true;
}

static __always_inline bool add_pair(const struct pair *pair, u32 vote, u32 first)
{
	struct pair_counts fresh = {1, vote, first}, *counts;
	u32 zero = 0;
	void *table = pairs.lookup(&zero);

	if (!table)
		return false;
	counts = map_lookup(table, pair);
	if (!counts) {
		if (!map_update(table, pair, &fresh, BPF_NOEXIST))
			return true;
		counts = map_lookup(table, pair); /* another processor was first, or the table is full */
		if (!counts)
			return false;
	}
	add32(&counts->flows, 1);
	if (vote)
		add32(&counts->votes, 1);
	if (first)
		add32(&counts->firsts, 1);
	return true;
}

/* The exit as user space knows addresses. */
static __always_inline void pair_of(struct pair *pair, u32 id, const struct flow *flow)
{
	pair->slot = id;
	pair->exit = flow->exit;
	if (!flow->family) {
		pair->exit.word[3] = flow->exit.word[0];
		pair->exit.word[0] = 0;
		pair->exit.word[2] = bpf_htonl(0xffff);
	}
}

static __always_inline enum outcome observe_flow(const struct flow *flow)
{
	struct control *control;
	struct pair pair;
	struct slot *slot;
	u32 zero = 0, id, *found = find_slot(flow);
	bool vote = false;

	if (!found)
		return tunnels.lookup((u32 *)&flow->ifindex) ? UNATTRIBUTED : NOT_A_PEER;
	if (same_address(&flow->source, &flow->exit))
		return NOT_TRANSLATED;
	id = *found;
	control = controls.lookup(&zero);
	slot = slots.lookup(&id);
	if (!control || !slot)
		return LOST_PAIRS;
	if (to_measure(slot, control))
		vote = measure(id, slot, flow, control);
	else
		count_outcome(flow->family, SETTLED);
	pair_of(&pair, id, flow);
	return add_pair(&pair, vote, starts_session(slot, control)) ? COUNTED : LOST_PAIRS;
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
static __always_inline void observe_packet(void *skb)
{
	u64 nfct = direct_read64(skb, EP_SKB_NFCT);
	struct entry entry;

	if (!may_begin(nfct))
		return;
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
