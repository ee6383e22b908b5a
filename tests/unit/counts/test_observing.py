# SPDX-License-Identifier: Apache-2.0
"""What the analysis is told of the panes: votes by pane, of one family, in its own numbers."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from detector.analysis.verdict import judge_family
from detector.base.family import Family, pack
from detector.base.outcomes import Outcome
from detector.base.verdicts import Verdict
from detector.counts import words
from detector.counts.columns import Columns, merge
from detector.counts.observing import Flood, PoolRanges, floods, observe
from detector.counts.roster import Exits, Member, Roster
from detector.counts.window import Counts, Window
from detector.predictors.guess import GUESS

SHAPE = (len(Family), len(Outcome))


def votes(*pairs: tuple[int, int, int]) -> Counts:
    """Votes of TCP: row, exit number, how many; as many flows."""
    keys = np.array([row << 32 | exit_ for row, exit_, _ in pairs], np.uint64)
    many = np.array([count for _, _, count in pairs], np.uint64)
    return Counts(np.zeros(SHAPE, np.int64), flows=Columns.of(keys, many), votes=Columns.of(keys, many))


def test_votes_far_apart_are_compared() -> None:
    """Two votes in one pane, two in the next but one: four pairs lie far apart, and half of them agree."""
    exits = Exits()
    for text in ("2001:db8::1", "203.0.113.1", "203.0.113.2"):
        exits.number(pack(ip_address(text)))
    roster = Roster(exits)
    roster.add(
        [Member(1, Family.IPV6, False, "six", {}), Member(2, Family.IPV4, False, "four", {})],
    )
    window = Window(60.0, 6, SHAPE, 0.0)
    window.add(votes((0, 0, 5), (1, 1, 2)))
    window.turn(20.0)
    window.add(votes((1, 1, 1), (1, 2, 1)))
    seen = observe(
        Family.IPV4,
        window.total(),
        roster,
        exits,
        [],
        exclusive=False,
        rules_say=frozenset({Verdict.PINNED}),
        panes=window.panes,
        seconds=window.seconds,
    ).observation
    assert seen.panes is not None
    assert seen.panes.exits.tolist() == [[2, 0], [0, 0], [1, 1]]
    assert (seen.panes.far_tried.tolist(), seen.panes.far_same.tolist()) == ([4.0], [2.0])
    assert seen.panes.agreement.tolist() == [1.0, 0.0, 0.0]
    assert seen.seconds == 20.0
    assert seen.rules_say == frozenset({Verdict.PINNED})


def test_a_window_is_as_old_as_what_it_keeps() -> None:
    """Seconds since it began, and no more than the panes that it holds."""
    window = Window(60.0, 6, SHAPE, 100.0)
    window.turn(104.0)
    assert window.seconds == 4.0
    window.turn(1000.0)
    assert 60.0 <= window.seconds <= 70.0


def test_pools_that_nobody_tells_are_guessed() -> None:
    """Sixteen neighbours in use are taken for a pool, which says that it is a guess."""
    exits = Exits()
    for number in range(16):
        exits.number(pack(ip_address(f"203.0.113.{68 + number}")))
    exits.number(pack(ip_address("203.0.113.7")))
    roster = Roster(exits)
    roster.add([Member(0, Family.IPV4, False, "four", {})])
    counts = votes(*((0, number, 9 if number == 2 else 3) for number in range(17)))
    ends = pack(ip_address("203.0.113.0")), pack(ip_address("203.0.113.255"))
    known = PoolRanges(Family.IPV4, 256, (ends,), "a rule")
    for pools, sizes, origins in (([], (16,), (GUESS,)), ([known], (256,), ("a rule",))):
        seen = observe(Family.IPV4, counts, roster, exits, pools, exclusive=False).observation
        assert (seen.pool_sizes, seen.pool_origins) == (sizes, origins)
        assert judge_family(seen).pool_guessed == (not pools)
        assert seen.pool[seen.exits.index(ip_address("203.0.113.7"))] == (0 if pools else -1)


@pytest.mark.parametrize(
    ("refused", "named"),
    [
        ({0: 100}, Flood(Family.IPV4, "one", 100, 100)),
        ({0: 99}, None),
        ({0: 50, 1: 50}, None),
        ({0: 50, 1: 51}, Flood(Family.IPV4, "two", 51, 101)),
        ({2: 9000, 0: 51, 1: 50}, Flood(Family.IPV4, "one", 51, 101)),
    ],
)
def test_who_floods_a_table_is_named(refused: dict[int, int], named: Flood | None) -> None:
    """With more than half of a hundred refused flows at least, in a family by itself."""
    roster = Roster(Exits())
    roster.add(
        [
            Member(1, Family.IPV4, False, "one", {}),
            Member(2, Family.IPV4, False, "two", {}),
            Member(3, Family.IPV6, False, "six", {}),
        ]
    )
    rows = np.array(list(refused), np.int64)
    many = np.array(list(refused.values()), np.uint64)
    other = Columns.of(words.keys_of(np.arange(3), words.UNTRACKED), np.full(3, 10_000, np.uint64))
    counts = Counts(
        np.zeros(SHAPE, np.int64),
        words=merge([other, Columns.of(words.keys_of(rows, words.REFUSED), many)]),
    )
    found = {flood.family: flood for flood in floods(counts, roster)}
    assert found.pop(Family.IPV6, None) == (Flood(Family.IPV6, "six", 9000, 9000) if 2 in refused else None)
    assert list(found.values()) == ([named] if named else [])
