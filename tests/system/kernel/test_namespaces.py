# SPDX-License-Identifier: Apache-2.0
"""A relay is a network namespace: flows of another one are not counted, however equal they are."""

from __future__ import annotations

from itertools import product

import pytest

from tests.system.kernel.program import Program
from tests.system.kernel.topology import LEAVE, Flow, Relay, built, peer, site

pytestmark = pytest.mark.root


def test_equal_flows_in_another_namespace_are_not_ours(relay: Relay, program: Program) -> None:
    """Equal interfaces, addresses, rules and flows elsewhere leave no trace: neither a count nor a loss."""
    rules = f"{LEAVE} snat to 203.0.113.10-203.0.113.40"
    rules6 = [f"{LEAVE} snat to 2001:db8:e::10-2001:db8:e::40"]
    relay.rules(rules, rules6=rules6)
    program.add_all(peer(1, version) for version in (4, 6))
    flows = [
        Flow(peer(1, version), site(number, version), 26000 + number, protocol)
        for version, protocol, number in product((4, 6), ("udp", "tcp"), range(5))
    ]
    with built() as twin:
        twin.rules(rules, rules6=rules6)
        assert (twin.tun0, twin.tun1) == (relay.tun0, relay.tun1)
        twin.send(flows)
        assert len(twin.listing()) == len(flows)
    assert not program.drain().flows
    assert not program.outcomes()
    relay.send(flows)
    assert program.drain().flows.total() == len(flows)
