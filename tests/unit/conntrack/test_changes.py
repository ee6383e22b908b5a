# SPDX-License-Identifier: Apache-2.0
"""One moment at which everybody's exit is another is a change of the rules; many of them are sessions."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from detector.conntrack.changes import drawn_anew_once
from detector.conntrack.votes import Votes

EXITS, PEERS = 16, 30


def votes(redraws: list[list[float]], *, keep: float = 1.0, each: int = 20, seed: int = 1) -> Votes:
    """Votes once a minute; each peer draws a new exit at its own moments, and keeps it most of the time."""
    draw = random.Random(seed)  # noqa: S311 - repeatable on purpose
    rows: list[tuple[int, int, float]] = []
    for peer, moments in enumerate(redraws):
        exit_, left = draw.randrange(EXITS), sorted(moments)
        for number in range(each):
            time = 60.0 * number + peer
            while left and left[0] <= time:
                exit_ = draw.randrange(EXITS)
                left.pop(0)
            rows.append((peer, exit_ if draw.random() < keep else draw.randrange(EXITS), time))
    row, exit_id, when = zip(*rows, strict=True)
    empty = np.zeros((len(rows), 16), np.uint8)
    return Votes(
        np.array(row), np.array(exit_id), np.array(when, np.float64), empty, empty, empty,
        np.zeros(len(rows), np.uint32), np.ones(len(rows), np.bool_),
    )  # fmt: skip


def test_a_reload_is_found_with_its_moment() -> None:
    """Every peer moves at 600 s, most to another exit: that moment, and who moved."""
    change = drawn_anew_once(votes([[600.0]] * PEERS))
    assert change is not None
    assert 570 < change.time <= 660
    assert change.of == PEERS
    assert 0.8 * PEERS <= change.moved <= PEERS


def test_a_reload_is_found_among_a_few_who_move_anyway() -> None:
    """Some peers out of thirty with a move of their own do not hide it."""
    assert drawn_anew_once(votes([[600.0, 240.0]] * 3 + [[600.0]] * 27)) is not None


@pytest.mark.parametrize(
    "redraws",
    [
        [[]] * PEERS,  # nobody moves
        [[300.0, 600.0, 900.0]] * PEERS,  # sessions that everybody ends at the same time
        [[60.0 * (1 + peer % 18)] for peer in range(PEERS)],  # sessions of their own
        [[600.0]] * 6 + [[]] * 24,  # a part of them
        [[600.0]] * 4,  # too few peers
    ],
)
def test_sessions_and_silence_are_no_reload(redraws: list[list[float]]) -> None:
    """Nobody, several moments, other moments, a part of the peers or a handful of them."""
    assert drawn_anew_once(votes(redraws)) is None


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_exits_that_nobody_keeps_are_no_reload(keep: float) -> None:
    """A new exit for each flow moves everybody all the time."""
    assert drawn_anew_once(votes([[]] * PEERS, keep=keep)) is None


def test_flows_without_times_tell_no_moment() -> None:
    """A listing in no order."""
    some = votes([[600.0]] * PEERS)
    untimed = replace(some, time=np.full(len(some), np.nan))
    assert drawn_anew_once(untimed) is None
