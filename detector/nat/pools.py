# SPDX-License-Identifier: Apache-2.0
"""Exit pools, from the configuration or from the rules, as the kernel program and the analysis want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from detector.base.family import Address, Family
from detector.base.ranges import AddressRange, normalised
from detector.nat.model import FieldMap, NatRule, Netmap, RuleSet, SingleAddress


@dataclass(frozen=True, slots=True)
class ExitPool:
    """The exits among which one mapping chooses: one pool of the analysis, maybe of several ranges.

    Attributes:
        ranges: disjoint, ascending, not adjacent; all of one family.
        origin: ``configuration``, or the rules' places for people and logs.
    """

    ranges: tuple[AddressRange, ...]
    origin: str

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return self.ranges[0].family

    @property
    def size(self) -> int:
        """How many addresses it holds."""
        return sum(one.size for one in self.ranges)

    def __contains__(self, address: Address) -> bool:
        return any(address in one for one in self.ranges)


def effective_pools(rules: RuleSet, configured: Sequence[AddressRange] = ()) -> tuple[ExitPool, ...]:
    """The exit pools of this relay, pairwise disjoint, IPv4 first.

    Configured pools win over the rules of their family. A pool of the rules is what one mapping chooses
    from: all addresses of a map of a chooser are one pool, and so are the addresses of rules that send
    sources or draws to one address each. Pools that share an address become one, since such an exit does not
    say which rule chose it; pools that only touch stay two.
    """
    named = [ExitPool((pool,), "configuration") for pool in configured]
    settled = {pool.family for pool in configured}
    named += (pool for pool in _of_rules(rules.rules) if pool.family not in settled)
    return _disjoint(named)


def _of_rules(rules: Iterable[NatRule]) -> Iterator[ExitPool]:
    split: dict[Family, list[NatRule]] = {}
    for rule in rules:
        if isinstance(rule.mapping, SingleAddress) and (rule.sources or rule.choosers):
            split.setdefault(rule.pools[0].family, []).append(rule)
        elif isinstance(rule.mapping, Netmap | FieldMap) and not all(pool.single for pool in rule.pools):
            yield from (ExitPool((pool,), rule.named) for pool in rule.pools)
        else:
            yield from _as_one([rule])
    for together in split.values():
        yield from _as_one(together)


def _as_one(rules: Sequence[NatRule]) -> Iterator[ExitPool]:
    """One pool, for each family, of everything that these rules choose from."""
    pools = [pool for rule in rules for pool in rule.pools]
    origin = places(rule.named for rule in rules)
    for family in dict.fromkeys(pool.family for pool in pools):
        yield ExitPool(normalised(pool for pool in pools if pool.family == family), origin)


def places(places: Iterable[str]) -> str:
    """Where some rules stand, for people: the first three, and how many more."""
    named = list(dict.fromkeys(places))
    more = f"; {len(named) - 3} more" if len(named) > 3 else ""
    return "; ".join(named[:3]) + more


def _disjoint(pools: Sequence[ExitPool]) -> tuple[ExitPool, ...]:
    """Joins the pools that share an address, by one sweep over their ranges in ascending order."""
    parts = sorted(
        (
            (part.first.version, int(part.first), int(part.last), at)
            for at, pool in enumerate(pools)
            for part in pool.ranges
        )
    )
    group = list(range(len(pools)))
    reach: tuple[int, int, int] | None = (
        None  # family, last address and a pool of the ranges that hang together
    )
    for version, first, last, at in parts:
        if reach and reach[0] == version and first <= reach[1]:
            group[_root(group, at)] = _root(group, reach[2])
            reach = (version, max(last, reach[1]), at)
        else:
            reach = (version, last, at)
    members: dict[int, list[ExitPool]] = {}
    for at, pool in enumerate(pools):
        members.setdefault(_root(group, at), []).append(pool)
    joined = [_joined(one) for one in members.values()]
    return tuple(sorted(joined, key=lambda one: (one.ranges[0].first.version, int(one.ranges[0].first))))


def _root(group: list[int], at: int) -> int:
    while group[at] != at:
        group[at] = at = group[group[at]]
    return at


def _joined(pools: Sequence[ExitPool]) -> ExitPool:
    origin = places(place for pool in pools for place in pool.origin.split("; "))
    return ExitPool(normalised(part for pool in pools for part in pool.ranges), origin)
