# SPDX-License-Identifier: Apache-2.0
"""Where in its pool each canary sits, from the window's counts.

A canary's place in the pool is what relays of a fleet are compared by (docs/fleet.md). It is told as an
interval of the pool, without the exit address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from detector.base.family import Family, pack
from detector.base.flows import FLOW_CLASSES
from detector.counts.observing import PoolRanges
from detector.counts.roster import Exits, Roster
from detector.counts.window import Counts
from detector.counts.words import unpacked

_EXIT_MASK = np.uint64(0xFFFFFFFF)
_EXIT_BITS = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Place:
    """One canary in one family.

    Attributes:
        name: the canary's.
        votes: its flows to new destinations from new source ports.
        kept: share of its votes that took its most used exit; None without a vote.
        index: the most used exit's place in its pool, from 0 on; None where it is in no pool that is known.
        pool_size: addresses in that pool, 0 for none.
    """

    name: str
    family: Family
    votes: int = 0
    kept: float | None = None
    index: int | None = None
    pool_size: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The part of the pool, [k / N, (k + 1) / N), that the most used exit is."""
        if self.index is None:
            return None
        return self.index / self.pool_size, (self.index + 1) / self.pool_size


def places(counts: Counts, roster: Roster, exits: Exits, pools: Sequence[PoolRanges]) -> tuple[Place, ...]:
    """The place of each canary that the relay has, by name and family; several slots of one add up."""
    rows: dict[tuple[Family, str], list[int]] = {}
    for row, about in roster.canaries().items():
        rows.setdefault(about, []).append(row)
    if not rows:
        return ()
    packed = [pack(address) for address in exits.addresses()]
    return tuple(
        _place(family, name, _used(counts, of), packed, pools) for (family, name), of in sorted(rows.items())
    )


def _used(counts: Counts, rows: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Votes and flows by exit number; keys of pairs are ascending, so a row's stand together."""
    found: dict[int, tuple[int, int]] = {}
    for row in rows:
        ends = np.array([row, row + 1], np.uint64) << _EXIT_BITS
        first, end = np.searchsorted(counts.flows.keys, ends)
        keys = counts.flows.keys[first:end]
        votes = sum(unpacked(counts.votes.at(keys), len(FLOW_CLASSES)), np.zeros(len(keys), np.uint32))
        for key, more, flows in zip(keys, votes, counts.flows.counts[first:end], strict=True):
            number = int(key & _EXIT_MASK)
            before = found.get(number, (0, 0))
            found[number] = before[0] + int(more), before[1] + int(flows)
    return found


def _place(
    family: Family,
    name: str,
    used: dict[int, tuple[int, int]],
    packed: Sequence[bytes],
    pools: Sequence[PoolRanges],
) -> Place:
    votes = sum(count for count, _ in used.values())
    if not used:
        return Place(name, family)
    most = max(used, key=lambda number: (used[number], -number))
    kept = used[most][0] / votes if votes else None
    for pool in pools:
        if pool.family is family and pool.holds(packed[most]):
            return Place(name, family, votes, kept, _index(pool, packed[most]), pool.size)
    return Place(name, family, votes, kept)


def _index(pool: PoolRanges, packed: bytes) -> int:
    """How many addresses of the pool come before this one of it."""
    here = int.from_bytes(packed)
    ranges = ((int.from_bytes(first), int.from_bytes(last)) for first, last in pool.ranges)
    return sum(max(min(last, here - 1) - first + 1, 0) for first, last in ranges)
