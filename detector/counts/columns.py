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
    """n different keys in ascending order, each with c counts.

    Attributes:
        keys: shape (n,), uint64.
        counts: shape (n, c), uint32.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.uint32]

    @classmethod
    def empty(cls, width: int) -> Columns:
        """No keys."""
        return cls(np.empty(0, np.uint64), np.empty((0, width), np.uint32))

    @classmethod
    def of(cls, keys: NDArray[np.uint64], counts: NDArray[np.uint32]) -> Columns:
        """From keys in any order, of which equal ones are added up."""
        return _added(keys, counts, "quicksort")

    def keep(self, mask: NDArray[np.bool_]) -> Columns:
        """The rows where the mask, shape (n,), is true."""
        return Columns(self.keys[mask], self.counts[mask])


def merge(parts: Sequence[Columns]) -> Columns:
    """The sum of several (at least one), which is the one itself where the others are empty."""
    filled = [part for part in parts if len(part.keys)]
    if len(filled) <= 1:
        return filled[0] if filled else parts[0]
    keys = np.concatenate([part.keys for part in filled])
    # Runs that are in order already: a stable sort only merges them.
    return _added(keys, np.concatenate([part.counts for part in filled]), "stable")


def _added(
    keys: NDArray[np.uint64], counts: NDArray[np.uint32], kind: Literal["quicksort", "stable"]
) -> Columns:
    if not len(keys):
        return Columns.empty(counts.shape[1])
    order = np.argsort(keys, kind=kind)
    ordered, sorted_counts = keys[order], counts.take(order, axis=0)
    first = np.empty(len(keys), np.bool_)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    if first.all():
        return Columns(ordered, sorted_counts)
    starts = np.flatnonzero(first)
    return Columns(ordered[starts], np.add.reduceat(sorted_counts, starts, axis=0, dtype=np.uint32))
