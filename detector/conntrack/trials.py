# SPDX-License-Identifier: Apache-2.0
"""The trials of `kernel_destination`, made where the destinations are: here, at each vote.

Without rules nobody says what the pools are. Then some votes are kept until the end and tried on the ranges
that the exits themselves make: such a guess can miss, but it hits no oftener than chance unless it is right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed, kernel_exits, within
from detector.base.family import Address, pack
from detector.base.ranges import AddressRange, normalised
from detector.conntrack.lines import Flows, as_bytes
from detector.counts.columns import Columns
from detector.counts.window import TRIAL_COUNTS
from detector.daemon.counting import EXPECTED_UNIT
from detector.kernel.tables import MAX_POOLS
from detector.nat.mapping import Mapping, mapping_of
from detector.nat.model import RuleSet

KEPT_VOTES = 1 << 18
_CACHED = 1 << 17
_WIDEST_GAP = 64  # between two neighbours in a guessed pool
_LEAST_SHARE = 0.25  # of a guessed pool that is in use
_FIRST = TRIAL_COUNTS.index("destination_tried")


@dataclass(frozen=True, slots=True)
class Votes:
    """Votes, n of them: the peer's row, and what the kernel's hash looks at, shape (n, ...)."""

    row: NDArray[np.int64]
    source: Packed = field(repr=False)
    exit: Packed = field(repr=False)
    destination: Packed = field(repr=False)
    zone: NDArray[np.uint32] = field(repr=False)

    @classmethod
    def of(cls, flows: Flows, rows: NDArray[np.int64]) -> Votes:
        """These flows."""
        return cls(rows, flows.source, flows.exit, flows.destination, flows.zone)

    @classmethod
    def joined(cls, parts: Sequence[Votes]) -> Votes:
        """All of several (at least one)."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def take(self, which: NDArray[np.intp]) -> Votes:
        """Some of them, by index."""
        return Votes(*(getattr(self, one.name)[which] for one in fields(self)))


class DestinationTrials:
    """Tries votes on the pools of a mapping; without one, on pools that are guessed at the end."""

    def __init__(self, mapping: Mapping | None) -> None:
        self._mapping = mapping
        self._ranges = [] if mapping is None else list(mapping.ranges)
        self._pooled = _Pooled(self._ranges)
        self._kept: list[Votes] = []
        self._room = KEPT_VOTES

    def in_pools(self, flows: Flows) -> NDArray[np.bool_]:
        """Whose exit is in a pool, shape (n,)."""
        return np.fromiter(map(self._pooled.__getitem__, as_bytes(flows.exit)), np.bool_, len(flows))

    def add(self, votes: Votes) -> Columns:
        """The trials of these votes by row; nothing yet while the pools are not known."""
        if self._mapping is not None:
            return tried(votes, self._ranges)
        if self._room > 0 and len(votes.row):
            self._kept.append(votes.take(np.arange(min(self._room, len(votes.row)))))
            self._room -= len(self._kept[-1].row)
        return Columns.empty(len(TRIAL_COUNTS))

    def finish(self, exits: Iterable[Address]) -> tuple[Mapping, Columns]:
        """The mapping, and the trials that were put off, by row.

        Args:
            exits: every exit of the peers.
        """
        if self._mapping is not None:
            return self._mapping, Columns.empty(len(TRIAL_COUNTS))
        mapping = mapping_of(RuleSet(), list(guessed_pools(exits)))
        if not self._kept:
            return mapping, Columns.empty(len(TRIAL_COUNTS))
        return mapping, tried(Votes.joined(self._kept), mapping.ranges)


class _Pooled(dict[bytes, bool]):
    """Whether an exit, as 16 bytes, is in one of some ranges; remembers the recent ones."""

    def __init__(self, ranges: Iterable[tuple[Address, Address]]) -> None:
        super().__init__()
        parts = normalised(AddressRange(first, last) for first, last in ranges)
        ends = sorted((pack(part.first), pack(part.last)) for part in parts)
        self._firsts, self._lasts = [first for first, _ in ends], [last for _, last in ends]

    def __missing__(self, packed: bytes) -> bool:
        if len(self) >= _CACHED:
            self.clear()
        place = bisect_right(self._firsts, packed) - 1
        self[packed] = inside = place >= 0 and packed <= self._lasts[place]
        return inside


def guessed_pools(exits: Iterable[Address]) -> Iterator[AddressRange]:
    """The ranges that exits make: neighbours that are not far apart, when they fill a good part of it."""
    run: list[Address] = []
    for address in sorted(exits, key=lambda one: (one.version, int(one))):
        if run and (address.version != run[0].version or int(address) - int(run[-1]) > _WIDEST_GAP):
            yield from _pool(run)
            run = []
        run.append(address)
    yield from _pool(run)


def _pool(run: Sequence[Address]) -> Iterator[AddressRange]:
    if len(run) > 1 and len(run) >= _LEAST_SHARE * (int(run[-1]) - int(run[0]) + 1):
        yield AddressRange(run[0], run[-1])


def tried(votes: Votes, ranges: Sequence[tuple[Address, Address]]) -> Columns:
    """Per row: votes that were tried, hits, and hits that chance gives; one trial a vote, in the first range.

    Args:
        votes: n of them.
        ranges: what the kernel's hash chooses from; the first `MAX_POOLS` are tried, as in the kernel.
    """
    counts = np.zeros((len(votes.row), len(TRIAL_COUNTS)), np.uint32)
    left = np.ones(len(votes.row), np.bool_)
    for first, last in ranges[:MAX_POOLS]:
        which = np.flatnonzero(left & within(votes.exit, first, last))
        if not len(which):
            continue
        some = votes.take(which)
        chosen = kernel_exits(some.source, some.destination, some.zone, first, last)
        counts[which, _FIRST] = 1
        counts[which, _FIRST + 1] = (chosen == some.exit).all(axis=1)
        counts[which, _FIRST + 2] = EXPECTED_UNIT // (int(last) - int(first) + 1)
        left[which] = False
    which = np.flatnonzero(~left)
    return Columns.of(votes.row[which].astype(np.uint64), counts[which])
