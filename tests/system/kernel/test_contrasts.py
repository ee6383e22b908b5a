# SPDX-License-Identifier: Apache-2.0
"""Votes, the two contrasts and the sessions, for flows whose exits are known."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from detector.base.family import Address, Family, unpack
from detector.base.flows import FlowClass, Lag
from detector.config.model import Tables
from detector.kernel.drain import clear_slots
from detector.kernel.tables import Budgets, Outcome
from tests.system.kernel.program import SMALL, Key, Model, Program, running
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
    clear_slots(program.maps, [slot])
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
    model = Model(program.budgets)
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
    """When a class's budget is spent, its flows are only counted, and measured again a pane later."""
    sizes = Tables(peers=16, pairs=256, destinations=1024, ports=1024, panes=4, measured=8)
    budgets = Budgets.of(sizes)
    assert budgets == (2, 2, 1, 8)
    with running(relay, sizes) as program:
        slot, other = program.add(peer(1)), program.add(peer(2))
        _send(relay, 4, [(number, 20000 + number, "A") for number in range(12)])
        relay.send([Flow(peer(2), site(1), 20001)])
        counted = program.drain()
        a = _exit("A", 4)
        assert counted.flows == {(slot, a): 12, (other, a): 1}
        assert counted.votes == {(slot, a): 2, (other, a): 1}
        assert [int(program.state(slot)[name][FlowClass.OTHER]) for name in ("looked", "votes")] == [8, 2]
        assert int(program.state(slot)["settled"]) == 1 << 4 | 1 << FlowClass.OTHER
        _send(relay, 4, [(number, 20100 + number, "A") for number in range(4)], "tcp")
        assert program.drain().votes == {(slot, a): 2}
        program.control(1, pane=2)
        _send(relay, 4, [(number, 20200 + number, "A") for number in range(20, 28)])
        assert program.drain().votes == {(slot, a): 2}
        assert program.outcome(Outcome.COUNTED) == 25


def _workload(version: int, peers: int, seed: int, flows: int) -> list[Flow]:
    """Flows of all classes in any order, that reuse destinations and ports."""
    drawn = random.Random(seed)  # noqa: S311
    kinds = [("udp", 0), ("udp", 443), ("udp", 53), ("icmp", 0), ("tcp", 0), ("tcp", 853)]
    everything = [
        Flow(peer(number, version), site(where, version), port, *kind)
        for number, where, port, kind in product(
            range(1, peers + 1),
            range(3 * seed, 3 * seed + 9),
            range(21000 + 8 * seed, 21012 + 8 * seed),
            kinds,
        )
    ]
    return drawn.sample(everything, flows)


@pytest.mark.parametrize(
    ("version", "flags", "measured"),
    [(4, "random", 48), (4, "persistent", 400), (6, "", 400), (6, "random", 16)],
)
def test_all_evidence_is_what_the_model_says(relay: Relay, version: int, flags: str, measured: int) -> None:
    """Votes, sandwiches by class and lag, returns, ports, sessions: over drains, panes, sessions."""
    first = _exit("A", version)
    rule = f"{LEAVE} snat to {first}-{first + 3} {flags}"
    relay.rules(*[rule] * (version == 4), rules6=[rule] * (version == 6))
    sizes = replace(SMALL, measured=measured)
    with running(relay, sizes) as program:
        slots = program.add_all(peer(number, version) for number in range(1, 5))
        model = Model(program.budgets, sizes.panes)
        votes = Counter[tuple[FlowClass, Key]]()
        #        seconds, pane, drains before it
        steps = [
            (0, 1, 0),
            (5, 1, 1),
            (20, 2, 1),
            (900, 2, 3),
            (910, 3, 2),
            (990, 7, 1),
            (3000, 9, 4),
            (3001, 9, 0),
        ]
        for number, (seconds, pane, drains) in enumerate(steps):
            for _ in range(drains):
                votes += program.class_votes()
                model.drain += 1
            program.control(1.0 + seconds, pane)
            model.control(1.0 + seconds, pane)
            relay.forget()
            flows = _workload(version, 4, number, 90)
            relay.send(flows)
            entries = {entry.flow: entry for entry in relay.listing()}
            for flow in flows:
                model.see(slots[flow.source], entries[flow])
        votes += program.class_votes()
        assert votes == model.class_votes
        for slot in slots.values():
            assert program.found(slot) == model.evidence(slot)
            bits = {bit for bit in range(64) if int(program.evidence(slot)["port_blocks"]) >> bit & 1}
            assert bits == model.port_blocks[slot]
        kinds = {key[:4] for slot in slots.values() for key in model.evidence(slot)}
        if measured == 400:
            assert {key[2] for key in kinds if key[0] == "vote"} == set(Lag)
            assert {key[1] for key in kinds if key[0] == "vote"} == set(FlowClass)
            assert {key[1] for key in kinds if key[0] == "return"} == set(Lag)
        assert (
            sum(n for slot in slots.values() for key, n in model.evidence(slot).items() if key[0] == "return")
            > 9
        )
        assert not program.outcomes().keys() - {(family, Outcome.COUNTED) for family in Family}


@pytest.mark.parametrize("version", [4, 6])
def test_translated_ports_are_seen_by_block(relay: Relay, program: Program, version: int) -> None:
    """A rule that gives a block of ports shows as that block; ports that stay as they are show nothing."""
    ip, exit_ = ("ip", _exit("A", version)) if version == 4 else ("ip6", _exit("A", version))
    named = f"{exit_}:3072-4095" if version == 4 else f"[{exit_}]:3072-4095"
    rules = [f"{LEAVE} {ip} saddr {peer(1, version)} udp dport 9 snat to {named}", f"{LEAVE} snat to {exit_}"]
    relay.rules(*rules * (version == 4), rules6=rules * (version == 6))
    one, other = program.add(peer(1, version)), program.add(peer(2, version))
    relay.send(
        Flow(peer(number, version), site(at, version), 20000 + at) for number in (1, 2) for at in range(5)
    )
    assert int(program.evidence(one)["port_blocks"]) == 1 << 3
    assert int(program.evidence(other)["port_blocks"]) == 0
    program.control(2.0, pane=2)
    relay.send([Flow(peer(1, version), site(9, version), 21000, to=10)])
    assert int(program.evidence(one)["port_blocks"]) == 0


def test_the_last_vote_is_there_for_who_knows_the_address(relay: Relay, program: Program) -> None:
    """A slot keeps the exit of its last vote as an address, and how many votes there were."""
    for version in (4, 6):
        slot = program.add(peer(1, version))
        _send(relay, version, [(1, 20001, "A"), (2, 20002, "B"), (1, 20003, "A")])
        assert unpack(program.evidence(slot)["last_exit"].tobytes()) == _exit("B", version)
        assert int(program.evidence(slot)["votes"]) == 2


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
