# SPDX-License-Identifier: Apache-2.0
"""Predictors are tried where tunnel addresses are; what is told of it does not lead back to one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector import predictors
from detector.base.canaries import canary_pseudonym
from detector.base.family import Address, Family, pack
from detector.base.ranges import AddressRange
from detector.config.model import Config, Tables
from detector.daemon.aggregator import Aggregator
from detector.daemon.codec import encode
from detector.daemon.messages import PredictorTrial, Trials
from detector.daemon.sensor import Edges, Sensor
from detector.daemon.slots import Slot
from detector.daemon.trying import Samples, Trier
from detector.nat.mapping import Mapping, mapping_of
from detector.nat.model import rule_set
from detector.predictors.guess import GUESS
from detector.predictors.kernel_hash import kernel_exit
from tests.unit.daemon.fakes import Clock, KernelCounts, KernelTables, Link, Relay, allowed

PEERS = 90
CONFIG = Config(relay="r", wireguard=("wg0",), window=1200.0, tables=Tables(peers=512, panes=4))
POOL = predictors.ExitPool(ip_address("203.0.113.68"), ip_address("203.0.113.126"))
EXITS = [pack(ip_address(f"203.0.113.{last}")) for last in range(10)]


def tunnels(seed: int) -> list[Address]:
    """Tunnel addresses as they are handed out: IPv4 from four million, IPv6 from a /64."""
    drawn = random.Random(seed)  # noqa: S311
    four = [ip_address("10.64.0.0") + one for one in drawn.sample(range(1, 1 << 22), PEERS)]
    six = [ip_address("fc00:bbbb:bbbb:bb01::") + one for one in drawn.sample(range(1, 1 << 32), PEERS)]
    return [*four, *six]


def mapping(exclusive: bool = False) -> Mapping:
    """Two pools: a range of 59, and a whole /64."""
    ranges = [
        AddressRange(POOL.first, POOL.last),
        AddressRange(ip_address("2001:db8:203:113::"), ip_address("2001:db8:203:113:ffff:ffff:ffff:ffff")),
    ]
    made = mapping_of(rule_set([], []), ranges)
    return replace(made, exclusive=frozenset(Family)) if exclusive else made


class Bench:
    """A sensor whose peers have exits as a test says; everything that it sends is kept."""

    def __init__(self, seed: int) -> None:
        self.relay, self.clock = Relay(), Clock()
        self.link, _ = Link.pair()
        self.relay.mapping = mapping()
        self.addresses = tunnels(seed)
        self.relay.peers = {chr(0x100 + number): [str(one)] for number, one in enumerate(self.addresses)}
        edges = Edges(KernelTables(), self.relay.votes, self.relay.rules, self.relay.read, self.clock, int)
        self.it = Sensor(CONFIG, edges, self.link)
        self.it.step()

    @property
    def slots(self) -> list[Slot]:
        """Who is there."""
        return self.it.slots.slots()

    def vote(self, exit_of: Any, rounds: int = 4) -> None:
        """Each slot votes in each round, for what a function says of it."""
        for _ in range(rounds):
            self.relay.voted = [(slot.number, pack(exit_of(slot))) for slot in self.slots]
            self.clock.now += 10.0
            self.it.step()

    @property
    def told(self) -> Trials:
        """What was said of predictors last."""
        return [one for one in self.link.sent if isinstance(one, Trials)][-1]


def by_name(told: Trials, family: Family) -> dict[str, PredictorTrial]:
    """The trials of a family by predictor."""
    return {one.predictor: one for one in told.trials if one.family is family}


def persistent(slot: Slot) -> Address:
    """The exit that the kernel's hash gives."""
    if slot.allowed.family is Family.IPV6:
        return ip_address("2001:db8:203:113::") + random.getrandbits(64)
    (exits,) = predictors.predict([slot.allowed.address], [POOL])["kernel_persistent"]
    assert exits[0] is not None
    return exits[0]


def at_random(slot: Slot) -> Address:
    """An exit that nothing names."""
    if slot.allowed.family is Family.IPV6:
        return ip_address("2001:db8:203:113::") + random.getrandbits(64)
    return POOL.first + random.randrange(59)  # noqa: S311


def test_a_predictor_that_holds_is_told_with_whom_it_names() -> None:
    """Everybody, by slot; the others are told as sums alone."""
    bench = Bench(1)
    bench.vote(persistent)
    found = by_name(bench.told, Family.IPV4)
    best = found["kernel_persistent"]
    assert (best.tried, best.hit) == (PEERS, PEERS)
    assert best.chance < 0.05
    assert best.flagged == tuple(one.number for one in bench.slots if one.allowed.family is Family.IPV4)
    assert {one.flagged for one in bench.told.trials if one is not best} == {None}


def test_other_rules_begin_with_nothing_seen() -> None:
    """What was seen under the rules of before is no evidence under others."""
    bench = Bench(2)
    bench.vote(persistent)
    bench.relay.mapping = replace(mapping(), identity="other")
    bench.it.step()
    bench.vote(at_random, 8)
    assert bench.told.epoch == 2
    assert by_name(bench.told, Family.IPV4)["kernel_persistent"].flagged is None
    assert by_name(bench.told, Family.IPV4)["kernel_persistent"].hit < 20


def test_a_canary_is_no_person() -> None:
    """Nobody is behind it: it is tried on nothing."""
    trier = Trier(8)
    slots = [
        Slot(0, "wg0", 7, allowed("10.0.0.1"), "peer-a"),
        Slot(1, "wg0", 7, allowed("10.0.0.2"), canary_pseudonym("c1")),
    ]
    trier.give(slots)
    trier.see([(0, EXITS[1]), (1, EXITS[1])])
    pool = predictors.ExitPool(ip_address("203.0.113.0"), ip_address("203.0.113.9"))
    trials = trier.tried(slots, [pool], 0.0)
    assert trials
    assert {one.tried for one in trials} <= {0, 1}


def test_without_a_pool_the_exits_are_asked() -> None:
    """Rules that cannot be read: the range that the kernel's hash chose from is found, and is a guess."""
    first, last = ip_address("203.0.113.68"), ip_address("203.0.113.83")
    slots = [
        Slot(number, "wg0", 7, allowed(f"10.0.0.{number + 1}"), f"peer-{number}") for number in range(40)
    ]
    trier = Trier(64)
    for slot in slots:
        exit_ = kernel_exit(slot.allowed.address, first, first, last, persistent=True)
        trier.see([(slot.number, pack(exit_))])
    held = [one for one in trier.tried(slots, [], 0.0) or () if one.flagged]
    assert [(one.predictor, one.rule, one.hit) for one in held] == [("kernel_persistent", GUESS, 40)]


def test_a_fit_leaves_time_for_other_work() -> None:
    """After one that took a second the next is twenty seconds later, if there is something new."""
    trier = Trier(8)
    slot = Slot(0, "wg0", 7, allowed("10.0.0.1"), "peer-a")
    trier.see([(0, EXITS[0])])
    assert trier.tried([slot], [POOL], 100.0) is not None
    trier.rest(100.0, 101.0)
    assert trier.tried([slot], [POOL], 200.0) is None
    trier.see([(0, EXITS[0])])
    assert trier.tried([slot], [POOL], 120.9) is None
    assert trier.tried([slot], [POOL], 121.0) is not None


def test_a_slot_that_is_handed_to_another_begins_anew() -> None:
    """Whoever comes back to it goes on, somebody else does not inherit its exit."""
    trier = Trier(4)
    one, other = (Slot(0, "wg0", 7, allowed(f"10.0.0.{last}"), "peer-a") for last in (1, 2))
    trier.give([one])
    trier.see([(0, EXITS[0])])
    trier.give([one])
    assert trier.samples.busiest(0) == ip_address("203.0.113.0")
    trier.give([other])
    assert trier.samples.busiest(0) is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_an_exit_that_has_most_votes_of_all_is_found(votes: list[int]) -> None:
    """More than half of the votes: it is the busiest; and the busiest is one that was seen."""
    samples = Samples(2)
    for vote in votes:
        samples.add(1, EXITS[vote])
    found = samples.busiest(1)
    assert found is not None
    assert pack(found) in {EXITS[vote] for vote in votes}
    for vote in set(votes):
        if votes.count(vote) * 2 > len(votes):
            assert pack(found) == EXITS[vote]
    assert samples.busiest(0) is None
    assert samples.held == 1


def test_what_was_seen_long_ago_counts_less_and_then_nothing() -> None:
    """Each pane halves it; a new habit wins within a pane, and who votes no more is forgotten."""
    samples = Samples(1)
    for _ in range(100_000):
        samples.add(0, EXITS[0])
    for _ in range(16):
        samples.age()
    assert samples.busiest(0) is None
    for _ in range(6):
        samples.add(0, EXITS[0])
    samples.age()
    for _ in range(4):
        samples.add(0, EXITS[1])
    assert samples.busiest(0) == ip_address("203.0.113.1")


# What somebody who has taken the aggregator over knows: all that it was ever told, and all addresses.


def invert(
    told: dict[int, set[str]], slots: Sequence[int], candidates: Sequence[Address]
) -> dict[int, Address]:
    """For each slot the one address of which public functions say most of what was told of the slot."""
    said: dict[Address, set[str]] = {}
    pools = [
        POOL,
        predictors.ExitPool(
            ip_address("2001:db8:203:113::"), ip_address("2001:db8:203:113:ffff:ffff:ffff:ffff")
        ),
    ]
    for family in Family:
        mine = [one for one in candidates if one.version == family.version]
        found = predictors.predict(mine, [one for one in pools if one.first.version == family.version])
        for table in found.values():
            for address, exits in zip(mine, table, strict=True):
                said.setdefault(address, set()).update(str(one) for one in exits)
    guesses = {}
    for slot in slots:
        scores = {address: len(words & told.get(slot, set())) for address, words in said.items()}
        most = max(scores.values())
        best = [address for address, score in scores.items() if score == most]
        if most and len(best) == 1:
            guesses[slot] = best[0]
    return guesses


def told_by_slot(messages: Sequence[Any]) -> dict[int, set[str]]:
    """Every address that stands in what was said of a slot."""
    found: dict[int, set[str]] = {}
    for message in messages:
        for one in getattr(message, "added", ()):
            found.setdefault(one.slot, set()).update(_addresses(json.loads(encode(one))))
    return found


def _addresses(told: Any) -> list[str]:
    if isinstance(told, dict):
        return [found for value in told.values() for found in _addresses(value)]
    if isinstance(told, list):
        return [found for value in told for found in _addresses(value)]
    try:
        return [str(ip_address(told))] if isinstance(told, str) else []
    except ValueError:
        return []


def right(guesses: dict[int, Address], bench: Bench) -> int:
    """How many guesses are right."""
    truth = {slot.number: slot.allowed.address for slot in bench.slots}
    return sum(truth[slot] == address for slot, address in guesses.items())


def test_who_is_told_predictions_finds_nearly_every_tunnel_address() -> None:
    """So the inversion below is no straw man: with what predictors say, it links slot and address."""
    bench = Bench(3)
    numbers = [slot.number for slot in bench.slots]
    told: dict[int, set[str]] = {}
    for family in Family:
        here = [slot for slot in bench.slots if slot.allowed.family is family]
        wanted = [slot.allowed.address for slot in here]
        pool = POOL if family is Family.IPV4 else bench.it._mapping.views[1]
        for table in predictors.predict(wanted, [pool]).values():
            for slot, exits in zip(here, table, strict=True):
                told.setdefault(slot.number, set()).update(str(one) for one in exits)
    assert right(invert(told, numbers, bench.addresses), bench) > PEERS


@pytest.mark.parametrize("seed", [4, 5])
def test_nothing_that_the_aggregator_is_told_leads_to_a_tunnel_address(seed: int) -> None:
    """Of everything that it was ever told, no slot's address is found, and no part of one stands in it."""
    bench = Bench(seed)
    bench.vote(at_random, 12)
    messages = bench.link.sent
    numbers = [slot.number for slot in bench.slots]
    assert right(invert(told_by_slot(messages), numbers, bench.addresses), bench) <= 3
    for family in Family:  # and neither by their order, in which addresses are handed out
        here = sorted(one.number for one in bench.slots if one.allowed.family is family)
        ordered = sorted((one for one in bench.addresses if one.version == family.version), key=int)
        assert right(dict(zip(here, ordered, strict=True)), bench) <= 8
    text = b" ".join(encode(one) for one in messages).decode()
    for address in bench.addresses:
        assert str(address) not in text
        if address.version == 6:
            assert ":".join(str(address).split(":")[-2:]) not in text
    assert {one.flagged for one in bench.told.trials} == {None}


def test_the_aggregator_takes_trials_over_by_row() -> None:
    """Flags of slots become flags of the peers that have them; those of other rules are left out."""
    sensor, mine = Link.pair()
    clock = Clock()
    aggregator = Aggregator(CONFIG, "kprobe", KernelCounts(), mine, clock, int)
    bench = Bench(6)
    bench.vote(persistent)
    for message in bench.link.sent:
        sensor.send(message)
    aggregator.cycle()
    one, six = aggregator.epoch.observed()
    best = {trial.predictor: trial for trial in one.observation.predictor_trials or ()}["kernel_persistent"]
    assert best.flagged is not None
    assert best.flagged.tolist() == [True] * PEERS
    assert all(trial.flagged is None for trial in six.observation.predictor_trials or ())
    sensor.send(replace(bench.told, epoch=9, trials=()))
    aggregator.cycle()
    assert aggregator.epoch.observed()[0].observation.predictor_trials


def test_an_exit_is_steady_when_others_are_rare() -> None:
    """Once is no habit; three times as often as the next one is, and less is not."""
    samples = Samples(4)
    samples.add(1, EXITS[0])
    assert not samples.is_steady(1)
    samples.add(1, EXITS[0])
    assert samples.is_steady(1)
    samples.add(1, EXITS[1])
    assert not samples.is_steady(1)
    samples.add(1, EXITS[0])
    assert samples.is_steady(1)
    assert not samples.is_steady(2)
