# SPDX-License-Identifier: Apache-2.0
"""Counts by key, as columns: what a pane of the window is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        if not len(keys):
            return cls.empty(counts.shape[1])
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        return cls(ordered[starts], np.add.reduceat(counts[order], starts, axis=0, dtype=np.uint32))

    def keep(self, mask: NDArray[np.bool_]) -> Columns:
        """The rows where the mask, shape (n,), is true."""
        return Columns(self.keys[mask], self.counts[mask])


def merge(parts: Sequence[Columns]) -> Columns:
    """The sum of several (at least one), which is the one itself where the others are empty."""
    filled = [part for part in parts if len(part.keys)]
    if len(filled) <= 1:
        return filled[0] if filled else parts[0]
    return Columns.of(
        np.concatenate([part.keys for part in filled]), np.concatenate([part.counts for part in filled])
    )
