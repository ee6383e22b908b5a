# SPDX-License-Identifier: Apache-2.0
"""What a predictor is told of a pool and of the rule that chooses from it: plain values, no rule objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detector.base.family import Address


@dataclass(frozen=True, slots=True)
class HashRule:
    """nft's ``jhash FIELDS mod MODULUS seed SEED`` over nothing but the source address.

    Attributes:
        masks: per field, the bits of the source address that are hashed, None for all of them.
        modulus: how many numbers the hash is brought to.
        seed: the seed that the rule gives.
    """

    masks: tuple[int | None, ...]
    modulus: int
    seed: int


@dataclass(frozen=True, slots=True)
class ExitPool:
    """One pool of exits, as a range or as the list that a map's numbers stand for.

    Attributes:
        first, last: the range, or the lowest and highest of the listed addresses.
        listed: the exits by number (``0 : A, 1 : B, ...``), empty where the pool is a range.
        hashed: the seeded hash that chooses from `listed`, where the rule has one.
    """

    first: Address
    last: Address
    listed: tuple[Address, ...] = ()
    hashed: HashRule | None = None

    @property
    def size(self) -> int:
        """How many positions it has."""
        return len(self.listed) or int(self.last) - int(self.first) + 1

    def at(self, index: int) -> Address | None:
        """The exit at a position, None outside of the pool."""
        if not 0 <= index < self.size:
            return None
        return self.listed[index] if self.listed else type(self.first)(int(self.first) + index)


Prediction = Sequence[Address | None]
