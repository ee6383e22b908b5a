# SPDX-License-Identifier: Apache-2.0
"""What an adversary links over 1, 2 ... n relays: the figures, from cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from detector.base.errors import UsageError
from detector.simulate.cells import HASHES
from detector.simulate.mappings import Mapping


@dataclass(frozen=True, slots=True)
class After:
    """After so many relays.

    Attributes:
        relays: how many.
        pool: size of the last one's pool.
        combinations: tuples that so many pools could make, the product of their sizes.
        cells: tuples that the mapping makes, so users that can be told apart at best; 1 where a user has
            none of its own.
        distinct: expected number of different tuples among the users.
        deviation: its standard deviation.
        bits: entropy of a user's tuple: what it says about who it is.
        excess_bits: log2(combinations / cells): what exits on some relays say about those on others; 0 where
            relays choose independently.
        guess: chance to name the last relay's exit for whoever saw the exits on the relays before.
        blind: the same for whoever saw nothing.
        same_tuple: share of the other users that are expected to have the same tuple.
    """

    relays: int
    pool: int
    combinations: int
    cells: int
    distinct: float
    deviation: float
    bits: float
    excess_bits: float
    guess: float
    blind: float
    same_tuple: float


@dataclass(frozen=True, slots=True)
class Linkage:
    """A mapping over all relays."""

    mapping: Mapping
    after: tuple[After, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "mapping": self.mapping.name,
            "meaning": self.mapping.meaning,
            "caveat": self.mapping.caveat,
            "after": [_rounded(asdict(one)) for one in self.after],
        }


def linkage(mapping: Mapping, pools: Sequence[int], users: int) -> Linkage:
    """What is linked over relays with pools of these sizes.

    Raises:
        UsageError: a size or the number of users is none, or does not go with the mapping.
    """
    _check(pools, users)
    after = []
    combinations = 1
    for number, (pool, (cells, guess)) in enumerate(zip(pools, mapping.steps(pools, users), strict=True), 1):
        combinations *= pool
        distinct, deviation = cells.distinct(users)
        after.append(
            After(
                relays=number,
                pool=pool,
                combinations=combinations,
                cells=cells.number,
                distinct=distinct,
                deviation=deviation,
                bits=cells.bits,
                excess_bits=math.log2(combinations / cells.number) if mapping.sticky else 0.0,
                guess=guess,
                blind=1 / pool,
                same_tuple=cells.collision,
            )
        )
    return Linkage(mapping, tuple(after))


def _check(pools: Sequence[int], users: int) -> None:
    if not pools:
        raise UsageError("there is no pool", "give --pools 60,11,8")
    for pool in pools:
        if not 1 <= pool <= HASHES:
            raise UsageError(f"a pool of {pool} exits is none", "a pool has 1 to 2^32 exits")
    if not 1 <= users <= HASHES:
        raise UsageError(f"there cannot be {users} keys", "give 1 to 2^32")


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {
        name: value if isinstance(value, int) else float(f"{value:.6g}") + 0.0
        for name, value in figures.items()
    }
