# SPDX-License-Identifier: Apache-2.0
"""The window holds the last panes, and no more."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.counts.columns import Columns
from detector.counts.window import Counts, Window

SHAPE = (2, 9)
SPAN, PANES = 120.0, 4


def counts(key: int, flows: int) -> Counts:
    """So many flows of one pair, one trial a flow, and as many outcomes."""
    column = Columns.of(np.array([key], np.uint64), np.array([flows], np.uint64))
    return Counts(np.full(SHAPE, flows, np.int64), column, column, column, column)


def flows(window: Window) -> int:
    """All flows in the window, which trials and outcomes have to agree with."""
    total = window.total()
    found = int(total.flows.counts.sum())
    assert all(int(column.counts.sum()) == found for column in total.columns)
    assert (total.outcomes == found).all()
    return found


@given(st.lists(st.tuples(st.floats(0, 90), st.integers(1, 100)), max_size=30))
def test_the_window_holds_its_span_and_at_most_a_pane_more(steps: list[tuple[float, int]]) -> None:
    """Everything of the last `span` seconds is in it, and nothing older than a pane more than that."""
    window, now = Window(SPAN, PANES, SHAPE, 0.0), 0.0
    log: list[tuple[float, int]] = []
    for pause, number in steps:
        now += pause
        window.turn(now)
        window.add(counts(len(log) % 3, number))
        log.append((now, number))
        young = sum(number for when, number in log if now - when < SPAN)
        possible = sum(number for when, number in log if now - when < SPAN + SPAN / PANES)
        assert young <= flows(window) <= possible


def test_each_pane_that_is_over_is_counted() -> None:
    """Turning says how many panes went by, also when several did at once; time between them is not lost."""
    window = Window(SPAN, PANES, SHAPE, 100.0)
    assert [window.turn(now) for now in (100.0, 129.9, 130.0, 159.0, 225.0, 225.0)] == [0, 0, 1, 0, 3, 0]


def test_no_count_overflows() -> None:
    """Two counts that fill 31 bits each and more add up to what they are."""
    window = Window(SPAN, PANES, SHAPE, 0.0)
    for _ in range(2):
        window.add(counts(7, 3_000_000_000))
    window.turn(SPAN / PANES)
    window.add(counts(7, 3_000_000_000))
    assert flows(window) == 9_000_000_000


def test_a_long_pause_empties_the_window() -> None:
    """After a pause longer than the window nothing of before is left."""
    window = Window(SPAN, PANES, SHAPE, 0.0)
    window.add(counts(7, 5))
    window.turn(SPAN + SPAN / PANES)
    assert flows(window) == 0
