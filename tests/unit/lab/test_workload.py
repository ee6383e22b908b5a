# SPDX-License-Identifier: Apache-2.0
"""The order of a lab's flows: the contrasts it makes and the promises that conntrack's count rests on."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.lab.workload import FIRST_PORT, PORTS, Flow, Planner, default_workload


@given(peers=st.integers(1, 12), flows=st.integers(1, 600), places=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_workload_has_the_flows_asked_for_and_each_once(
    peers: int, flows: int, places: int, seed: int
) -> None:
    """Whatever is asked for, there are exactly so many flows, no two of them with the same five-tuple."""
    work = default_workload(peers, flows, places, seed)
    assert len(work) == flows
    assert len(set(work)) == flows
    assert all(0 <= flow.destination < places and 0 <= flow.peer < peers for flow in work)
    assert all(FIRST_PORT <= flow.source_port < FIRST_PORT + PORTS for flow in work)


def _kinds(flows: list[Flow]) -> dict[tuple[int, Family], list[str]]:
    destinations: dict[tuple[int, Family], set[int]] = defaultdict(set)
    ports: dict[tuple[int, Family], set[tuple[str, int]]] = defaultdict(set)
    kinds = defaultdict(list)
    for flow in flows:
        who = flow.peer, flow.family
        place, port = flow.destination in destinations[who], (flow.protocol, flow.source_port) in ports[who]
        kinds[who].append(
            {(False, False): "vote", (True, False): "return", (False, True): "reuse"}[place, port]
        )
        destinations[who].add(flow.destination)
        ports[who].add((flow.protocol, flow.source_port))
    return kinds


def test_the_default_makes_every_contrast() -> None:
    """Of 32 flows of each peer in each family, 16 are votes, 8 return to a destination, 8 reuse a port."""
    kinds = _kinds(list(default_workload(40, 2560, 24)))
    assert len(kinds) == 80
    for kind in kinds.values():
        assert [kind.count(name) for name in ("vote", "return", "reuse")] == [16, 8, 8]


def test_the_same_seed_gives_the_same_flows() -> None:
    """A workload can be repeated, and another seed gives another one."""
    assert default_workload(5, 200, 24, 3) == default_workload(5, 200, 24, 3)
    assert default_workload(5, 200, 24, 3) != default_workload(5, 200, 24, 4)


def test_running_out_of_destinations_is_said() -> None:
    """A plan that needs more destinations than there are is refused in words."""
    planner = Planner(2, 3)
    planner.visits(3)
    with pytest.raises(UsageError, match="every destination"):
        planner.visits(1)
