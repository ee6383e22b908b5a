# SPDX-License-Identifier: Apache-2.0
"""From the window's counts to what the analysis is told, one observation a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.analysis.observation import Loss, Observation, Panes, Sandwiches, Trials
from detector.analysis.panes import panes_of
from detector.base.family import Address, Family, pack
from detector.base.flows import FLOW_CLASSES, LAGS
from detector.base.outcomes import LOST_FLOWS, LOST_MEASUREMENTS, Outcome
from detector.base.verdicts import Verdict
from detector.counts import words
from detector.counts.roster import NOBODY, Exits, Roster
from detector.counts.window import Counts
from detector.counts.words import Words, unpacked
from detector.predictors.guess import GUESS, guessed_ranges

_EXIT_MASK = np.uint64(0xFFFFFFFF)
_EXIT_BITS = np.uint64(32)
FLOOD = 100  # flows of a family that were refused in the window; fewer say nothing about who it was


@dataclass(frozen=True, slots=True)
class PoolRanges:
    """One exit pool as the sensor tells it.

    Attributes:
        ranges: (first, last), as 16 bytes each.
        origin: where the rules that choose from it stand, for people.
    """

    family: Family
    size: int
    ranges: tuple[tuple[bytes, bytes], ...]
    origin: str = ""

    @classmethod
    def of(cls, told: dict[str, Any]) -> PoolRanges:
        """From the sensor's message."""
        ranges = tuple((pack(ip_address(first)), pack(ip_address(last))) for first, last in told["ranges"])
        return cls(Family(told["family"]), told["size"], ranges, told["origin"])

    def holds(self, packed: bytes) -> bool:
        """Whether an exit, as 16 bytes, is one of its addresses."""
        return any(first <= packed <= last for first, last in self.ranges)


@dataclass(frozen=True, slots=True)
class Observed:
    """An observation and which rows of the roster its peers are."""

    observation: Observation
    rows: NDArray[np.int64]


def observe(
    family: Family,
    counts: Counts,
    roster: Roster,
    exits: Exits,
    pools: Sequence[PoolRanges],
    *,
    exclusive: bool,
    rules_say: frozenset[Verdict] = frozenset(),
    panes: Sequence[Counts] = (),
    seconds: float | None = None,
) -> Observed:
    """What the window says of one family.

    Args:
        family: which.
        counts: of the whole window.
        roster: whose rows they are.
        exits: whose numbers they have.
        pools: of every family.
        exclusive: the rules map peers to exits one to one.
        rules_say: what the rules deserve to be called.
        panes: the counts of each pane of the window, oldest first; none where nobody has them.
        seconds: how long ago the oldest of the counts began.
    """
    pair_rows = (counts.flows.keys >> _EXIT_BITS).astype(np.int64)
    rows = roster.select(family, np.concatenate([pair_rows, words.rows_of(counts.words)]))
    peer_of_row = np.full(roster.rows, NOBODY, np.int64)
    peer_of_row[rows] = np.arange(len(rows))
    mine = peer_of_row[pair_rows] != NOBODY if len(pair_rows) else np.zeros(0, np.bool_)
    pairs = counts.flows.keep(mine)
    exit_numbers = (pairs.keys & _EXIT_MASK).astype(np.int64)
    predicted = roster.predicted(rows)
    used = _Numbering(family, exits, exit_numbers, predicted.values())
    of_family = [pool for pool in pools if pool.family is family] or _guessed(family, used.addresses)
    class_votes = np.stack(unpacked(counts.votes.at(pairs.keys), len(FLOW_CLASSES)), axis=-1)
    told = Words(counts.words, peer_of_row, len(rows))
    returns = _sandwiches(told, words.RETURN_SANDWICHES, len(LAGS))
    lone = _trials(told, words.LONE_RETURNS, len(LAGS))
    tried, hit = unpacked(told.one(words.DESTINATION), 2)
    ports_tried, ports_true = unpacked(told.one(words.SAME_PORT), 2)
    return Observed(
        Observation(
            family=family,
            peers=len(rows),
            exits=used.addresses,
            pool=np.array([_pool_of(address, of_family) for address in used.addresses], np.int32),
            pool_sizes=tuple(pool.size for pool in of_family),
            pool_origins=tuple(pool.origin for pool in of_family),
            peer=peer_of_row[pair_rows[mine]].astype(np.uint32),
            exit=used.renumber(exit_numbers).astype(np.uint32),
            flows=pairs.counts,
            votes=class_votes.sum(axis=1, dtype=np.uint32),
            session_starts=counts.firsts.at(pairs.keys).astype(np.uint32),
            same_destination=_all_returns(returns, lone),
            # The kernel adds to the two one after the other, and may have been between them when it was read.
            same_port=Trials(ports_tried, np.minimum(ports_true, ports_tried)),
            destination_predictor=Trials(tried, hit, told.one(words.EXPECTED) / words.EXPECTED_UNIT),
            predicted={name: used.renumber(table).astype(np.int32) for name, table in predicted.items()},
            is_network=roster.is_network(rows),
            exclusive_map=exclusive,
            rules_say=rules_say,
            seconds=seconds,
            panes=_by_pane(panes, peer_of_row, used, len(rows)),
            loss=_loss(family, counts),
            class_votes=class_votes,
            vote_sandwiches=_sandwiches(told, words.VOTE_SANDWICHES, len(FLOW_CLASSES), len(LAGS)),
            return_sandwiches=returns,
            lone_returns=lone,
            sessions=told.one(words.SESSIONS).astype(np.uint32),
            untranslated_global=told.one(words.UNTRANSLATED_GLOBAL),
            untranslated_private=told.one(words.UNTRANSLATED_PRIVATE),
            untracked=told.one(words.UNTRACKED),
            port_blocks=told.port_blocks(),
        ),
        rows,
    )


def _guessed(family: Family, exits: Sequence[Address]) -> list[PoolRanges]:
    """Pools that the exits in use make, where nobody tells any."""
    return [
        PoolRanges(family, one.size, ((pack(one.first), pack(one.last)),), GUESS)
        for one in guessed_ranges(exits)
    ]


def _by_pane(
    panes: Sequence[Counts], peer_of_row: NDArray[np.int64], used: _Numbering, peers: int
) -> Panes | None:
    """What the votes of each pane say, of the peers of one family."""
    if not panes:
        return None
    parts = []
    for number, pane in enumerate(panes):
        peer = peer_of_row[(pane.votes.keys >> _EXIT_BITS).astype(np.int64)]
        mine = peer != NOBODY
        votes = np.stack(unpacked(pane.votes.counts[mine], len(FLOW_CLASSES)), axis=-1).sum(axis=1)
        exit_ = used.renumber((pane.votes.keys[mine] & _EXIT_MASK).astype(np.int64))
        parts.append((np.full(len(exit_), number), peer[mine], exit_, votes.astype(np.float64)))
    pane_, peer_, exit_, votes_ = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = exit_ != NOBODY
    pane, peer, used_exit = (column[kept].astype(np.intp) for column in (pane_, peer_, exit_))
    return panes_of(pane, peer, used_exit, votes_[kept], (len(panes), peers, len(used.addresses)))


@dataclass(frozen=True, slots=True)
class Flood:
    """One peer that has most of what the tables had no room for.

    Attributes:
        name: its pseudonym.
        flows: of it in the window, that a table had no room for.
        refused: such flows of all peers of the family.
    """

    family: Family
    name: str
    flows: int
    refused: int


def floods(counts: Counts, roster: Roster) -> tuple[Flood, ...]:
    """Who floods the tables: in each family the peer with more than half of the flows that were refused."""
    refused = words.only(counts.words, words.REFUSED)
    rows = words.rows_of(refused)
    found = []
    for family in Family:
        mine = refused.keep(np.isin(rows, roster.select(family, rows)))
        if not len(mine):
            continue
        most, total = int(np.argmax(mine.counts)), int(mine.counts.sum())
        flows = int(mine.counts[most])
        if 2 * flows > total and total >= FLOOD:
            (name,) = roster.pseudonyms(words.rows_of(mine)[most : most + 1])
            found.append(Flood(family, name, flows, total))
    return tuple(found)


def _sandwiches(told: Words, word: int, *shape: int) -> Sandwiches:
    packed = told.dense(word, int(np.prod(shape)))
    both, mine, other, none = (part.reshape(-1, *shape) for part in unpacked(packed, 4))
    return Sandwiches(both + mine + other + none, both, mine, other)


def _trials(told: Words, word: int, count: int) -> Trials:
    tried, true = unpacked(told.dense(word, count), 2)
    return Trials(tried, np.minimum(true, tried))


def _all_returns(returns: Sandwiches, lone: Trials) -> Trials:
    """With a control or without, at every lag."""
    tried = returns.tried.sum(axis=1, dtype=np.uint32) + lone.tried.sum(axis=1, dtype=np.uint32)
    true = (returns.both + returns.mine).sum(axis=1, dtype=np.uint32)
    return Trials(tried, true + lone.true.sum(axis=1, dtype=np.uint32))


class _Numbering:
    """Exits of one family, numbered anew without gaps."""

    def __init__(
        self,
        family: Family,
        exits: Exits,
        seen: NDArray[np.int64],
        predicted: Sequence[NDArray[np.int32]] | Any,
    ) -> None:
        known = exits.addresses()
        self._new = np.full(len(known) + 1, NOBODY, np.int64)  # the last place is NOBODY's own
        wanted = np.zeros(len(known) + 1, np.bool_)
        wanted[seen] = True
        for table in predicted:
            wanted[table.ravel()] = True
        wanted[:-1] &= exits.families() == list(Family).index(family)
        wanted[-1] = False
        old = np.flatnonzero(wanted)
        self._new[old] = np.arange(len(old))
        self.addresses: tuple[Address, ...] = tuple(known[number] for number in old.tolist())

    def renumber(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The new numbers; `NOBODY` stays itself."""
        new: NDArray[np.int64] = self._new[numbers]
        return new


def _pool_of(address: Address, pools: Sequence[PoolRanges]) -> int:
    packed = pack(address)
    return next((index for index, pool in enumerate(pools) if pool.holds(packed)), -1)


def _loss(family: Family, counts: Counts) -> Loss:
    row = counts.outcomes[list(Family).index(family)]
    return Loss(
        seen=int(row[Outcome.COUNTED]),
        lost=sum(int(row[outcome]) for outcome in LOST_FLOWS.values()),
        unattributed=int(row[Outcome.UNATTRIBUTED]),
        unmeasured=sum(int(row[outcome]) for outcome in LOST_MEASUREMENTS.values()),
    )
