# SPDX-License-Identifier: Apache-2.0
"""What a run makes of the exits that it saw."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.canary.linking import BITS, Mismatches, Place, Sight, compare, evidence, places
from detector.canary.plan import CanaryPlan, Plan, RelayPlan

_FIRST = ip_address("203.0.113.0")


def plan(sizes: list[int], canaries: int) -> Plan:
    """Relays with pools of these sizes."""
    relays = tuple(
        RelayPlan(f"r{at}", "", "", {Family.IPV4: AddressRange(_FIRST, _FIRST + (size - 1))})
        for at, size in enumerate(sizes)
    )
    named = tuple(CanaryPlan(f"c{at}", "", {}) for at in range(canaries))
    return Plan({Family.IPV4: ()}, 1, 1, 0, 1, relays, named)


def sights(sizes: list[int], canaries: int, groups: list[int], seed: int = 1) -> list[Sight]:
    """What is seen if relays of one group share a secret; group -1 has a secret of its own for each."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    found = []
    for canary in range(canaries):
        shared = {group: rng.random() for group in set(groups)}
        for at, (size, group) in enumerate(zip(sizes, groups, strict=True)):
            fraction = rng.random() if group < 0 else shared[group]
            exit_ = str(_FIRST + int(fraction * size))
            found.append(Sight(f"r{at}", f"c{canary}", Family.IPV4, (exit_, exit_)))
    return found


def judged(sizes: list[int], canaries: int, groups: list[int], seed: int = 1) -> tuple[tuple[str, ...], ...]:
    """The sets that are found."""
    of = plan(sizes, canaries)
    return compare(places(sights(sizes, canaries, groups, seed), of.relays), of, Family.IPV4).sets


def test_two_of_many_are_found() -> None:
    """Two linked relays of sixty, which a vote over the fleet could not find, are named, and no other."""
    sizes = [60, 91, 66, 31, 59, 66] * 10
    groups = [-1] * 60
    groups[7] = groups[41] = 0
    assert [judged(sizes, 8, groups, seed) for seed in range(5)] == [(("r7", "r41"),)] * 5


def test_several_secrets_are_several_sets() -> None:
    """Relays are grouped by the secret that they share."""
    assert judged([60, 91, 66, 31, 59], 8, [0, 1, 0, 1, -1]) == (("r0", "r2"), ("r1", "r3"))


def test_independent_relays_are_not_linked() -> None:
    """Twenty relays in a hundred runs: no set."""
    sizes = [60, 11, 8, 31, 66, 91, 59, 13, 11, 60] * 2
    assert all(judged(sizes, 8, [-1] * 20, seed) == () for seed in range(100))


@pytest.mark.parametrize(("canaries", "linked"), [(3, ()), (4, (("r0", "r1"),))])
def test_too_little_is_not_enough(canaries: int, linked: tuple[tuple[str, ...], ...]) -> None:
    """Three canaries on pools of 60 and 91 bring 15.6 bits, four 20.7; sixteen are needed."""
    assert judged([60, 91], canaries, [0, 0]) == linked


def test_evidence_is_what_chance_gives() -> None:
    """Cells of 60 and 91 exits overlap in (60 + 91 - 1) of 5,460 pairs; a miss costs the choice of it."""
    here, there, away = Place(0, 60, True), Place(0, 91, True), Place(90, 91, True)
    bits = evidence({"a": here}, {"a": there})
    assert bits == pytest.approx(5.186, abs=0.001)
    four = dict.fromkeys("abcd", here)
    others = dict.fromkeys("abc", there) | {"d": away}
    assert evidence(four, others) == pytest.approx(3 * 5.186 - 2, abs=0.01)
    assert evidence({"a": here, "b": here}, {"a": there, "b": away}) == float("-inf")
    assert evidence({"a": here}, {"b": there}) == float("-inf")
    assert BITS == 16


def test_places() -> None:
    """The most frequent exit is the place; another one in between, or one outside of the pool, is told."""
    of = plan([8], 3)
    seen = [
        Sight("r0", "c0", Family.IPV4, ("203.0.113.3", "203.0.113.3", "203.0.113.4")),
        Sight("r0", "c1", Family.IPV4, ("198.51.100.1",)),
        Sight("r0", "c2", Family.IPV4, ()),
    ]
    found = places(seen, of.relays)
    assert found == {
        ("r0", "c0", Family.IPV4): Place(3, 8, False),
        ("r0", "c1", Family.IPV4): Place(None, 8, True),
    }
    assert found["r0", "c0", Family.IPV4].interval == (3 / 8, 4 / 8)


def test_another_nat_behind_the_relay_is_a_mismatch() -> None:
    """What the relay says is compared where it says something and the canary stays."""
    result = Mismatches()
    key = ("r0", "c0", Family.IPV4)
    result.add(key, Place(3, 8, True), None)
    result.add(key, Place(3, 8, False), (0.5, 0.625))
    result.add(key, Place(3, 8, True), (0.375, 0.5))
    assert (result.compared, result.differ) == (1, [])
    result.add(key, Place(3, 8, True), (0.5, 0.625))
    result.add(key, Place(None, 8, True), (0.5, 0.625))
    assert (result.compared, result.differ) == (3, [key, key])
