# SPDX-License-Identifier: Apache-2.0
"""From the exits that were seen to what is linked: places in the pools, and every pair of relays compared.

A run has all places in one hand, so it compares every pair over all canaries, where the rules of a fleet
(docs/fleet.md) look for large sets: it finds two relays of a thousand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from detector.base.family import Family
from detector.canary.plan import Plan, RelayPlan

BITS = 16.0
"""Evidence, after the choice among all pairs was paid for, from which on two relays are linked."""
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Sight:
    """What one canary's requests through one relay came out of."""

    relay: str
    canary: str
    family: Family
    exits: tuple[str, ...]

    def as_row(self) -> list[object]:
        """For the state file."""
        return [self.relay, self.canary, self.family.value, list(self.exits)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a canary sits: exit k of N, None outside of the pool; `stays` if every request took it."""

    index: int | None
    size: int
    stays: bool

    @property
    def interval(self) -> tuple[float, float] | None:
        """[k / N, (k + 1) / N)."""
        return None if self.index is None else (self.index / self.size, (self.index + 1) / self.size)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is linked in one family.

    Attributes:
        sets: relays that are linkable with each other, the largest set first.
        bits: of each set, what the exits of one peer on all of them tell.
        untold: relays with too few places for any pair.
        tuples: different combinations of places among the canaries that have one everywhere.
    """

    sets: tuple[tuple[str, ...], ...]
    bits: tuple[float, ...]
    untold: tuple[str, ...]
    tuples: int


Places = Mapping[tuple[str, str, Family], Place]


def places(sights: Iterable[Sight], relays: Sequence[RelayPlan]) -> dict[tuple[str, str, Family], Place]:
    """By relay, canary and family."""
    pools = {relay.name: relay.pools for relay in relays}
    found = {}
    for sight in sights:
        pool = pools.get(sight.relay, {}).get(sight.family)
        if pool is None or not sight.exits:
            continue
        exit_, count = Counter(sight.exits).most_common(1)[0]
        address = ip_address(exit_)
        index = int(address) - int(pool.first) if address in pool else None
        found[sight.relay, sight.canary, sight.family] = Place(index, pool.size, count == len(sight.exits))
    return found


def compare(found: Places, plan: Plan, family: Family) -> Comparison:
    """Compare every pair of relays."""
    names = [relay.name for relay in plan.relays]
    rows = {name: _row(found, plan, family, name) for name in names}
    pairs = max(len(names) * (len(names) - 1) // 2, 1)
    group = {name: name for name in names}
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            if evidence(rows[one], rows[other]) - math.log2(pairs) >= BITS:
                old, new = group[other], group[one]
                group = {name: new if of == old else of for name, of in group.items()}
    sets = [tuple(name for name in names if group[name] == first) for first in dict.fromkeys(group.values())]
    linked = sorted((one for one in sets if len(one) > 1), key=len, reverse=True)
    sizes = {name: max((place.size for place in rows[name].values()), default=0) for name in names}
    can = {name: sum(math.log2(max(place.size / 2, 1)) for place in rows[name].values()) for name in names}
    untold = tuple(name for name in names if can[name] < BITS + math.log2(pairs))
    whole = [name for name in names if rows[name]]
    tuples = {
        tuple(rows[name][canary.name].index for name in whole)
        for canary in plan.canaries
        if whole and all(canary.name in rows[name] for name in whole)
    }
    bits = tuple(_bits([sizes[name] for name in one]) for one in linked)
    named = {name for one in linked for name in one}
    return Comparison(tuple(linked), bits, tuple(one for one in untold if one not in named), len(tuples))


def evidence(one: Mapping[str, Place], other: Mapping[str, Place]) -> float:
    """Bits that speak for one fraction behind two relays; minus infinity where too many canaries disagree."""
    both = [canary for canary in one if canary in other]
    hits, bits = 0, 0.0
    for canary in both:
        mine, theirs = one[canary].interval, other[canary].interval
        if mine is not None and theirs is not None and mine[0] < theirs[1] and theirs[0] < mine[1]:
            n, m = one[canary].size, other[canary].size
            hits, bits = hits + 1, bits - math.log2((n + m - math.gcd(n, m)) / (n * m))
    if not both or hits < _SHARE * len(both):
        return -math.inf
    return bits - math.log2(math.comb(len(both), hits))


def _row(found: Places, plan: Plan, family: Family, relay: str) -> dict[str, Place]:
    row = {canary.name: found.get((relay, canary.name, family)) for canary in plan.canaries}
    return {name: place for name, place in row.items() if place is not None and place.index is not None}


def _bits(sizes: Sequence[int]) -> float:
    """log2 of all tuples over those that one fraction can give, at most sum(N) - R + 1."""
    return sum(map(math.log2, sizes)) - math.log2(sum(sizes) - len(sizes) + 1)


@dataclass(slots=True)
class Mismatches:
    """Where a relay's own word differs from what was seen: a NAT behind the relay, or another pool."""

    compared: int = 0
    differ: list[tuple[str, str, Family]] = field(default_factory=list)

    def add(self, key: tuple[str, str, Family], seen: Place, said: tuple[float, float] | None) -> None:
        """Compare one."""
        if said is None or not seen.stays:
            return
        self.compared += 1
        interval = seen.interval
        if interval is None or abs(interval[0] - said[0]) > 1e-9 or abs(interval[1] - said[1]) > 1e-9:
            self.differ.append(key)
