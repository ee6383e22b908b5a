# SPDX-License-Identifier: Apache-2.0
"""Votes, the two contrasts and the sessions, for flows whose exits are known."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product

import pytest

from detector.base.family import Address
from detector.config.model import Tables
from detector.kernel.drain import clear_slot
from detector.kernel.tables import Outcome
from tests.system.kernel.program import SMALL, Model, Program, running
from tests.system.kernel.topology import EXITS4, EXITS6, LEAVE, Flow, Relay, peer, site

pytestmark = pytest.mark.root


def _exit(letter: str, version: int) -> Address:
    return (EXITS4 if version == 4 else EXITS6)["AB".index(letter) + 1]


def _send(relay: Relay, version: int, wanted: Sequence[tuple[int, int, str]], protocol: str = "udp") -> None:
    """Send flows (site, source port, exit A or B) of peer 1, under rules that give these exits."""
    ip = "ip" if version == 4 else "ip6"
    elements = ", ".join(
        f"{site(where, version)} . {port} : {_exit(letter, version)}" for where, port, letter in wanted
    )
    rule = f"{LEAVE} snat {ip} to {ip} daddr . th sport map {{ {elements} }}"
    if version == 4:
        relay.rules(rule)
    else:
        relay.rules(rules6=[rule])
    relay.send(Flow(peer(1, version), site(where, version), port, protocol) for where, port, _ in wanted)


@pytest.mark.parametrize("version", [4, 6])
def test_each_flow_is_the_vote_or_trial_that_it_should_be(
    relay: Relay, program: Program, version: int
) -> None:
    """New or known destination, new or known port, the same exit or another: each case has its count."""
    slot = program.add(peer(1, version))
    flows = [
        (1, 20001, "A"),  # a vote
        (1, 20002, "A"),  # known destination: the same exit
        (1, 20003, "B"),  # known destination: another exit
        (2, 20003, "B"),  # known port: the same exit
        (3, 20003, "A"),  # known port: another exit
        (4, 20003, "A"),  # known port: the same exit as last time
        (1, 20004, "B"),  # known destination: the same exit as last time
        (2, 20001, "A"),  # both known: says nothing
        (5, 20005, "B"),  # a vote
    ]
    _send(relay, version, flows)
    counted = program.drain()
    a, b = _exit("A", version), _exit("B", version)
    assert counted.flows == {(slot, a): 5, (slot, b): 4}
    assert counted.votes == {(slot, a): 1, (slot, b): 1}
    assert program.trials(slot)[:2] == ((3, 2), (3, 2))


def test_a_port_of_another_protocol_is_another_port(relay: Relay, program: Program) -> None:
    """The same source port over UDP and TCP is new twice."""
    slot = program.add(peer(1))
    _send(relay, 4, [(1, 20001, "A")])
    _send(relay, 4, [(2, 20001, "B")], "tcp")
    assert program.drain().votes.total() == 2
    assert program.trials(slot)[:2] == ((0, 0), (0, 0))


def test_a_slot_has_nothing_from_the_peer_before(relay: Relay, program: Program) -> None:
    """When a slot goes to another peer, destinations and ports that the first one used are new."""
    rule = f"{LEAVE} snat to {_exit('A', 4)}"
    relay.rules(rule)
    slot = program.add(peer(1))
    relay.send([Flow(peer(1), site(1), 20001)])
    program.table.remove(relay.tun0, peer(1), 32)
    clear_slot(program.maps, slot)
    program.table.set(relay.tun0, peer(2), 32, slot)
    relay.send([Flow(peer(2), site(1), 20001), Flow(peer(2), site(1), 20002)])
    program.table.remove(relay.tun0, peer(2), 32)
    assert program.drain().votes.total() == 2
    assert program.trials(slot)[:2] == ((1, 1), (0, 0))


@pytest.mark.parametrize(("version", "flags"), [*product((4, 6), ("", "random", "persistent"))])
def test_random_traffic_gives_what_the_model_says(
    relay: Relay, program: Program, version: int, flags: str
) -> None:
    """Flows that reuse destinations and ports in any order give the votes and trials of the definitions."""
    pool = f"{_exit('A', version)}-{_exit('A', version) + 6}"
    rule = f"{LEAVE} snat to {pool} {flags}"
    if version == 4:
        relay.rules(rule)
    else:
        relay.rules(rules6=[rule])
    slots = program.add_all(peer(number, version) for number in (1, 2, 3))
    everything = [
        Flow(source, site(where, version), port, protocol)
        for source, where, port, protocol in product(slots, range(15), range(21000, 21012), ("udp", "icmp"))
    ]
    flows = random.Random(version).sample(everything, 300)  # noqa: S311
    relay.send(flows)
    entries = {entry.flow: entry for entry in relay.listing()}
    model = Model()
    for flow in flows:
        model.see(slots[flow.source], entries[flow])
    assert program.drain().votes == model.votes
    assert {slot: program.trials(slot)[:2] for slot in slots.values()} == {
        slot: model.trials(slot) for slot in slots.values()
    }
    assert model.votes.total() > 20
    assert all(sum(model.trials(slot)[which][0] for slot in slots.values()) > 10 for which in (0, 1))


@pytest.mark.parametrize("first", [1, 4094, 2**32 - 2])
def test_what_is_older_than_the_window_is_forgotten(relay: Relay, program: Program, first: int) -> None:
    """A destination counts as known for the panes of the window and no longer, also where numbers wrap."""
    slot = program.add(peer(1))
    program.control(1, pane=first)
    _send(relay, 4, [(1, 20001, "A"), (2, 20002, "A")])
    program.control(1, pane=(first + SMALL.panes - 1) % 2**32)
    _send(relay, 4, [(1, 20003, "B")])
    assert (program.drain().votes.total(), program.trials(slot).same_destination) == (2, (1, 0))
    program.control(1, pane=(first + SMALL.panes) % 2**32)
    _send(relay, 4, [(1, 20004, "B"), (2, 20005, "A"), (3, 20001, "A")])
    assert (program.drain().votes.total(), program.trials(slot)[:2]) == (2, ((2, 1), (0, 0)))


def test_a_slot_is_measured_so_often_and_counted_always(relay: Relay) -> None:
    """After `measured` flows a slot's flows are only counted, until a window later it is measured again."""
    sizes = Tables(peers=16, pairs=64, destinations=1024, ports=1024, panes=4, measured=5)
    with running(relay, sizes) as program:
        slot, other = program.add(peer(1)), program.add(peer(2))
        _send(relay, 4, [(number, 20000 + number, "A") for number in range(12)])
        relay.send([Flow(peer(2), site(1), 20001)])
        counted = program.drain()
        assert counted.flows == {(slot, _exit("A", 4)): 12, (other, _exit("A", 4)): 1}
        assert counted.votes == {(slot, _exit("A", 4)): 5, (other, _exit("A", 4)): 1}
        assert program.state(slot)["measured"] == 5
        program.control(1, pane=1 + sizes.panes)
        _send(relay, 4, [(number, 20000 + number, "A") for number in range(20, 28)])
        assert program.drain().votes == {(slot, _exit("A", 4)): 5}
        assert program.outcome(Outcome.COUNTED) == 21


@pytest.mark.parametrize("start", [1000.0, 2**32 / 1000 - 70])
def test_a_session_ends_after_the_gap(relay: Relay, program: Program, start: float) -> None:
    """The first flow after more than the gap is a session's first, also when the clock's 32 bits wrap."""
    slot = program.add(peer(1))
    steps = [(0, "A", 1), (30, "B", 0), (90, "B", 0), (151, "B", 1), (152, "A", 0), (1000, "A", 1)]
    session_starts: Counter[tuple[int, Address]] = Counter()
    for number, (after, letter, first) in enumerate(steps):
        program.control(start + after, session_gap=60)
        _send(relay, 4, [(number, 20000 + number, letter)])
        counted = program.drain()
        assert counted.session_starts.total() == first
        session_starts += counted.session_starts
    assert session_starts == {(slot, _exit("A", 4)): 2, (slot, _exit("B", 4)): 1}
    assert program.state(slot)["sessions"] == 3
