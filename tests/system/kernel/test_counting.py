# SPDX-License-Identifier: Apache-2.0
"""Every flow of a peer is counted once under its exit, and every other one under what became of it."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_network
from itertools import product

import pytest

from detector.base.family import Family
from detector.kernel.tables import Outcome
from tests.system.kernel.program import Program, counted_by_conntrack
from tests.system.kernel.topology import LEAVE, Flow, Relay, peer, site

pytestmark = pytest.mark.root

POOL4 = f"{LEAVE} snat to 203.0.113.10-203.0.113.40"
POOL6 = f"{LEAVE} snat to 2001:db8:e::10-2001:db8:e::40"


def _mixed(peers: int, per_peer: int) -> list[Flow]:
    """Flows of all protocols and both families, in an order that is drawn once."""
    drawn = random.Random(7)  # noqa: S311
    flows = [
        Flow(peer(number, version), site(drawn.randrange(20), version), 21000 + 3 * index, protocol)
        for version, number, index in product((4, 6), range(1, peers + 1), range(per_peer))
        for protocol in (("udp", "tcp", "icmp")[index % 3],)
    ]
    drawn.shuffle(flows)
    return flows


def test_every_count_is_the_one_of_conntrack(relay: Relay, program: Program) -> None:
    """TCP, UDP and ICMP, both families, a pool each: every pair's count is what conntrack lists."""
    relay.rules(POOL4, rules6=[POOL6])
    slots = program.add_all(peer(number, version) for version in (4, 6) for number in range(1, 14))
    flows = _mixed(13, 27)
    relay.send(flows)
    listing = relay.listing()
    assert len(listing) == len(flows)
    counted = program.drain()
    assert counted.flows == counted_by_conntrack(listing, slots)
    assert len(counted.flows) > 100
    assert program.outcomes() == {(family, Outcome.COUNTED): 13 * 27 for family in Family}


def test_a_flow_is_counted_once(relay: Relay, program: Program) -> None:
    """Packets of established flows, and UDP and ICMP follow-ups with and without answers, add nothing."""
    relay.rules(POOL4, rules6=[POOL6])
    slots = program.add_all(peer(1, version) for version in (4, 6))
    flows = [
        Flow(peer(1, version), site(number, version), 22000 + number, protocol)
        for version, protocol in product((4, 6), ("udp", "tcp", "icmp"))
        for number in range(3)
    ]
    relay.send(flows, times=7)
    relay.send([flow for flow in flows if flow.protocol != "tcp"], times=2)
    listing = relay.listing()
    assert len(listing) == len(flows)
    assert program.drain().flows == counted_by_conntrack(listing, slots)
    assert program.outcomes() == {(family, Outcome.COUNTED): 9 for family in Family}


@pytest.mark.parametrize(("version", "family"), [(4, Family.IPV4), (6, Family.IPV6)])
def test_flows_that_are_no_peers_choice_have_their_own_outcome(
    relay: Relay, program: Program, version: int, family: Family
) -> None:
    """No slot: unattributed if it came by a tunnel, else nobody's; an untranslated flow is apart."""
    untouched = f"ip{'' if version == 4 else '6'} daddr {site(99, version)} accept"
    relay.rules(untouched, POOL4) if version == 4 else relay.rules(rules6=[untouched, POOL6])
    program.add(peer(1, version))
    relay.send(Flow(peer(1, version), site(99, version), 23000 + number) for number in range(3))
    relay.send(Flow(peer(2, version), site(1, version), 23000 + number) for number in range(5))
    relay.send_own(site(1, version), 7)
    assert not program.drain().flows
    assert program.outcomes() == {
        (family, Outcome.NOT_TRANSLATED): 3,
        (family, Outcome.UNATTRIBUTED): 5,
        (family, Outcome.NOT_A_PEER): 7,
    }


def test_equal_tunnel_addresses_of_two_interfaces_are_two_peers(relay: Relay, program: Program) -> None:
    """The same address behind two interfaces counts for the slot of the interface it came in by."""
    relay.rules(POOL4, rules6=[POOL6])
    ours, theirs = program.add(peer(1)), program.add(peer(1), relay.tun1)
    relay.send(Flow(peer(1), site(number), 24000 + number) for number in range(9))
    relay.send((Flow(peer(1), site(number), 24500 + number) for number in range(4)), other=True)
    by_slot: Counter[int] = Counter()
    for (slot, _), flows in program.drain().flows.items():
        by_slot[slot] += flows
    assert by_slot == {ours: 9, theirs: 4}


def test_wide_allowed_ips_count_and_the_longest_prefix_wins(relay: Relay, program: Program) -> None:
    """Networks in both families take the flows of their addresses, except those of a longer prefix."""
    relay.rules(POOL4, rules6=[POOL6])
    slots = {
        name: program.add(ip_network(name))
        for name in ("10.66.8.0/21", "10.66.9.0/24", "fd66::/64", "fd66::8000/113")
    }
    slots["one"] = program.add(peer(0x0905))
    sources = {
        "10.66.8.0/21": [0x0801, 0x0FFE], "10.66.9.0/24": [0x0901, 0x0906, 0x09FF], "one": [0x0905],
    }  # fmt: skip
    flows = [
        Flow(peer(host), site(number), 25000 + number)
        for hosts in sources.values()
        for host in hosts
        for number in range(2)
    ]
    flows += [Flow(peer(host, 6), site(1, 6), 25000) for host in (0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    flows += [Flow(peer(0x1001), site(1), 25000)]  # just beyond the /21
    relay.send(flows)
    by_slot: Counter[int] = Counter()
    for (slot, _), number in program.drain().flows.items():
        by_slot[slot] += number
    expected = {name: 2 * len(hosts) for name, hosts in sources.items()} | {
        "fd66::/64": 1,
        "fd66::8000/113": 3,
    }
    assert by_slot == {slots[name]: number for name, number in expected.items()}
    assert program.outcomes()[Family.IPV4, Outcome.UNATTRIBUTED] == 1
