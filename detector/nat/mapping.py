# SPDX-License-Identifier: Apache-2.0
"""The relay's mapping as rules and configuration give it: exit pools, and what they let one predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detector import predictors
from detector.base.family import Address, Family
from detector.base.ranges import AddressRange, normalised, parse_pool
from detector.base.verdicts import Verdict
from detector.config.model import Config
from detector.nat.live import LegacySaves, read_live
from detector.nat.model import About, Chosen, FieldMap, JHash, NatRule, Netmap, RangeHash, RuleSet, digest
from detector.nat.pools import ExitPool, effective_pools, places
from detector.nat.routing import routing_identity
from detector.nat.splits import exclusive_families
from detector.wireguard.model import AllowedIp

# Exits by predictor, one for each pool of the family.
Predictions = dict[str, list[str | None]]


@dataclass(frozen=True, slots=True)
class Mapping:
    """How peers are mapped to exits, as far as rules and configuration say.

    Attributes:
        identity: changes when the mapping may have changed, or was drawn anew.
        rules: how many source-NAT rules were understood.
        not_understood: where and why, for each rule that was not.
        pools: exit pools, pairwise disjoint, IPv4 first.
        views: for each of `pools`, what the predictors are told of it.
        choices: what each rule chooses from, for `detector.predictors.fit`; they may overlap. A pool that no
            rule of these explains (configured, or split over rules of one address) is one as a whole.
        ranges: what the kernel's own hash chooses from: the ranges of the rules, then those of `pools`.
        exclusive: families in which a rule maps peers to exits one to one.
        lasting: what the rules of each family by themselves deserve to be called, since what they choose
            lasts as long as they do: `pinned` by the source alone, `destination_linked` by source and
            destination.
    """

    identity: str
    rules: int
    not_understood: tuple[tuple[str, str], ...]
    pools: tuple[ExitPool, ...]
    views: tuple[predictors.ExitPool, ...]
    choices: tuple[predictors.ExitPool, ...]
    ranges: tuple[tuple[Address, Address], ...]
    exclusive: frozenset[Family]
    lasting: frozenset[tuple[Family, Verdict]] = frozenset()

    @classmethod
    def nothing(cls) -> Mapping:
        """Before anything was read."""
        return cls("", 0, (), (), (), (), (), frozenset())

    def as_message(self) -> dict[str, Any]:
        """What the aggregator is told."""
        return {
            "rules": self.rules,
            "not_understood": len(self.not_understood),
            "exclusive": sorted(self.exclusive),
            "pools": [
                {
                    "family": pool.family,
                    "size": pool.size,
                    "origin": pool.origin,
                    "ranges": [[str(part.first), str(part.last)] for part in pool.ranges],
                }
                for pool in self.pools
            ],
        }

    def predict(self, wanted: Sequence[AllowedIp], everyone: Sequence[Address]) -> list[Predictions]:
        """What each predictor says of each allowed-ip; nothing of a network.

        Args:
            wanted: the allowed-ips.
            everyone: every tunnel address of the relay, since ranks count.
        """
        said: list[Predictions] = [{} for _ in wanted]
        for family in Family:
            views = [view for pool, view in zip(self.pools, self.views, strict=True) if pool.family is family]
            rows = [row for row, one in enumerate(wanted) if one.family is family and not one.is_network]
            peers = [one for one in everyone if one.version == (4 if family is Family.IPV4 else 6)]
            found = predictors.predict([wanted[row].address for row in rows], views, peers)
            for name, table in found.items():
                for row, exits in zip(rows, table, strict=True):
                    said[row][name] = [None if exit_ is None else str(exit_) for exit_ in exits]
        return said


def read_mapping(config: Config, legacy_saves: LegacySaves | None = None) -> Mapping:
    """The mapping of our network namespace now.

    Args:
        config: names the exits where the rules are not to.
        legacy_saves: as for `read_live`.

    Raises:
        ExitprintError: the rules cannot be read.
    """
    rules = read_live(legacy_saves=legacy_saves)
    return mapping_of(rules, [parse_pool(text) for text in config.exits], routing_identity(rules))


def identity_of(rules: RuleSet, pools: Iterable[ExitPool], routing: str = "") -> str:
    """What an epoch hangs on: how exits are chosen, from which pools, and what else the choice follows.

    Marks count where a rule asks for one; `routing` is what the outgoing interface and its address follow. A
    peer that comes to an element of a map, or to a set of senders, changes nothing for the others.
    """
    hidden = any(one.about is About.HIDDEN for rule in rules.rules for one in rule.matches)
    marks = rules.marks if hidden or rules.not_understood else ""
    exits = digest([str(part) for pool in pools for part in pool.ranges])
    return " ".join([rules.choice, rules.load_identity, exits, marks, routing]).rstrip()


def mapping_of(rules: RuleSet, configured: Sequence[AddressRange], routing: str = "") -> Mapping:
    """The mapping that these rules and the configured pools make; `routing` as for `identity_of`."""
    pools = effective_pools(rules, configured)
    hashed = [rule.mapping.pool for rule in rules.rules if isinstance(rule.mapping, RangeHash)]
    ranges = dict.fromkeys((*hashed, *(part for pool in pools for part in pool.ranges)))
    return Mapping(
        identity=identity_of(rules, pools, routing),
        rules=len(rules.rules),
        not_understood=tuple((str(one.where), one.reason) for one in rules.not_understood),
        pools=pools,
        views=tuple(_view(pool, rules.rules) for pool in pools),
        choices=_choices(rules.rules, pools),
        ranges=tuple((one.first, one.last) for one in ranges),
        exclusive=exclusive_families(rules),
        lasting=frozenset(
            (family, verdict)
            for rule in rules.rules
            if (verdict := _lasting(rule)) is not None
            for family in rule.families
        ),
    )


def _lasting(rule: NatRule) -> Verdict | None:
    """What a rule that looks at the source deserves to be called, None for one that does not keep an exit."""
    mapping = rule.mapping
    if isinstance(mapping, RangeHash):
        return Verdict.PINNED if mapping.persistent else Verdict.DESTINATION_LINKED
    if isinstance(mapping, Netmap) or (isinstance(mapping, FieldMap) and mapping.by_source):
        return Verdict.PINNED
    drawn = [mapping.chooser] if isinstance(mapping, Chosen) else []
    drawn += [one.chooser for one in rule.matches if one.chooser is not None]
    for chooser in drawn:
        if isinstance(chooser, JHash) and any(one.is_source for one in chooser.fields):
            others = [one for one in chooser.fields if not one.is_source]
            if all(one.is_destination for one in others):
                return Verdict.DESTINATION_LINKED if others else Verdict.PINNED
    return None


def _choices(rules: Iterable[NatRule], pools: Iterable[ExitPool]) -> tuple[predictors.ExitPool, ...]:
    """What each rule chooses from, each once; two rules that choose alike are named together."""
    found: dict[predictors.ExitPool, list[str]] = {}
    for rule in rules:
        for one in _chosen_from(rule):
            found.setdefault(one, []).append(rule.named)
    firsts = {one.first for one in found}
    for pool in pools:
        if pool.size > 1 and not any(first in pool for first in firsts):
            found.setdefault(_several(pool.ranges), []).append(pool.origin)
    return tuple(replace(one, origin=places(origins)) for one, origins in found.items())


def _chosen_from(rule: NatRule) -> Iterator[predictors.ExitPool]:
    mapping = rule.mapping
    if isinstance(mapping, RangeHash):
        yield predictors.ExitPool(mapping.pool.first, mapping.pool.last)
    elif isinstance(mapping, Netmap):
        yield from (predictors.ExitPool(pair.exits.first, pair.exits.last) for pair in mapping.pairs)
    elif isinstance(mapping, Chosen) and mapping.addresses:
        ends = sorted(mapping.addresses, key=int)
        yield predictors.ExitPool(ends[0], ends[-1], mapping.addresses, _hash_rule(mapping))
    elif isinstance(mapping, Chosen | FieldMap):
        # In a range that a number or a value stands for, it is the kernel's own hash that chooses.
        yield from (predictors.ExitPool(one.first, one.last) for one in mapping.pools if not one.single)
        for family in dict.fromkeys(pool.family for pool in mapping.pools):
            parts = normalised(pool for pool in mapping.pools if pool.family == family)
            if sum(part.size for part in parts) > 1:
                yield _several(parts)


def _several(ranges: Sequence[AddressRange]) -> predictors.ExitPool:
    parts = tuple((part.first, part.last) for part in ranges)
    return predictors.ExitPool(parts[0][0], parts[-1][1], parts=parts if len(parts) > 1 else ())


def _view(pool: ExitPool, rules: Iterable[NatRule]) -> predictors.ExitPool:
    """A pool as the predictors see it: in the order of the map that chooses from it, if there is one."""
    whole = pool.ranges[0].first, pool.ranges[-1].last
    for rule in rules:
        mapping = rule.mapping
        if isinstance(mapping, RangeHash) and mapping.pool.first in pool:
            return predictors.ExitPool(mapping.pool.first, mapping.pool.last)
        if isinstance(mapping, Chosen) and mapping.addresses and mapping.addresses[0] in pool:
            return predictors.ExitPool(*whole, mapping.addresses, _hash_rule(mapping))
    return _several(pool.ranges)


def _hash_rule(mapping: Chosen) -> predictors.HashRule | None:
    """The seeded hash of the source alone that chooses, where there is one."""
    chooser = mapping.chooser
    if not isinstance(chooser, JHash) or chooser.seed is None:
        return None
    if not all(one.is_source for one in chooser.fields):
        return None
    return predictors.HashRule(tuple(one.mask for one in chooser.fields), chooser.modulus, chooser.seed)
