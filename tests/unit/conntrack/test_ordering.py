# SPDX-License-Identifier: Apache-2.0
"""Flows come out in the order of time, and each stands for one flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from detector.conntrack.forms import PLAIN
from detector.conntrack.ordering import Ordering, Selection
from detector.conntrack.reader import Flows, Lines, Reader
from tests.unit.conntrack.listings import event, flows, text

LINES = [event(flow) for flow in flows(peers=3, each=20)]


def flows_of(lines: Sequence[str]) -> Flows:
    """Lines as flows."""
    read = Reader(PLAIN, Lines()).read(text(lines))
    assert read is not None
    return read


def ordered(parts: Sequence[Sequence[str]], held: int = 1000) -> tuple[list[float], Ordering]:
    """The times that come out."""
    ordering = Ordering(held)
    out = [one for part in parts for one in ordering.add(flows_of(part))]
    out += ordering.finish()
    return [time for one in out for time in one.time.tolist()], ordering


TIMES = flows_of(LINES).time.tolist()


def test_what_fits_is_put_in_order() -> None:
    """Files that were given in the wrong order, and lines that were printed newest first."""
    assert ordered([LINES[30:], LINES[:30]])[0] == TIMES
    times, ordering = ordered([LINES[::-1]])
    assert times == TIMES
    assert ordering.newest_first
    assert ordering.late == 0


def test_a_long_log_is_put_in_order_as_far_as_is_held() -> None:
    """Lines that are out of place by a little come out right, and nothing is late."""
    swapped = [line for start in range(0, 60, 4) for line in reversed(LINES[start : start + 4])]
    times, ordering = ordered([swapped[start : start + 5] for start in range(0, 60, 5)], held=12)
    assert times == TIMES
    assert ordering.late == 0


def test_a_long_log_that_is_newest_first_is_read_so() -> None:
    """More than can be held: it goes on backwards, and nothing is late."""
    times, ordering = ordered([LINES[::-1][start : start + 5] for start in range(0, 60, 5)], held=12)
    assert times == TIMES[::-1]
    assert ordering.newest_first
    assert ordering.late == 0


def test_what_comes_too_late_is_counted() -> None:
    """Two halves the wrong way round, and neither can be held."""
    _, ordering = ordered([[one] for one in LINES[30:] + LINES[:30]], held=4)
    assert ordering.back == 1
    assert ordering.late >= 25


def test_flows_without_times_stay_where_they_are() -> None:
    """A listing is in no order, and stays in it."""
    bare = [line.split("\t")[1] for line in LINES]
    given = flows_of(bare)
    ordering = Ordering(10)
    out = [*ordering.add(given), *ordering.finish()]
    assert np.concatenate([one.port for one in out]).tolist() == given.port.tolist()


ENDS = [line.replace("[NEW]", "[DESTROY]") for line in LINES]


@pytest.mark.parametrize("held", [5, 1000])
@pytest.mark.parametrize(
    ("parts", "flows_counted", "others"),
    [
        ([LINES], 60, 0),
        ([ENDS], 60, 0),
        ([LINES[:1] + ENDS], 1, 60),
        ([LINES, ENDS], 60, 60),
    ],
)
def test_a_flow_is_counted_once(parts: list[list[str]], flows_counted: int, others: int, held: int) -> None:
    """Its beginning counts; its end does only where no line tells of a beginning."""
    lines = Lines()
    selection = Selection(lines, held)
    some = [selection.add(flows_of(part)) for part in parts]
    some.append(selection.finish())
    assert sum(len(one) for one in some if one is not None) == flows_counted == lines.flows
    assert lines.other_events == others
    assert selection.by_ends == (parts[0] is ENDS)


def test_ends_before_the_first_beginning_are_no_flows() -> None:
    """A recording often opens with ends of flows that began before it."""
    lines = Lines()
    selection = Selection(lines)
    assert selection.add(flows_of(ENDS[:5])) is None
    counted = selection.add(flows_of(LINES))
    assert counted is not None
    assert (len(counted), lines.other_events, selection.by_ends) == (60, 5, False)
    assert selection.finish() is None
