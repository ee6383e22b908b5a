# SPDX-License-Identifier: Apache-2.0
"""A canary's place in the pool is told, and it counts among no peers."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from detector.base.canaries import canary_name, canary_pseudonym
from detector.base.family import Family, pack
from detector.counts.canaries import Place, places
from detector.counts.columns import Columns
from detector.counts.observing import PoolRanges, observe
from detector.counts.roster import Exits, Member, Roster
from detector.counts.window import Counts
from detector.daemon.counting import SHAPE

POOL = PoolRanges(
    Family.IPV4,
    8,
    (
        (pack(ip_address("203.0.113.10")), pack(ip_address("203.0.113.13"))),
        (pack(ip_address("203.0.113.20")), pack(ip_address("203.0.113.23"))),
    ),
)


def window(exits: Exits, rows: list[tuple[int, str, int, int]]) -> Counts:
    """Counts of (row, exit, flows, votes)."""
    keys, counts = [], []
    for row, address, flows, votes in rows:
        keys.append(row << 32 | exits.number(pack(ip_address(address))))
        counts.append((flows, votes))
    flows_of, votes_of = (
        Columns.of(np.array(keys, np.uint64), np.array([one[at] for one in counts], np.uint64))
        for at in (0, 1)
    )
    return Counts(np.zeros(SHAPE, np.int64), flows=flows_of, votes=votes_of)


def roster(exits: Exits) -> Roster:
    """A peer in row 0, canaries in rows 1 to 3: c1 on two interfaces, c2 without a flow."""
    table = Roster(exits)
    names = ["peer-aaaaaaaa", canary_pseudonym("c1"), canary_pseudonym("c1"), canary_pseudonym("c2")]
    table.add([Member(slot, Family.IPV4, False, name, {}) for slot, name in enumerate(names)])
    return table


def test_a_canary_sits_where_its_most_used_exit_is() -> None:
    """Votes of all its slots add up; the place counts over the ranges of the pool, and names no exit."""
    exits = Exits()
    table = roster(exits)
    counts = window(
        exits,
        [
            (0, "203.0.113.10", 9, 9),
            (1, "203.0.113.21", 3, 3),
            (1, "203.0.113.11", 2, 2),
            (2, "203.0.113.21", 5, 1),
        ],
    )
    first, second = places(counts, table, exits, [POOL])
    assert first == Place("c1", Family.IPV4, votes=6, kept=4 / 6, index=5, pool_size=8)
    assert first.interval == (5 / 8, 6 / 8)
    assert second == Place("c2", Family.IPV4)
    assert second.interval is None


def test_votes_decide_before_flows() -> None:
    """Many flows to one site are one vote: the exit of more votes is the place, flows only break a tie."""
    exits = Exits()
    table = roster(exits)
    rows = [(1, "203.0.113.10", 90, 1), (1, "203.0.113.23", 2, 2)]
    assert places(window(exits, rows), table, exits, [POOL])[0].index == 7
    rows[1] = (1, "203.0.113.23", 2, 1)
    assert places(window(exits, rows), table, exits, [POOL])[0].index == 0


def test_an_exit_outside_of_every_pool_has_no_place() -> None:
    """A stray exit is no position; the votes are told."""
    exits = Exits()
    table = roster(exits)
    [place, _] = places(window(exits, [(1, "192.0.2.1", 2, 2)]), table, exits, [POOL])
    assert (place.votes, place.kept, place.interval, place.pool_size) == (2, 1.0, None, 0)


def test_a_canary_is_none_of_the_peers() -> None:
    """No part of the observation holds what canaries did; one that left has no place."""
    exits = Exits()
    table = roster(exits)
    counts = window(exits, [(0, "203.0.113.10", 9, 9), (1, "203.0.113.21", 3, 3), (2, "203.0.113.21", 5, 1)])
    seen = observe(Family.IPV4, counts, table, exits, [POOL], exclusive=False).observation
    assert (seen.peers, [str(one) for one in seen.exits], seen.flows.tolist()) == (1, ["203.0.113.10"], [9])
    table.retire([1, 2, 3])
    assert places(counts, table, exits, [POOL]) == ()
    table.forget(np.array([0, 1, 2]))
    table.add([Member(1, Family.IPV4, False, "peer-bbbbbbbb", {})])  # takes the row of c2
    assert table.select(Family.IPV4, np.empty(0, np.int64)).tolist() == [0, 3]


def test_names() -> None:
    """A peer's pseudonym is no canary's name."""
    assert canary_name(canary_pseudonym("c-1")) == "c-1"
    assert canary_name("peer-aaaaaaaa") is None
