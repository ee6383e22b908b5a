# SPDX-License-Identifier: Apache-2.0
"""The relay's mapping as rules and configuration give it: exit pools, and what they let one predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from detector import predictors
from detector.base.family import Address, Family
from detector.base.ranges import AddressRange, parse_pool
from detector.config.model import Config
from detector.nat.live import read_live
from detector.nat.model import Chosen, JHash, NatRule, RangeHash, RuleSet, one_to_one_rules
from detector.nat.pools import ExitPool, effective_pools
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
        ranges: what the kernel's own hash chooses from: the ranges of the rules, then those of `pools`.
        exclusive: families in which a rule maps peers to exits one to one.
    """

    identity: str
    rules: int
    not_understood: tuple[tuple[str, str], ...]
    pools: tuple[ExitPool, ...]
    views: tuple[predictors.ExitPool, ...]
    ranges: tuple[tuple[Address, Address], ...]
    exclusive: frozenset[Family]

    @classmethod
    def nothing(cls) -> Mapping:
        """Before anything was read."""
        return cls("", 0, (), (), (), (), frozenset())

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


def read_mapping(config: Config) -> Mapping:
    """The mapping of our network namespace now.

    Raises:
        ExitprintError: the rules cannot be read.
    """
    return mapping_of(read_live(), [parse_pool(text) for text in config.exits])


def mapping_of(rules: RuleSet, configured: Sequence[AddressRange]) -> Mapping:
    """The mapping that these rules and the configured pools make."""
    pools = effective_pools(rules, configured)
    hashed = [rule.mapping.pool for rule in rules.rules if isinstance(rule.mapping, RangeHash)]
    ranges = dict.fromkeys((*hashed, *(part for pool in pools for part in pool.ranges)))
    return Mapping(
        identity=f"{rules.fingerprint} {rules.load_identity}",
        rules=len(rules.rules),
        not_understood=tuple((str(one.where), one.reason) for one in rules.not_understood),
        pools=pools,
        views=tuple(_view(pool, rules.rules) for pool in pools),
        ranges=tuple((one.first, one.last) for one in ranges),
        exclusive=frozenset(family for rule in one_to_one_rules(rules) for family in rule.families),
    )


def _view(pool: ExitPool, rules: Iterable[NatRule]) -> predictors.ExitPool:
    """A pool as the predictors see it: in the order of the map that chooses from it, if there is one."""
    whole = pool.ranges[0].first, pool.ranges[-1].last
    for rule in rules:
        mapping = rule.mapping
        if isinstance(mapping, RangeHash) and mapping.pool.first in pool:
            return predictors.ExitPool(mapping.pool.first, mapping.pool.last)
        if isinstance(mapping, Chosen) and mapping.addresses and mapping.addresses[0] in pool:
            return predictors.ExitPool(*whole, mapping.addresses, _hash_rule(mapping))
    if len(pool.ranges) == 1:
        return predictors.ExitPool(*whole)
    return predictors.ExitPool(*whole, tuple(address for part in pool.ranges for address in part.addresses()))


def _hash_rule(mapping: Chosen) -> predictors.HashRule | None:
    """The seeded hash of the source alone that chooses, where there is one."""
    chooser = mapping.chooser
    if not isinstance(chooser, JHash) or chooser.seed is None:
        return None
    if not all(one.is_source for one in chooser.fields):
        return None
    return predictors.HashRule(tuple(one.mask for one in chooser.fields), chooser.modulus, chooser.seed)
