# SPDX-License-Identifier: Apache-2.0
"""Counts by key, as columns: what a pane of the window is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Columns:
    """n different keys in ascending order, each with a count or with c of them.

    A sum has the type of what is added up. Flows are counted in 64 bits: 49,700 a second fill 32 in a day.

    Attributes:
        keys: shape (n,), uint64.
        counts: shape (n,) or (n, c), unsigned.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls, width: int | None = None) -> Columns:
        """No keys; without a width there is one count of 64 bits for each, otherwise so many of 32."""
        counts = np.empty(0, np.uint64) if width is None else np.empty((0, width), np.uint32)
        return cls(np.empty(0, np.uint64), counts)

    @classmethod
    def of(cls, keys: NDArray[np.uint64], counts: NDArray[np.unsignedinteger]) -> Columns:
        """From keys in any order, of which equal ones are added up."""
        return _added(keys, counts, "quicksort")

    def keep(self, mask: NDArray[np.bool_]) -> Columns:
        """The rows where the mask, shape (n,), is true."""
        return Columns(self.keys[mask], self.counts[mask])

    def at(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The counts of these keys, where each has one; 0 for a key that is not there."""
        if not len(self.keys):
            return np.zeros(keys.shape, np.uint64)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.counts[place], 0).astype(np.uint64)


def merge(parts: Sequence[Columns]) -> Columns:
    """The sum of several (at least one), which is the one itself where the others are empty."""
    filled = [part for part in parts if len(part.keys)]
    if len(filled) <= 1:
        return filled[0] if filled else parts[0]
    keys = np.concatenate([part.keys for part in filled])
    # Runs that are in order already: a stable sort only merges them.
    return _added(keys, np.concatenate([part.counts for part in filled]), "stable")


def _added(
    keys: NDArray[np.uint64], counts: NDArray[np.unsignedinteger], kind: Literal["quicksort", "stable"]
) -> Columns:
    if not len(keys):
        return Columns(keys, counts)
    order = np.argsort(keys, kind=kind)
    ordered, sorted_counts = keys[order], counts[order]
    first = np.empty(len(keys), np.bool_)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    if first.all():
        return Columns(ordered, sorted_counts)
    starts = np.flatnonzero(first)
    return Columns(ordered[starts], np.add.reduceat(sorted_counts, starts, axis=0, dtype=counts.dtype))
