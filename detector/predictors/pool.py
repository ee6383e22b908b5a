# SPDX-License-Identifier: Apache-2.0
"""What a predictor is told of a pool and of the rule that chooses from it: plain values, no rule objects.

A pool is arithmetic on its ends and never a list of its addresses, so that one of 2^64 costs no more than one
of four; only a map whose numbers stand for addresses one by one is kept as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from detector.base.family import Address

MOST_LISTED = 1 << 16  # addresses in a map: beyond that, predictors that walk through it say nothing


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


@dataclass(frozen=True)
class ExitPool:
    """What one rule chooses from: a range, several of them, or the list that a map's numbers stand for.

    Attributes:
        first, last: the range, or the lowest and highest of the addresses.
        listed: the exits by number (``0 : A, 1 : B, ...``), empty where the pool is ranges.
        hashed: the seeded hash that chooses from `listed`, where the rule has one.
        parts: the ranges where they are several, in the order of their positions; empty for one.
        origin: where the rule stands, for people; empty where nobody knows.
    """

    first: Address
    last: Address
    listed: tuple[Address, ...] = ()
    hashed: HashRule | None = None
    parts: tuple[tuple[Address, Address], ...] = ()
    origin: str = ""

    @cached_property
    def size(self) -> int:
        """How many positions it has."""
        return len(self.listed) or self._ends[-1]

    @property
    def is_range(self) -> bool:
        """Whether it is one range of addresses that follow each other."""
        return not self.listed and len(self.parts) < 2

    @property
    def is_walkable(self) -> bool:
        """Whether a predictor may count through its positions."""
        return self.size > 1 and len(self.listed) <= MOST_LISTED

    def at(self, index: int) -> Address | None:
        """The exit at a position, None outside of the pool."""
        if not 0 <= index < self.size:
            return None
        if self.listed:
            return self.listed[index]
        before = 0
        for (first, _), end in zip(self._parts, self._ends, strict=True):
            if index < end:
                return type(self.first)(int(first) + index - before)
            before = end
        return None

    def index(self, address: int) -> int | None:
        """The position of an exit, given as a number; None for one that is not in the pool.

        Where a map has an address more than once, it is the first of them.
        """
        if self.listed:
            return self._numbers.get(address)
        before = 0
        for (first, last), end in zip(self._parts, self._ends, strict=True):
            if int(first) <= address <= int(last):
                return before + address - int(first)
            before = end
        return None

    @cached_property
    def _parts(self) -> tuple[tuple[Address, Address], ...]:
        return self.parts or ((self.first, self.last),)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(int(last) - int(first) + 1 for first, last in self._parts))

    @cached_property
    def _numbers(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for number, address in enumerate(self.listed):
            found.setdefault(int(address), number)
        return found


Prediction = Sequence[Address | None]
