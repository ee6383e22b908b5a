# SPDX-License-Identifier: Apache-2.0
"""Tunnel addresses are found where they were put, however full their lines are, and gone when removed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import count, islice

import pytest

from detector.base.family import Address
from detector.kernel.peer_table import PEERS_IN_LINE, PROBES, line_of
from detector.kernel.tables import peer_lines
from tests.system.kernel.program import SMALL, counted_by_conntrack, running
from tests.system.kernel.topology import LEAVE, Flow, Relay, peer, site

pytestmark = pytest.mark.root

SIZES = replace(SMALL, peers=64)


def _crowd(relay: Relay, version: int) -> list[Address]:
    """More tunnel addresses with the same first line than its lines have room for."""
    everyone = (peer(number, version) for number in count(1))
    wanted = line_of(relay.tun0, peer(1, version)) % peer_lines(SIZES)
    same = (one for one in everyone if line_of(relay.tun0, one) % peer_lines(SIZES) == wanted)
    return list(islice(same, PEERS_IN_LINE * PROBES + 3))


@pytest.mark.parametrize("version", [4, 6])
def test_addresses_that_find_their_lines_full_are_counted_too(relay: Relay, version: int) -> None:
    """Each flow is counted for its own peer; where one was removed a new one has its place."""
    relay.rules(f"{LEAVE} snat to 203.0.113.7", rules6=[f"{LEAVE} snat to 2001:db8:e::7"])
    crowd = _crowd(relay, version)
    flows = [Flow(one, site(1, version), 20000 + number) for number, one in enumerate(crowd)]
    with running(relay, SIZES) as program:
        slots = program.add_all(crowd)
        relay.send(flows)
        assert program.drain().flows == counted_by_conntrack(relay.listing(), slots)
        for gone in (crowd[0], crowd[-1]):  # one from a line, one from the trie
            program.table.remove(relay.tun0, gone, gone.max_prefixlen)
            del slots[gone]
        again = crowd[-2]  # from the trie into the place in the line
        slots[again] = program.add(again)
        relay.forget()
        relay.send(flows)
        assert program.drain().flows == counted_by_conntrack(relay.listing(), slots)
        program.table.remove(relay.tun0, again, again.max_prefixlen)
        del slots[again]
        relay.forget()
        relay.send(flows)
        assert program.drain().flows == counted_by_conntrack(relay.listing(), slots)


def test_removing_what_is_not_there_is_no_error(relay: Relay) -> None:
    """Neither of an address nor of a network."""
    with running(relay, SIZES) as program:
        program.table.remove(relay.tun0, ip_address("10.9.8.7"), 32)
        program.table.remove(relay.tun0, ip_address("10.9.0.0"), 16)
