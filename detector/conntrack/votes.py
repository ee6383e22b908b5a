# SPDX-License-Identifier: Apache-2.0
"""A sample of the votes, kept to the end: to guess pools, for the kernel's hash, for changes of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from detector.analysis.kernel_columns import Packed, kernel_exits, kernel_hashes, within
from detector.base.family import Address
from detector.conntrack.addresses import Mask
from detector.conntrack.reader import Flows

KEPT_VOTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Votes:
    """Votes in the order of time, n of them.

    Attributes:
        row: the peer's.
        exit_id: number of the exit.
        time: seconds, NaN where it is not known.
        source, exit, destination, zone: what the kernel's hash looks at, shape (n, ...).
    """

    row: NDArray[np.int64]
    exit_id: NDArray[np.int64]
    time: NDArray[np.float64]
    source: Packed = field(repr=False)
    exit: Packed = field(repr=False)
    destination: Packed = field(repr=False)
    zone: NDArray[np.uint32] = field(repr=False)
    four: Mask = field(repr=False)

    @classmethod
    def of(cls, flows: Flows, rows: NDArray[np.int64], exits: NDArray[np.int64]) -> Votes:
        """These flows."""
        return cls(
            rows, exits, flows.time, flows.source, flows.exit, flows.destination, flows.zone, flows.four
        )

    @classmethod
    def joined(cls, parts: Sequence[Votes]) -> Votes:
        """All of several (at least one)."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def take(self, which: NDArray[np.intp] | Mask) -> Votes:
        """Some of them, by index or mask."""
        return Votes(*(getattr(self, one.name)[which] for one in fields(self)))

    def __len__(self) -> int:
        return len(self.row)


class KeptVotes:
    """Every vote, until there are too many; then every second one, and so on.

    Args:
        room: how many are kept.
    """

    def __init__(self, room: int = KEPT_VOTES) -> None:
        self._room = room
        self._parts: list[Votes] = []
        self._every = 1
        self._seen = 0

    def add(self, votes: Votes) -> None:
        """Some more, later ones."""
        mine = (self._seen + np.arange(len(votes))) % self._every == 0
        self._seen += len(votes)
        if mine.any():
            self._parts.append(votes.take(mine))
        while sum(map(len, self._parts)) > self._room:
            whole = Votes.joined(self._parts)
            self._parts = [whole.take(np.arange(0, len(whole), 2))]
            self._every *= 2

    def all(self) -> Votes | None:
        """Those that are kept, None where there are none."""
        if not self._parts:
            return None
        self._parts = [Votes.joined(self._parts)]
        return self._parts[0]


def destination_trials(
    votes: Votes, ranges: Sequence[tuple[Address, Address]], most: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Votes tried on the kernel's hash of source and destination over the ranges that hold their exit.

    Args:
        votes: n of them.
        ranges: in the order in which they are tried.
        most: how many ranges an exit is tried on.

    Returns:
        The rows of the votes that were tried, whether each was hit by any of them, and the chance of that.
    """
    tries = np.zeros(len(votes), np.int64)
    hit = np.zeros(len(votes), np.bool_)
    missed = np.ones(len(votes), np.float64)
    for first, last in ranges:
        which = np.flatnonzero((tries < most) & within(votes.exit, first, last))
        if not len(which):
            continue
        some = votes.take(which)
        chosen = kernel_exits(some.source, some.destination, some.zone, first, last)
        tries[which] += 1
        hit[which] |= (chosen == some.exit).all(axis=1)
        missed[which] *= 1 - 1 / (int(last) - int(first) + 1)
    tried = np.flatnonzero(tries)
    return votes.row[tried], hit[tried], 1 - missed[tried]


def hashes(votes: Votes) -> NDArray[np.uint32]:
    """The kernel's hash of source and destination that chooses the last word of the exit, shape (n,)."""
    return kernel_hashes(votes.source, votes.destination, votes.zone, four=bool(votes.four.all()))
