# SPDX-License-Identifier: Apache-2.0
"""Cells: the tuples of exits that are possible over some relays, with exact weights.

One fraction drives the pools of all relays when each scales the same hash (docs/leak-modes.md §5, linkability
of a set of pools). The fraction is cut at the breakpoints of every pool; all users between two neighbouring
breakpoints have the same exits everywhere. Weights are integers, so nothing is rounded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

HASHES = 1 << 32
"""How many values the kernel's hash has."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Tuples by weight.

    Attributes:
        counts: weight -> how many tuples have it; the probability of each is weight / `total`.
        total: sum of all weights.
        dealt: every unit of weight is one user, so nothing is left to chance; otherwise users are drawn.
    """

    counts: Mapping[int, int]
    total: int
    dealt: bool = False

    @classmethod
    def even(cls, number: int) -> Cells:
        """So many tuples, each as probable as the others."""
        return cls({1: number}, number)

    @property
    def number(self) -> int:
        """How many tuples there are."""
        return sum(self.counts.values())

    @property
    def bits(self) -> float:
        """Entropy of the tuple, in bits."""
        return math.fsum(
            count * (weight / self.total) * (math.log2(self.total) - math.log2(weight))
            for weight, count in self.counts.items()
        )

    @property
    def collision(self) -> float:
        """Probability that two users who have nothing to do with each other have the same tuple."""
        return math.fsum(count * (weight / self.total) ** 2 for weight, count in self.counts.items())

    def distinct(self, users: int) -> tuple[float, float]:
        """Expected number of different tuples among so many users, and its standard deviation.

        The variance is the asymptotic one of multinomial occupancy (Karlin 1967, theorem 4).
        """
        if self.dealt:
            return float(self.number), 0.0
        expected = variance = hits = 0.0
        for weight, count in self.counts.items():
            chance = weight / self.total
            missed = math.exp(users * math.log1p(-chance)) if chance < 1 else 0.0
            seen = -math.expm1(users * math.log1p(-chance)) if chance < 1 else 1.0
            expected += count * seen
            variance += count * missed * seen
            hits += count * chance * missed
        return expected, math.sqrt(max(variance - users * hits * hits, 0.0))


def breakpoints(pool_size: int, total: int = HASHES) -> Iterable[int]:
    """Where the exit changes: the smallest values that ``value * pool_size // total`` brings to 1, 2, ...

    With `total` 2^32 these are those of ``reciprocal_scale`` in include/linux/math.h.
    """
    return (-(-exit_ * total // pool_size) for exit_ in range(1, pool_size))


def cut(points: Sequence[int], total: int = HASHES, *, dealt: bool = False) -> Cells:
    """The cells between breakpoints, ascending, of 0..total-1."""
    ends = [0, *points, total]
    return Cells(Counter(high - low for low, high in pairwise(ends) if high > low), total, dealt)


def guessed(points: Sequence[int], more: Iterable[int], total: int = HASHES) -> float:
    """Chance to name the exit of one more pool when the cell is known, by guessing the most probable one.

    Args:
        points: breakpoints of the pools before, ascending.
        more: those of the pool in question, ascending.
        total: how many values there are.
    """
    ends = sorted({0, total, *more})
    widest = place = 0
    for low, high in pairwise([0, *points, total]):
        best = 0
        while ends[place] < high:
            best = max(best, min(ends[place + 1], high) - max(ends[place], low))
            if ends[place + 1] > high:
                break
            place += 1
        widest += best
    return widest / total
