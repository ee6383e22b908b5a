# SPDX-License-Identifier: Apache-2.0
"""What flows say, given those before them: votes, trials and matched trials, as bpf/contrasts.h counts them.

Only so many flows of a peer are measured in a span of time and a class, whatever they say, so that neither
the first minutes nor one kind of flow is all that is known.

    destination new    port new      a vote; a matched one where another peer voted since my last vote
    destination known  port new      a return; a matched one where another peer was there since I was
    destination new    port known    a trial of "same port"
    destination known  port known    nothing: it may inherit a live mapping

A sandwich's lag is the time since my own earlier flow. A listing without times says nothing of it; its flows
count as far apart, and begin no session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.analysis.observation import Sandwiches
from detector.base.flows import FLOW_CLASSES, LAGS, Lag
from detector.config.model import Config, Tables
from detector.conntrack.addresses import Mask
from detector.conntrack.memory import Hash, Memory
from detector.conntrack.reader import Flows
from detector.counts.columns import Columns, merge

Index = NDArray[np.int64]

PANE = Config().window / Tables().panes
MEASURED = Tables().measured
UNTIMED_MEASURED = MEASURED * Tables().panes
DRAIN = Config().interval
"""Seconds that the service takes for one moment."""

MEMORY = 1 << 20
PORTS = 1 << 20
_CLASSES, _LAGS = len(FLOW_CLASSES), len(LAGS)
_OUTCOMES = 4  # both, mine alone, the other's alone, none
_NOBODY = -1
_BLOCK_BITS = 10

RETURN_TRIALS = ("same_destination_tried", "same_destination_true", "same_port_tried", "same_port_true")


class Pile:
    """Counts by key that are added up now and then."""

    def __init__(self, width: int) -> None:
        self._sum = Columns.empty(width)
        self._waiting: list[Columns] = []
        self._size = 0

    def add(self, columns: Columns) -> None:
        """Some more."""
        self._waiting.append(columns)
        self._size += len(columns.keys)
        if self._size > max(len(self._sum.keys), 1 << 16):
            self.total()

    @property
    def at_most(self) -> int:
        """A bound on the number of keys."""
        return len(self._sum.keys) + self._size

    def total(self) -> Columns:
        """All of them, each key once."""
        if self._waiting:
            self._sum = merge([self._sum, *self._waiting])
            self._waiting, self._size = [], 0
        return self._sum


@dataclass(frozen=True, slots=True)
class Moment:
    """When flows were, n of them.

    Attributes:
        time: shape (n,), seconds since the first flow with a time, NaN where it has none.
        session: shape (n,): the number of the peer's session, from 0 on.
    """

    time: NDArray[np.float32]
    session: NDArray[np.int32]

    def take(self, which: Index | Mask) -> Moment:
        """Some of them."""
        return Moment(self.time[which], self.session[which])

    def lag(self, earlier: Moment) -> Index:
        """How far each is from an earlier one, shape (n,), as `Lag`."""
        lag = np.where(np.abs(self.time - earlier.time) <= DRAIN, Lag.DRAIN, Lag.PANE)
        lag = np.where(np.floor(self.time / PANE) != np.floor(earlier.time / PANE), Lag.PANES, lag)
        lag = np.where(self.session != earlier.session, Lag.SESSIONS, lag)
        return np.where(np.isnan(self.time) | np.isnan(earlier.time), Lag.PANES, lag).astype(np.int64)


class Evidence:
    """The evidence of one listing, by row of a peer.

    Args:
        session_gap: seconds without a new flow of a peer that end its session.
        memory: places that are remembered.
    """

    def __init__(self, session_gap: float, memory: int = MEMORY) -> None:
        self._gap = session_gap
        self._since = np.nan
        self._hash = Hash()
        self._mine = Memory(memory, (np.int32, np.float32, np.int32))
        self._anybody = Memory(memory, (np.int32, np.int32))
        self._ports = Memory(memory, (np.int32,))
        self._last_flow = np.zeros(0, np.float32)
        self._session = np.zeros(0, np.int32)
        self._timed = np.zeros(0, np.bool_)
        self._pane = np.zeros((0, _CLASSES), np.int32)
        self._measured = np.zeros((0, _CLASSES), np.int32)
        self._votes = _LastVotes()
        self.trials = Pile(len(RETURN_TRIALS))
        self._sandwiches = Pile(1)
        self._returns = Pile(1)
        self._lone = Pile(2)
        self.port_blocks = np.zeros(0, np.uint64)

    def grow(self, rows: int) -> None:
        """Room for so many peers."""
        more = rows - len(self._session)
        if more <= 0:
            return
        self._last_flow = np.append(self._last_flow, np.full(more, np.nan, np.float32))
        self._session = np.append(self._session, np.zeros(more, np.int32))
        self._timed = np.append(self._timed, np.zeros(more, np.bool_))
        self._pane = np.append(self._pane, np.full((more, _CLASSES), -1, np.int32), axis=0)
        self._measured = np.append(self._measured, np.zeros((more, _CLASSES), np.int32), axis=0)
        self.port_blocks = np.append(self.port_blocks, np.zeros(more, np.uint64))
        self._votes.grow(rows)

    def add(self, flows: Flows, rows: Index, exits: Index) -> tuple[Mask, Mask]:
        """Measure flows in their order; which are votes, and which begin a session, shape (n,) each."""
        moment, begins = self._moments(rows, flows.time)
        votes = np.zeros(len(rows), np.bool_)
        words = np.ascontiguousarray(flows.destination).view(np.uint64)
        places = self._hash.places(words[:, 0], words[:, 1])
        ports = self._hash.places(flows.port)
        keys = self._hash.of_rows(ports, rows)
        measured = self._mine.admits(places) & self._ports.admits(keys)
        measured[measured] = self._within_budget(rows[measured], flows.kind[measured], moment.time[measured])
        which = np.flatnonzero(measured)
        if len(which):
            votes[which] = self._measure(
                flows.take(which), rows[which], exits[which], places[which], keys[which], moment.take(which)
            )
        return votes, begins

    def _moments(self, rows: Index, time: NDArray[np.float64]) -> tuple[Moment, Mask]:
        """When flows were, and which begin a session; none that has no time."""
        timed = np.flatnonzero(~np.isnan(time))
        if len(timed) and np.isnan(self._since):
            self._since = float(time[timed[0]])
        since = (time - self._since).astype(np.float32)
        begins = np.zeros(len(rows), np.bool_)
        order = timed[np.argsort(rows[timed], kind="stable")]
        peer, now = rows[order], since[order]
        same = np.concatenate(([False], peer[1:] == peer[:-1]))[: len(peer)]
        before = np.where(same, np.roll(now, 1), self._last_flow[peer])
        ended = np.abs(now - before) > self._gap  # a listing may be newest first
        begins[order] = np.isnan(before) | ended
        started = np.cumsum(ended)
        base: Index = np.repeat(
            started[~same] - ended[~same], np.diff(np.append(np.flatnonzero(~same), len(peer)))
        )
        session = self._session[rows].copy()
        session[order] = self._session[peer] + started - base
        self._session[peer] = session[order]  # of equal rows the last assignment stays
        self._last_flow[peer] = now
        self._timed[peer] = True
        return Moment(since, session), begins

    def _within_budget(self, rows: Index, kind: NDArray[np.uint8], time: NDArray[np.float32]) -> Mask:
        """The first flows of a peer in a pane and class, whatever they say: so the trials are unbiased."""
        pane = np.where(np.isnan(time), -1, np.floor(time / PANE)).astype(np.int64)
        slot = rows * _CLASSES + kind
        order = np.lexsort((np.arange(len(rows)), pane, slot))
        slots, panes = slot[order], pane[order]
        first = np.concatenate(([True], (slots[1:] != slots[:-1]) | (panes[1:] != panes[:-1])))[: len(rows)]
        starts = np.flatnonzero(first)
        rank = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
        stored, used = self._pane.reshape(-1), self._measured.reshape(-1)
        rank += np.where(stored[slots] == panes, used[slots], 0)
        stored[slots], used[slots] = panes, rank + 1  # of equal slots the last assignment stays
        within = np.empty(len(rows), np.bool_)
        within[order] = rank < np.where(panes < 0, UNTIMED_MEASURED, MEASURED)
        return within

    def _measure(
        self,
        flows: Flows,
        rows: Index,
        exits: Index,
        places: NDArray[np.uint64],
        keys: NDArray[np.uint64],
        moment: Moment,
    ) -> Mask:
        mine = self._mine.remember(self._hash.of_rows(places, rows), (exits, moment.time, moment.session))
        anybody = self._anybody.remember(places, (exits, rows))
        port = self._ports.remember(keys, (exits,))
        self._anybody.cut(self._mine.limit)
        vote = ~mine.known & ~port.known
        again = mine.known & ~port.known
        reused = ~mine.known & port.known
        same = mine.values[0] == exits
        tried = np.stack([again, again & same, reused, reused & (port.values[0] == exits)], axis=1)
        self.trials.add(Columns.of(rows.astype(np.uint64), tried.astype(np.uint32)))
        between = anybody.known & (anybody.values[1] != rows)
        lag = moment.lag(Moment(mine.values[1], mine.values[2]))
        self._add_returns(rows, again, same, between, anybody.values[0] == exits, lag)
        chosen = np.flatnonzero(vote)
        group = flows.kind[chosen].astype(np.int64) + _CLASSES * ~flows.four[chosen]
        trial, lag, own, other = self._votes.add(rows[chosen], exits[chosen], group, moment.take(chosen))
        kind = flows.kind[chosen][trial].astype(np.int64)
        self._sandwiches.add(_outcomes((rows[chosen][trial] * _CLASSES + kind) * _LAGS + lag, own, other))
        changed = np.flatnonzero(flows.changed >= 0)
        bits = np.uint64(1) << (flows.changed[changed] >> _BLOCK_BITS).astype(np.uint64)
        np.bitwise_or.at(self.port_blocks, rows[changed], bits)
        return vote

    def _add_returns(
        self, rows: Index, again: Mask, same: Mask, between: Mask, others: Mask, lag: Index
    ) -> None:
        """Returns by whether somebody else was at the destination meanwhile."""
        place = rows * _LAGS + lag
        matched = again & between
        self._returns.add(_outcomes(place[matched], same[matched], others[matched]))
        lone = again & ~between
        counts = np.stack([np.ones(np.count_nonzero(lone)), same[lone]], axis=1).astype(np.uint32)
        self._lone.add(Columns.of(place[lone].astype(np.uint64), counts))

    def sessions(self, rows: Index) -> NDArray[np.uint32]:
        """Sessions that these peers began."""
        return np.where(self._timed[rows], self._session[rows] + 1, 0).astype(np.uint32)

    def vote_sandwiches(self, rows: Index) -> Sandwiches:
        """Matched votes of these peers, shape (P, classes, lags)."""
        return _dense(self._sandwiches.total(), rows, len(self._session), (_CLASSES, _LAGS))

    def return_sandwiches(self, rows: Index) -> Sandwiches:
        """Matched returns of these peers, shape (P, lags)."""
        return _dense(self._returns.total(), rows, len(self._session), (_LAGS,))

    def lone_returns(self, rows: Index) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Returns without a control, tried and true, shape (P, lags) each."""
        total = self._lone.total()
        dense = np.zeros((len(self._session) * _LAGS, 2), np.uint32)
        dense[total.keys.astype(np.int64)] = total.counts
        dense = dense.reshape(-1, _LAGS, 2)[rows]
        return dense[..., 0].copy(), dense[..., 1].copy()


class _LastVotes:
    """Whose vote was the last in each family and class, and the last of each peer in each class."""

    def __init__(self) -> None:
        self._last_row = np.full(2 * _CLASSES, _NOBODY, np.int64)
        self._last_exit = np.zeros(2 * _CLASSES, np.int64)
        self._exit = np.zeros(0, np.int32)
        self._time = np.zeros(0, np.float32)
        self._session = np.zeros(0, np.int32)

    def grow(self, rows: int) -> None:
        more = rows * _CLASSES - len(self._exit)
        self._exit = np.append(self._exit, np.full(more, _NOBODY, np.int32))
        self._time = np.append(self._time, np.zeros(more, np.float32))
        self._session = np.append(self._session, np.zeros(more, np.int32))

    def add(self, rows: Index, exits: Index, group: Index, moment: Moment) -> tuple[Index, Index, Mask, Mask]:
        """Votes in their order; `group` is the class, plus `_CLASSES` for IPv6.

        Returns:
            Which of them are matched trials, the lag of each of those, whether its exit is that of the peer's
            last vote, and that of the other's.
        """
        other_row, other_exit = _previous(group, (rows, exits), (self._last_row, self._last_exit))
        own = rows * _CLASSES + group % _CLASSES
        exit_, time, session = _previous(
            own, (exits, moment.time, moment.session), (self._exit, self._time, self._session)
        )
        trial = np.flatnonzero((exit_ != _NOBODY) & (other_row != _NOBODY) & (other_row != rows))
        lag = moment.take(trial).lag(Moment(time[trial], session[trial]))
        return trial, lag, exit_[trial] == exits[trial], other_exit[trial] == exits[trial]


def _previous(
    keys: Index, values: tuple[NDArray[Any], ...], stored: tuple[NDArray[Any], ...]
) -> list[NDArray[Any]]:
    """What was last put under each key, before each of n puts; the last ones are stored for the next time."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(keys)]
    found: list[NDArray[Any]] = []
    for value, last in zip(values, stored, strict=True):
        sorted_values = value[order].astype(last.dtype)
        before = np.where(first, last[ordered], np.roll(sorted_values, 1))
        last[ordered] = sorted_values  # of equal keys the last assignment stays
        result = np.empty(len(keys), last.dtype)
        result[order] = before
        found.append(result)
    return found


def _outcomes(place: Index, own: Mask, other: Mask) -> Columns:
    """Matched trials as counts by place and outcome."""
    outcome = np.where(own, np.where(other, 0, 1), np.where(other, 2, 3))
    keys = (place * _OUTCOMES + outcome).astype(np.uint64)
    return Columns.of(keys, np.ones((len(keys), 1), np.uint32))


def _dense(total: Columns, rows: Index, everyone: int, shape: tuple[int, ...]) -> Sandwiches:
    """Counts by place and outcome of some rows."""
    each = int(np.prod(shape)) * _OUTCOMES
    place = np.full(everyone, -1, np.int64)
    place[rows] = np.arange(len(rows))
    keys = total.keys.astype(np.int64)
    mine = place[keys // each]
    kept = mine >= 0
    dense = np.zeros(len(rows) * each, np.uint32)
    dense[mine[kept] * each + keys[kept] % each] = total.counts[kept, 0]
    outcomes = dense.reshape(len(rows), *shape, _OUTCOMES)
    both, mine_alone, other = (np.ascontiguousarray(outcomes[..., index]) for index in range(3))
    tried = outcomes.sum(axis=-1, dtype=np.uint32)
    return Sandwiches(tried, both, mine_alone, other)
