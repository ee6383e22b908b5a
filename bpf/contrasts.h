/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The evidence that needs the destination or the source port: the three bounded memories, and what a flow says given
 * what they hold (docs/leak-modes.md, section 3).
 *
 *                      port new                          port known
 *   destination new    a vote                            a trial of "same port"
 *   destination known  a return                          nothing: it may inherit a live mapping
 *
 * A vote and a return are compared with the slot's own last one and, where another slot's came in between, with that:
 * what everybody shares (the site, the hour) makes both match.
 */
#pragma once

#define MARK_BITS 16
#define PANE_BITS 10
#define PANE_MASK ((1U << PANE_BITS) - 1)
#define MARGIN_BITS 10 /* class, session and drain of a flow, or its owner */
#define MARGIN_MASK ((1U << MARGIN_BITS) - 1)
#define TAG_SHIFT (MARK_BITS + PANE_BITS + MARGIN_BITS)
#define TIME_BITS 4 /* of session and drain in a margin: those that are 16 apart look the same */
#define TIME_MASK ((1U << TIME_BITS) - 1)

enum memory { NEW, KNOWN, FULL };

/* 16 bits that differ when exits differ, but for one pair of exits in 65,536. */
static __always_inline u32 mark_of(const struct flow *flow)
{
	return address_hash(&flow->exit) >> 48;
}

static __always_inline u32 way_pane(u64 way)
{
	return way >> MARK_BITS & PANE_MASK;
}

static __always_inline u32 way_margin(u64 way)
{
	return way >> (MARK_BITS + PANE_BITS) & MARGIN_MASK;
}

static __always_inline bool is_over(u32 then, u32 pane)
{
	return ((pane - then) & PANE_MASK) >= EP_PANES;
}

/*
 * Looks a key up and puts `now` in its place, which holds the key's tag; a key that is not there takes a free way,
 * if it is to, or finds none. `before` is what was in its place.
 */
static __always_inline enum memory recall(struct bucket *bucket, u64 now, u32 pane, bool insert, u64 *before)
{
	int free = -1;

#pragma unroll
	for (int i = EP_WAYS - 1; i >= 0; i--) {
		u64 way = bucket->way[i];

		if (!way || is_over(way_pane(way), pane)) {
			free = i;
		} else if (way >> TAG_SHIFT == now >> TAG_SHIFT) {
			bucket->way[i] = now;
			*before = way;
			return KNOWN;
		}
	}
	if (!insert)
		return NEW;
	if (free < 0)
		return FULL;
	bucket->way[free & (EP_WAYS - 1)] = now;
	return NEW;
}

static __always_inline u64 way_of(u64 hash, u32 margin, u32 pane, u32 mark)
{
	return hash >> TAG_SHIFT << TAG_SHIFT | (u64)(margin & MARGIN_MASK) << (MARK_BITS + PANE_BITS) |
	       (u64)(pane & PANE_MASK) << MARK_BITS | mark;
}

/* Of an owner, or of everybody: who is 0. */
static __always_inline u64 hash_destination(u64 who, const struct flow *flow)
{
	struct address destination = destination_of(flow);
	struct siphash s;

	siphash_start(&s);
	siphash_word(&s, who);
	siphash_word(&s, destination.half[0]);
	if (flow->family)
		siphash_word(&s, destination.half[1]);
	return siphash_end(&s);
}

static __always_inline u64 hash_port(u64 owner, const struct flow *flow)
{
	struct siphash s;

	siphash_start(&s);
	siphash_word(&s, owner);
	siphash_word(&s, port_of(flow));
	return siphash_end(&s);
}

/* The times of a slot's flow: four words of 16 bits, with a mark of its exit. Never 0. */
static __always_inline u64 times_of(u32 mark, const struct slot *slot, const struct control *control)
{
	return (u64)mark << 48 | (u64)(u16)control->pane << 32 | (u64)(u16)slot->sessions << 16 | (u16)control->drain;
}

static __always_inline enum lag lag_of(bool session, bool pane, bool drain)
{
	return !session ? SESSIONS : !pane ? PANES : !drain ? PANE : DRAIN;
}

/* A trial of four packed counters. */
static __always_inline void add_sandwich(u32 *counters, bool mine, bool others)
{
	add32(counters, 1U << 8 * (mine ? others ? BOTH : MINE : others ? OTHERS : NONE));
}

/* My last vote of this class, another slot's since then, and now this one. */
static __always_inline void vote(u32 id, struct slot *slot, struct evidence *evidence, const struct flow *flow,
                                 const struct control *control, u32 class, u32 mark)
{
	u64 now = times_of(mark, slot, control), mine = evidence->last_vote[class];
	u32 place = flow->family * CLASSES + class, pane = control->pane;
	u64 *last = last_votes.lookup(&place), others;

	if (!last)
		return;
	others = *last;
	*last = (u64)mark << 48 | (u64)(u16)pane << 32 | (id + 1);
	evidence->last_vote[class] = now;
	evidence->last_exit = exit_name(flow);
	add32(&evidence->votes, 1);
	if (mine && !is_over(mine >> 32, pane) && others && (u32)others != id + 1 && !is_over(others >> 32, pane)) {
		u64 apart = mine ^ now;
		enum lag lag = lag_of(!(u16)(apart >> 16), !(u16)(apart >> 32), !(u16)apart);

		add_sandwich(&evidence->vote_sandwiches[class][forget(control, lag)], mine >> 48 == mark, others >> 48 == mark);
	}
}

/* A known destination from a new port; what was there last is my own flow, or another slot's since then. */
static __always_inline void come_back(struct evidence *evidence, const struct control *control, u64 mine, u64 now, u64 last,
                                      bool alone, u32 mark)
{
	u32 apart = way_margin(mine) ^ way_margin(now);
	enum lag lag = lag_of(!(apart >> TIME_BITS & TIME_MASK), way_pane(mine) == way_pane(now), !(apart & TIME_MASK));
	bool same = (u16)mine == mark;

	lag = forget(control, lag);
	if (alone)
		add32(&evidence->lone_returns[lag & 3], 1U | (u32)same << 16);
	else
		add_sandwich(&evidence->return_sandwiches[lag & 3], same, (u16)last == mark);
}

/* Which 1,024 ports the source port was changed to; the one of a flow whose port stayed says nothing. */
static __always_inline void note_port(struct evidence *evidence, const struct flow *flow)
{
	u32 before = bpf_ntohs(source_port(flow)), after = bpf_ntohs(translated_port(flow));
	u64 bit = 1ULL << (after >> 10 & 63);

	if (before != after && has_ports(flow) && !(evidence->port_blocks & bit))
		evidence->port_blocks |= bit;
}

/* What is left of a budget is spent by one. */
static __always_inline bool spend(u8 *spent, u8 budget)
{
	if (*spent >= budget)
		return false;
	*spent += 1;
	return true;
}

/* True when the flow is a vote. */
static __always_inline bool measure(u32 id, struct slot *slot, const struct flow *flow, const struct control *control, u32 class)
{
	u64 owner = (u64)slot->generation << 32 | id; /* what a peer of before has left in the memories is not found */
	u32 mark = mark_of(flow), pane = control->pane, index;
	u32 margin = class << 2 * TIME_BITS | (slot->sessions & TIME_MASK) << TIME_BITS | (control->drain & TIME_MASK);
	bool votes_left = forget(control, slot->votes[class] < control->votes);
	struct evidence *evidence = evidences.lookup(&id);
	enum memory destination, port, visit = NEW;
	u64 hash, mine = 0, before = 0, last = 0, now;
	struct bucket *bucket;

	hash = hash_port(owner, flow);
	index = place_of(hash, EP_PORT_BUCKETS);
	bucket = ports.lookup(&index);
	if (!bucket || !evidence)
		return false;
	port = forget(control, recall(bucket, way_of(hash, 0, pane, mark), pane, votes_left, &before));
	hash = hash_destination(owner + 1, flow);
	now = way_of(hash, margin, pane, mark);
	index = place_of(hash, EP_DESTINATION_BUCKETS);
	bucket = destinations.lookup(&index);
	if (!bucket)
		return false;
	destination = forget(control, recall(bucket, now, pane, votes_left, &mine));
	if (destination == FULL || port == FULL) {
		count_outcome(flow->family, destination == FULL ? LOST_DESTINATIONS : LOST_PORTS);
		return false;
	}
	note_port(evidence, flow);
	if (votes_left || destination == KNOWN) {
		hash = hash_destination(0, flow) ^ class * 0x9e3779b97f4a7c15ULL;
		index = place_of(hash, EP_VISIT_BUCKETS);
		bucket = visits.lookup(&index);
		if (!bucket)
			return false;
		visit = forget(control, recall(bucket, way_of(hash, id, pane, mark), pane, true, &last));
	}
	if (port == NEW && destination == NEW) {
		if (!spend(&slot->votes[class], control->votes))
			return false;
		vote(id, slot, evidence, flow, control, class, mark);
		return true;
	}
	if (port == NEW) {
		if (way_margin(mine) >> 2 * TIME_BITS != class || !spend(&slot->returns[class], control->returns))
			return false;
		if (visit == FULL)
			count_outcome(flow->family, LOST_DESTINATIONS);
		else
			come_back(evidence, control, mine, now, last, visit == NEW || way_margin(last) == (id & MARGIN_MASK),
			          mark);
	} else if (destination == NEW && spend(&slot->reuses[class], control->reuses)) {
		add32(&evidence->same_port_tried, 1);
		if ((u16)before == mark)
			add32(&evidence->same_port_true, 1);
	}
	return false;
}
