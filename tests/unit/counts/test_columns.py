# SPDX-License-Identifier: Apache-2.0
"""Columns add up like a Counter."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.counts.columns import Columns, merge

WIDTH = 2
ROWS = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 1 << 32, (1 << 64) - 1]), st.integers(0, 1000), st.integers(0, 1000)),
    max_size=30,
)
Row = tuple[int, int, int]


def columns(rows: list[Row]) -> Columns:
    """From keys and counts."""
    keys = np.array([row[0] for row in rows], np.uint64)
    return Columns.of(keys, np.array([row[1:] for row in rows], np.uint32).reshape(-1, WIDTH))


def counted(rows: list[Row]) -> dict[int, tuple[int, ...]]:
    """The same by Counters, one a count."""
    counters = [Counter[int]() for _ in range(WIDTH)]
    for key, *counts in rows:
        for counter, count in zip(counters, counts, strict=True):
            counter[key] += count
    return {key: tuple(counter[key] for counter in counters) for key, *_ in rows}


def as_dict(found: Columns) -> dict[int, tuple[int, ...]]:
    """What columns hold; their keys have to be different and ascending."""
    assert (found.keys[1:] > found.keys[:-1]).all()
    return {int(key): tuple(map(int, row)) for key, row in zip(found.keys, found.counts, strict=True)}


@given(ROWS)
def test_equal_keys_are_added_up(rows: list[Row]) -> None:
    """Rows in any order give what a Counter gives, in ascending order of the keys."""
    assert as_dict(columns(rows)) == counted(rows)


@given(st.lists(ROWS, min_size=1, max_size=5))
def test_merging_is_adding_up(parts: list[list[Row]]) -> None:
    """The merge of parts is what a Counter gives over all of them, empty parts or not."""
    merged = merge([columns(part) for part in parts])
    assert as_dict(merged) == counted([row for part in parts for row in part])
    assert merged.counts.dtype == np.uint32
    assert merged.counts.shape[1] == WIDTH


@given(ROWS)
def test_keep_takes_the_rows_of_a_mask(rows: list[Row]) -> None:
    """Only keys under the mask stay."""
    found = columns(rows)
    kept = found.keep(found.keys % np.uint64(2) == 0)
    assert as_dict(kept) == {key: counts for key, counts in counted(rows).items() if key % 2 == 0}
