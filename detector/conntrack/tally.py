# SPDX-License-Identifier: Apache-2.0
"""Counts flows of a listing as the kernel program counts them, for the same builder of observations.

Whatever the blocks that the flows come in, the counts are the same: all that one block has to know of those
before it is in the memories. See bpf/contrasts.h and bpf/observe.h for what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed
from detector.analysis.observation import Observation
from detector.base.family import Family
from detector.config.model import Tables
from detector.conntrack.lines import Flows, as_bytes
from detector.conntrack.memory import FULL, NEW, Memory
from detector.conntrack.peers import NO_ROOM, NOBODY, Peers
from detector.conntrack.trials import DestinationTrials, Votes
from detector.counts.columns import Columns, merge
from detector.counts.observing import PoolRanges, observe
from detector.counts.roster import Exits, Member, Roster
from detector.counts.window import TRIAL_COUNTS, Counts
from detector.daemon.counting import SHAPE
from detector.kernel.tables import FAMILIES, Outcome
from detector.nat.mapping import Mapping

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

# A listing is one window, so a peer is measured as often as the service does in one.
MEASURED = Tables().measured * Tables().panes
MEMORY = 1 << 22
MAX_PAIRS = 1 << 22
MAX_EXITS = 1 << 20
_EXIT_BITS = np.uint64(32)
_CONTRASTS = TRIAL_COUNTS[:4]


class Tally:
    """The counts of one listing.

    Args:
        peers: whose flows count.
        mapping: exit pools and what is predicted from them; None to take the exits' own ranges for pools.
        session_gap: seconds without a new flow of a peer that end its session.
        pools_only: families in which, without a list of peers, an exit outside of the pools is no peer's.
        memory: keys that each of the two memories holds.
        pairs: pairs of peer and exit that are counted.
    """

    def __init__(
        self,
        peers: Peers,
        mapping: Mapping | None,
        session_gap: float,
        *,
        pools_only: frozenset[Family] = frozenset(),
        memory: int = MEMORY,
        pairs: int = MAX_PAIRS,
    ) -> None:
        self._peers = peers
        self._gap = session_gap
        self._pools_only = np.array([family in pools_only for family in FAMILIES])
        self._most_pairs = pairs
        self._exits = Exits()
        self._number_of_exit = _ExitNumbers(self._exits)
        self._destinations, self._ports = Memory(memory), Memory(memory)
        self._trials = DestinationTrials(mapping)
        self._measured = np.zeros(0, np.int64)
        self._last_flow = np.zeros(0)
        self._counts = Counts.none(SHAPE)

    def add(self, flows: Flows) -> None:
        """Count some more flows."""
        outcomes = np.zeros(SHAPE, np.int64)
        rows = self._attribute(flows, outcomes)
        exits = np.full(len(rows), NO_ROOM, np.int64)
        exits[rows >= 0] = _numbers(flows.exit[rows >= 0], self._number_of_exit.__getitem__)
        _count(outcomes, flows, (rows >= 0) & (exits < 0), Outcome.LOST_PAIRS)
        mine = np.flatnonzero(exits >= 0)
        flows, rows, exits = flows.take(mine), rows[mine], exits[mine]
        pairs = rows.astype(np.uint64) << _EXIT_BITS | exits.astype(np.uint64)
        fitting = self._fitting(pairs)
        _count(outcomes, flows, fitting, Outcome.COUNTED)
        _count(outcomes, flows, ~fitting, Outcome.LOST_PAIRS)
        self._grow()
        votes, trials = self._measure(flows, rows, exits, outcomes)
        counted = np.stack([np.ones(len(rows)), votes, self._session_firsts(rows, flows.time)], axis=1)
        self._counts = Counts.total(
            [
                self._counts,
                Counts(Columns.of(pairs[fitting], counted[fitting].astype(np.uint32)), trials, outcomes),
            ]
        )

    def _attribute(self, flows: Flows, outcomes: NDArray[np.int64]) -> Index:
        """The row of each flow's peer, negative for a flow that is not counted."""
        pooled = self._trials.in_pools(flows)
        refused = (
            np.zeros(len(flows), np.bool_)
            if self._peers.listed
            else ~pooled & np.where(flows.four, *self._pools_only)
        )
        rows = np.full(len(flows), NOBODY, np.int64)
        asked = np.flatnonzero(~refused)
        rows[asked] = _numbers(flows.source[asked], self._peers.__getitem__)
        unattributed = (rows == NOBODY) & pooled if self._peers.listed else refused
        _count(outcomes, flows, unattributed, Outcome.UNATTRIBUTED)
        _count(outcomes, flows, (rows == NOBODY) & ~unattributed, Outcome.NOT_A_PEER)
        _count(outcomes, flows, rows == NO_ROOM, Outcome.LOST_PAIRS)
        return rows

    def _fitting(self, pairs: NDArray[np.uint64]) -> Mask:
        """Which pairs there is room for."""
        known = self._counts.pairs.keys
        if len(known) + len(pairs) <= self._most_pairs:
            return np.ones(len(pairs), np.bool_)
        fresh = np.setdiff1d(pairs, known)
        return ~np.isin(pairs, fresh[max(self._most_pairs - len(known), 0) :])

    def _grow(self) -> None:
        more = len(self._peers.allowed) - len(self._measured)
        self._measured = np.append(self._measured, np.zeros(more, np.int64))
        self._last_flow = np.append(self._last_flow, np.full(more, np.nan))

    def _measure(
        self, flows: Flows, rows: Index, exits: Index, outcomes: NDArray[np.int64]
    ) -> tuple[Mask, Columns]:
        """Which flows are votes, and the trials; see the table in bpf/contrasts.h."""
        votes = np.zeros(len(rows), np.bool_)
        which = np.flatnonzero(self._to_measure(rows))
        if not len(which):
            return votes, Columns.empty(len(TRIAL_COUNTS))
        some, rows, exits = flows.take(which), rows[which], exits[which]
        words = np.ascontiguousarray(some.destination).view(np.uint64)
        destination = self._destinations.remember(
            self._destinations.key(rows, words[:, 0], words[:, 1]), exits
        )
        port = self._ports.remember(self._ports.key(rows, some.port), exits)
        full = (destination == FULL) | (port == FULL)
        _count(outcomes, some, destination == FULL, Outcome.LOST_DESTINATIONS)
        _count(outcomes, some, full & (destination != FULL), Outcome.LOST_PORTS)
        vote = (destination == NEW) & (port == NEW)
        votes[which] = vote
        again = (destination >= 0) & (port == NEW)
        reused = (destination == NEW) & (port >= 0)
        tried = np.stack([again, again & (destination == exits), reused, reused & (port == exits)], axis=1)
        contrasts = Columns.of(rows.astype(np.uint64), _is_network(tried, 0))
        ballots = np.flatnonzero(vote)
        return votes, merge([contrasts, self._trials.add(Votes.of(some.take(ballots), rows[ballots]))])

    def _to_measure(self, rows: Index) -> Mask:
        """Only the first flows of a peer are measured, whatever they say: that keeps the trials unbiased."""
        rank = _rank_within(rows) + self._measured[rows]
        self._measured += np.bincount(rows, minlength=len(self._measured))
        return rank < MEASURED

    def _session_firsts(self, rows: Index, time: NDArray[np.float64]) -> Mask:
        """Which flows begin a session; none that has no time."""
        session_starts = np.zeros(len(rows), np.bool_)
        timed = np.flatnonzero(~np.isnan(time))
        order = timed[np.argsort(rows[timed], kind="stable")]
        peer, now = rows[order], time[order]
        same = np.concatenate(([False], peer[1:] == peer[:-1]))[: len(peer)]
        before = np.where(same, np.roll(now, 1), self._last_flow[peer])
        session_starts[order] = np.isnan(before) | (now - before > self._gap)
        self._last_flow[peer] = now  # of equal rows the last assignment stays
        return session_starts

    def observations(self) -> list[Observation]:
        """What the analysis is told, one family after the other."""
        mapping, late = self._trials.finish(self._exits.addresses())
        counts = Counts(self._counts.pairs, merge([self._counts.trials, late]), self._counts.outcomes)
        roster = Roster(self._exits)
        roster.add(self._members(mapping))
        told = mapping.as_message()
        pools = [PoolRanges.of(pool) for pool in told["pools"]]
        return [
            observe(
                family, counts, roster, self._exits, pools, exclusive=family in mapping.exclusive
            ).observation
            for family in Family
        ]

    def _members(self, mapping: Mapping) -> Sequence[Member]:
        allowed = self._peers.allowed
        everyone = [one.address for one in allowed if not one.is_network]
        return [
            Member(row, one.family, one.is_network, "", said)
            for row, (one, said) in enumerate(zip(allowed, mapping.predict(allowed, everyone), strict=True))
        ]


class _ExitNumbers(dict[bytes, int]):
    """Exit, as 16 bytes, to its number; `NO_ROOM` where there are too many."""

    def __init__(self, exits: Exits) -> None:
        super().__init__()
        self._exits = exits

    def __missing__(self, packed: bytes) -> int:
        if len(self) >= MAX_EXITS:
            return NO_ROOM
        self[packed] = number = self._exits.number(packed)
        return number


def _numbers(packed: Packed, number: Callable[[bytes], int]) -> Index:
    """What `number` gives each address, shape (n,)."""
    return np.fromiter(map(number, as_bytes(packed)), np.int64, len(packed))


def _count(outcomes: NDArray[np.int64], flows: Flows, which: Mask, outcome: Outcome) -> None:
    for index, family in enumerate(FAMILIES):
        mine = flows.four if family is Family.IPV4 else ~flows.four
        outcomes[index, outcome] += np.count_nonzero(which & mine)


def _is_network(counts: NDArray[Any], first: int) -> NDArray[np.uint32]:
    """Some columns of the trials as all of them, the others zero."""
    wide = np.zeros((len(counts), len(TRIAL_COUNTS)), np.uint32)
    wide[:, first : first + counts.shape[1]] = counts
    return wide


def _rank_within(rows: Index) -> Index:
    """The number of each flow among those of its peer, 0 being the first."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))[: len(rows)]
    sizes = np.diff(np.append(starts, len(rows)))
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows)) - np.repeat(starts, sizes)
    return rank
