# SPDX-License-Identifier: Apache-2.0
"""With tables made tiny, the loss counted equals the loss that happened, and nothing else is lost."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from detector.base.family import Address, Family
from detector.kernel.tables import EXITS_IN_BLOCK, Outcome
from tests.system.kernel.program import SMALL, Key, Model, counted_by_conntrack, running
from tests.system.kernel.topology import LEAVE, Flow, Relay, peer, site

pytestmark = pytest.mark.root

MANY = f"{LEAVE} snat to numgen random mod 11 map {{ %s }}"
RULE = MANY % ", ".join(f"{number} : 203.0.113.{20 + number}" for number in range(11))
RULE6 = MANY % ", ".join(f"{number} : 2001:db8:e::{20 + number}" for number in range(11))


def _flows() -> list[Flow]:
    """Flows of two peers of each family that reuse destinations and ports."""
    everything = [
        Flow(peer(number, version), site(where, version), port)
        for version, number, where, port in product((4, 6), (1, 2), range(9), range(20000, 20009))
    ]
    return random.Random(3).sample(everything, 250)  # noqa: S311


class _Table:
    """A table of pairs with room for so many blocks, as bpf/tables.h describes it."""

    def __init__(self, room: int, exits: list[Address]) -> None:
        self._room, self._exits = room, exits
        self._blocks: set[tuple[int, int, str]] = set()
        self.held: Counter[Key] = Counter()
        self.lost: Counter[int] = Counter()

    def count(self, slot: int, exit_: Address, more: list[str]) -> None:
        """A flow; one that is a vote or a session's first needs a block of that kind as well."""
        group = [one for one in self._exits if one.version == exit_.version].index(exit_) // EXITS_IN_BLOCK
        if all(self._claim(slot, group, kind) for kind in ["flows", *more]):
            self.held[slot, exit_] += 1
        else:
            self.lost[slot] += 1

    def _claim(self, slot: int, group: int, kind: str) -> bool:
        if len(self._blocks) < self._room:
            self._blocks.add((slot, group, kind))
        return (slot, group, kind) in self._blocks


def test_a_full_table_of_pairs_counts_what_it_refuses(relay: Relay) -> None:
    """The first pairs keep counting, each other flow is one lost flow, and a drain makes room again."""
    relay.rules(RULE, rules6=[RULE6])
    with running(relay, replace(SMALL, pairs=4)) as program:
        slots = program.add_all(peer(number, version) for version in (4, 6) for number in (1, 2))
        model, met, seen = Model(program.budgets), list[Address](), set[int]()
        lost, counted = Counter[int](), 0
        for part in (_flows()[:150], _flows()[150:]):
            relay.forget()
            relay.send(part)
            entries = {entry.flow: entry for entry in relay.listing()}
            table = _Table(4, met)
            for flow in part:
                slot, exit_ = slots[flow.source], entries[flow].exit
                met += [exit_] if exit_ not in met else []
                votes = model.votes.total()
                model.see(slot, entries[flow])
                more = ["votes"] * (model.votes.total() > votes) + ["firsts"] * (slot not in seen)
                table.count(slot, exit_, more)
                seen.add(slot)
            assert program.drain().flows == table.held
            lost, counted = lost + table.lost, counted + table.held.total()
        assert lost.total() > 50
        assert {slot: int(program.state(slot)["refused"]) for slot in slots.values()} == lost
        assert program.outcome(Outcome.LOST_PAIRS) == lost.total()
        assert program.outcome(Outcome.COUNTED) == counted
        losses = (Outcome.LOST_DESTINATIONS, Outcome.LOST_PORTS, Outcome.UNREADABLE)
        assert [program.outcome(outcome) for outcome in losses] == [0, 0, 0]


def test_exits_without_a_number_are_counted_in_buckets(relay: Relay) -> None:
    """The first exits of each family have a number; others are counted together, and no flow is lost."""
    relay.rules(RULE, rules6=[RULE6])
    with running(relay, replace(SMALL, exits=8)) as program:
        slots = program.add_all(peer(number, version) for version in (4, 6) for number in (1, 2))
        flows = _flows()
        relay.send(flows)
        entries = {entry.flow: entry for entry in relay.listing()}
        met = dict.fromkeys(entries[flow].exit for flow in flows)
        named = [one for v in (4, 6) for one in [exit_ for exit_ in met if exit_.version == v][:8]]
        found, truth = program.drain().flows, counted_by_conntrack(entries.values(), slots)
        assert {key: found[key] for key in truth if key[1] in named} == {
            key: number for key, number in truth.items() if key[1] in named
        }
        assert len(met) == 22
        for slot in slots.values():
            together = [sum(n for key, n in one.items() if key[0] == slot) for one in (found, truth)]
            assert together[0] == together[1]
        assert {key[1] for key in found} <= set(met)  # a bucket bears the name of one of its exits
        assert program.outcome(Outcome.COUNTED) == len(flows)


def test_exits_give_room_back(relay: Relay) -> None:
    """Numbered anew, exits that nobody uses any more are gone; nothing is lost and no name is another's."""
    with running(relay, replace(SMALL, exits=8)) as program:
        slots = program.add_all(peer(number) for number in (1, 2))
        for first in (20, 60, 100, 140):
            rule = MANY % ", ".join(f"{number} : 203.0.113.{first + number}" for number in range(6))
            relay.rules(rule.replace("mod 11", "mod 6"))
            relay.forget()
            relay.send(Flow(address, site(at), 20000 + at) for address in slots for at in range(40))
            truth = counted_by_conntrack(relay.listing(), slots)
            assert program.drain(renumber=True).flows == truth
            assert program.pairs.exits == 0
        assert program.outcome(Outcome.COUNTED) == 4 * 80


@pytest.mark.parametrize(("destinations", "ports"), [(4, 65536), (65536, 4), (4, 4)])
def test_a_full_memory_counts_what_it_cannot_measure(relay: Relay, destinations: int, ports: int) -> None:
    """Each flow is counted; one without room in a memory is no vote and no trial but one loss."""
    relay.rules(RULE, rules6=[RULE6])
    with running(relay, replace(SMALL, destinations=destinations, ports=ports)) as program:
        slots = program.add_all(peer(number, version) for version in (4, 6) for number in (1, 2))
        flows = _flows()
        relay.send(flows)
        entries = {entry.flow: entry for entry in relay.listing()}
        model = Model(program.budgets, SMALL.panes, destinations, ports)
        for flow in flows:
            model.see(slots[flow.source], entries[flow])
        counted = program.drain()
        assert counted.flows == counted_by_conntrack(entries.values(), slots)
        assert counted.votes == model.votes
        for slot in slots.values():
            assert program.trials(slot)[:2] == model.trials(slot)
        assert sum(model.lost.values()) > 50
        by_outcome: Counter[Outcome] = Counter()
        for (_, outcome), number in program.outcomes().items():
            by_outcome[outcome] += number
        assert by_outcome == {Outcome.COUNTED: 250} | model.lost


def test_a_loss_is_of_its_family(relay: Relay) -> None:
    """IPv6 flows that find no room are losses of IPv6."""
    relay.rules(RULE, rules6=[RULE6])
    with running(relay, replace(SMALL, destinations=4)) as program:
        program.add_all((peer(1, 4), peer(1, 6)))
        relay.send(Flow(peer(1, 4), site(number, 4), 20000 + number) for number in range(4))
        relay.send(Flow(peer(1, 6), site(number, 6), 20000 + number) for number in range(6))
        assert program.outcomes() == {
            (Family.IPV4, Outcome.COUNTED): 4,
            (Family.IPV6, Outcome.COUNTED): 6,
            (Family.IPV6, Outcome.LOST_DESTINATIONS): 6,
        }
        program.control(1, pane=1 + SMALL.panes)
        relay.send(Flow(peer(1, 6), site(number, 6), 21000 + number) for number in range(10, 14))
        assert program.outcomes()[Family.IPV6, Outcome.LOST_DESTINATIONS] == 6
