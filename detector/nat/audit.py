# SPDX-License-Identifier: Apache-2.0
"""What each source-NAT rule tells about the peer whose flow it translates, and what to write instead.

Pure: a `RuleSet` in, one `Judgement` for each rule out. The facts are docs/leak-modes.md §2, the verdicts §4,
the remedies §7. A judgement is about the rule alone, whatever the traffic is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised
from detector.nat.model import (
    Chosen,
    FieldMap,
    JHash,
    Masquerade,
    NatRule,
    Netmap,
    Numgen,
    PortsOnly,
    RangeHash,
    RuleSet,
    SingleAddress,
    SymHash,
    one_to_one_rules,
)
from detector.nat.remedy import Remedy, remedy_for

_NO_REMEDY = " The rules name no second exit to share, so no other rule can be written from them: add exits."

HASH_BITS = 32.0
"""The kernel's hash is one 32-bit number, however large an IPv6 pool is (docs/leak-modes.md §2)."""


class Severity(StrEnum):
    """How bad it is; `critical` is what the audit calls a leak."""

    CRITICAL = "critical"
    WARNING = "warning"
    OK = "ok"
    UNKNOWN = "unknown"


class Reach(StrEnum):
    """To whom a rule tells something."""

    ANY_SITE_EVERY_RELAY = "any site, across relays"
    ONE_SITE_EVERY_RELAY = "one site, across relays"
    ANY_SITE_THIS_RELAY = "any site, on this relay"
    ONE_SITE_THIS_RELAY = "one site, on this relay"
    NOBODY = "nobody"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one rule leaks.

    Attributes:
        where: the rule's place.
        text: the rule as it is written; for the operator's own screen, not for logs.
        families: ``ipv4``, ``ipv6``.
        verdict: as docs/leak-modes.md §4 names it.
        predictor: what predicts the exit, where the verdict is ``predictable``.
        severity: how bad it is.
        reach: to whom it leaks.
        bits: what one exit tells at most, in bits.
        exits: how many exits it chooses from; 0 for an interface's own address.
        why: one paragraph for people.
        remedy: what to write instead, or None.
    """

    where: str
    text: str
    families: tuple[str, ...]
    verdict: str
    predictor: str | None
    severity: Severity
    reach: Reach
    bits: float | None
    exits: int
    why: str
    remedy: Remedy | None = None

    @property
    def leaks(self) -> bool:
        """Whether it is a leak that the exit status tells of."""
        return self.severity is Severity.CRITICAL


@dataclass(frozen=True, slots=True)
class _Finding:
    """A judgement without what every rule has alike."""

    verdict: str
    severity: Severity
    reach: Reach
    bits: float | None
    why: str
    predictor: str | None = None


@dataclass(frozen=True, slots=True)
class _Around:
    """What a rule to one exit has to be seen with: the other rules to one exit.

    Attributes:
        exclusive: `id` of the rules that give a peer an exit of its own.
        peers: by family, how many of them stand for one source each.
        split: by family, the exits of rules that each take some sources to one exit.
        drawn: the exits of rules that each take some draws to one exit.
    """

    exclusive: frozenset[int]
    peers: Counter[Family]
    split: dict[Family, tuple[AddressRange, ...]]
    drawn: tuple[AddressRange, ...]

    @classmethod
    def of(cls, rules: RuleSet) -> _Around:
        """What this rule set has."""
        alone = one_to_one_rules(rules)
        single = [one for one in rules.rules if isinstance(one.mapping, SingleAddress)]
        split = [one.pools[0] for one in single if _splits_sources(one)]
        return cls(
            frozenset(id(one) for one in alone),
            Counter(one.pools[0].family for one in alone if isinstance(one.mapping, SingleAddress)),
            {family: normalised(pool for pool in split if pool.family == family) for family in Family},
            normalised(one.pools[0] for one in single if one.choosers),
        )


def audit(rules: RuleSet) -> tuple[Judgement, ...]:
    """One judgement for each rule, in the kernel's order, then one for each that is not understood."""
    around = _Around.of(rules)
    judged = [_judge(rule, around) for rule in rules.rules]
    unread = [
        Judgement(
            where=str(one.where),
            text=one.text,
            families=(),
            verdict="unknown",
            predictor=None,
            severity=Severity.UNKNOWN,
            reach=Reach.UNKNOWN,
            bits=None,
            exits=0,
            why=f"This rule is not understood: {one.reason}. It may leak.",
        )
        for one in rules.not_understood
    ]
    return (*_once(judged), *unread)


def _once(judged: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """A rule that several ways reach is told of once, with the worst that is found of it."""
    worst: dict[tuple[str, str], Judgement] = {}
    order = list(Severity)
    for one in judged:
        key = (one.where, one.text)
        if key not in worst or order.index(one.severity) < order.index(worst[key].severity):
            worst[key] = one
    return tuple(worst.values())


def _judge(rule: NatRule, around: _Around) -> Judgement:
    finding = _find(rule, around)
    exits = sum(pool.size for pool in normalised(rule.pools))
    leaks = finding.severity is Severity.CRITICAL
    remedy = remedy_for(rule, _shared(rule, around)) if leaks else None
    return Judgement(
        where=str(rule.where),
        text=rule.text,
        families=tuple(sorted(rule.families)),
        verdict=finding.verdict,
        predictor=finding.predictor,
        severity=finding.severity,
        reach=finding.reach,
        bits=None if finding.bits is None else round(finding.bits, 2),
        exits=exits,
        why=finding.why + (_NO_REMEDY if leaks and remedy is None else ""),
        remedy=remedy,
    )


def _shared(rule: NatRule, around: _Around) -> tuple[AddressRange, ...]:
    """The exits for a remedy: the rule's own; for rules to one exit each, those of all of them."""
    if not isinstance(rule.mapping, SingleAddress):
        return normalised(rule.pools)
    return around.drawn if rule.choosers else around.split.get(rule.pools[0].family, ())


def _splits_sources(rule: NatRule) -> bool:
    return any(one.about_source and not one.negated for one in rule.matches)


def _find(rule: NatRule, around: _Around) -> _Finding:
    mapping = rule.mapping
    match mapping:
        case RangeHash(pool, persistent):
            return _range_hash(rule, pool, persistent)
        case Netmap():
            return _netmap(mapping)
        case Chosen():
            return _chosen(rule, mapping)
        case FieldMap():
            return _field_map(rule, mapping, around)
        case SingleAddress():
            return _single(rule, around)
        case Masquerade():
            why = (
                "Everybody whom the rule takes leaves by the outgoing interface's address: it tells nothing."
            )
            return _Finding("single_exit", Severity.OK, Reach.NOBODY, 0.0, why)
        case PortsOnly():
            why = "Only ports are translated: the packet keeps its own source address, whatever that tells."
            return _Finding("unknown", Severity.WARNING, Reach.UNKNOWN, None, why)


def _range_hash(rule: NatRule, pool: AddressRange, persistent: bool) -> _Finding:
    bits = min(math.log2(pool.size), HASH_BITS)
    cure = _false_cure(rule)
    if persistent:
        why = (
            "The kernel hashes the tunnel address alone, with no secret: every site sees this peer at the "
            "same fraction of the pool, on this relay and on every other relay with such a rule, whatever "
            f"its pool. The exit can be computed from the tunnel address.{cure}"
        )
        return _Finding(
            "predictable", Severity.CRITICAL, Reach.ANY_SITE_EVERY_RELAY, bits, why, "kernel_persistent"
        )
    why = (
        "The kernel hashes tunnel address and destination, with no secret: a site sees this peer at the "
        "same fraction of the pool on every relay with such a rule, whatever its pool. The exit can be "
        f"computed from the tunnel address and the site's own address. Other sites see other exits.{cure}"
    )
    return _Finding(
        "predictable", Severity.CRITICAL, Reach.ONE_SITE_EVERY_RELAY, bits, why, "kernel_destination"
    )


def _false_cure(rule: NatRule) -> str:
    """What its flags do not do."""
    told = []
    port_flags = sorted(rule.flags & {"random", "fully-random"})
    if port_flags:
        told.append(f" `{port_flags[0]}` is no cure: it draws the port, the address stays the hash.")
    if "persistent" in rule.flags:
        told.append(
            " Dropping `persistent` is no cure either: the leak then goes to each site by itself, across "
            "relays."
        )
    return "".join(told)


def _netmap(mapping: Netmap) -> _Finding:
    bits = max((math.log2(pair.exits.size) for pair in mapping.pairs), default=0.0)
    why = (
        "The host bits of the tunnel address are kept in the exit: whoever sees the exit can write down "
        "the tunnel address's last bits, and finds them again on every relay that does the same."
    )
    return _Finding("predictable", Severity.CRITICAL, Reach.ANY_SITE_EVERY_RELAY, bits, why, "netmap")


def _chosen(rule: NatRule, mapping: Chosen) -> _Finding:
    inner = max((slot.exits for slot in mapping.slots), key=lambda pool: pool.size, default=None)
    if inner is not None and not inner.single:
        found = _range_hash(rule, inner, mapping.persistent)
        why = f"The draw leads to a range of {inner.size} exits, in which the kernel's own hash chooses. "
        return replace(found, why=why + found.why)
    exits = len({slot.exits for slot in mapping.slots})
    bits = math.log2(exits) if exits else 0.0
    chooser = mapping.chooser
    if exits < 2:
        return _one_exit()
    if isinstance(chooser, JHash):
        return _jhash(chooser, bits)
    return _draws(chooser)


def _draws(chooser: Numgen | SymHash) -> _Finding:
    if isinstance(chooser, SymHash):
        why = (
            "A hash of the whole flow, with a kernel secret, gives each flow its exit: it does not tell who."
        )
    else:
        how = "draws" if chooser.mode.value == "random" else "counts out"
        why = f"The kernel {how} an exit for each flow, whoever sends it: it does not tell who."
    return _Finding("unlinkable", Severity.OK, Reach.NOBODY, 0.0, why)


def _jhash(chooser: JHash, bits: float) -> _Finding:
    source = any(one.is_source for one in chooser.fields)
    site = any(one.is_destination for one in chooser.fields)
    flow = any(one.name.endswith(" sport") or one.name.endswith("proto-src") for one in chooser.fields)
    if not source:
        why = "The hash does not look at the source address: the exit does not tell who."
        return _Finding("unlinkable", Severity.OK, Reach.NOBODY, 0.0, why)
    if flow:
        why = "The hash takes the source port in, so each flow gets an exit of its own: it does not tell who."
        if chooser.seed is not None:
            why += " Leave the seed out all the same: a seed that gets known makes flows computable."
        return _Finding("unlinkable", Severity.OK, Reach.NOBODY, 0.0, why)
    who = "a site sees" if site else "every site sees"
    if chooser.seed is not None:
        reach = Reach.ONE_SITE_EVERY_RELAY if site else Reach.ANY_SITE_EVERY_RELAY
        why = (
            f"The hash is seeded with a number that is written in the rules: {who} this peer at the same "
            "fraction of the pool on every relay that is given the same seed, and who knows the seed "
            "computes the exit."
        )
        return _Finding("predictable", Severity.CRITICAL, reach, bits, why, "seeded_jhash")
    reach = Reach.ONE_SITE_THIS_RELAY if site else Reach.ANY_SITE_THIS_RELAY
    why = (
        f"The kernel drew a seed for this rule when it was loaded: {who} this peer at the same exit on this "
        "relay, until the rules are loaded again, which re-draws everybody. Other relays say nothing of it."
    )
    return _Finding("destination_linked" if site else "pinned", Severity.WARNING, reach, bits, why)


def _field_map(rule: NatRule, mapping: FieldMap, around: _Around) -> _Finding:
    widest = max((entry.exits for entry in mapping.entries), key=lambda pool: pool.size, default=None)
    if id(rule) in around.exclusive:
        return _one_to_one(len(mapping.entries))
    if widest is not None and not widest.single:
        found = _range_hash(rule, widest, mapping.persistent)
        why = f"The map leads to up to {widest.size} exits, among which the kernel's own hash chooses. "
        return replace(found, why=why + found.why)
    exits = len({entry.exits for entry in mapping.entries})
    if not mapping.by_source:
        why = "The map does not look at the source address: the exit does not tell who."
        return _Finding("unlinkable", Severity.OK, Reach.NOBODY, 0.0, why)
    if exits < 2:
        return _one_exit()
    if any(one.mask is not None for one in mapping.fields):
        return _modulo(exits)
    return _groups(exits)


def _single(rule: NatRule, around: _Around) -> _Finding:
    if id(rule) in around.exclusive:
        return _one_to_one(around.peers[rule.pools[0].family])
    if rule.choosers:
        drawn = [one for one in rule.choosers if isinstance(one, JHash)]
        exits = sum(pool.size for pool in around.drawn if pool.family == rule.pools[0].family)
        return _jhash(drawn[0], math.log2(max(exits, 2))) if drawn else _draws_of(rule)
    exits = sum(pool.size for pool in around.split.get(rule.pools[0].family, ()))
    if _splits_sources(rule) and exits > 1:
        masked = any(one.about_source and not one.sources for one in rule.matches)
        return _modulo(exits) if masked else _groups(exits)
    return _one_exit()


def _draws_of(rule: NatRule) -> _Finding:
    chooser = next(one for one in rule.choosers if not isinstance(one, JHash))
    return _draws(chooser)


def _one_exit() -> _Finding:
    why = "Everybody whom the rule takes leaves by one address: it tells no more than that."
    return _Finding("single_exit", Severity.OK, Reach.NOBODY, 0.0, why)


def _one_to_one(peers: int) -> _Finding:
    why = (
        "One source address has this exit for itself: the exit is the peer's identity, for every site, and "
        "for everybody who once learns whose it is."
    )
    bits = math.log2(peers) if peers > 1 else None
    return _Finding("exclusive", Severity.CRITICAL, Reach.ANY_SITE_EVERY_RELAY, bits, why)


def _modulo(exits: int) -> _Finding:
    why = (
        "Bits of the tunnel address choose the exit, with no secret: every site learns them, and finds "
        "them again on every relay that does the same."
    )
    reach = Reach.ANY_SITE_EVERY_RELAY
    return _Finding("predictable", Severity.CRITICAL, reach, math.log2(exits), why, "modulo")


def _groups(exits: int) -> _Finding:
    why = (
        f"Peers are split by their tunnel address into groups with an exit each, {exits} in all: every site "
        "learns a visitor's group, always. Inside a group nobody is told apart; see that the groups are "
        "large."
    )
    return _Finding("pinned", Severity.WARNING, Reach.ANY_SITE_THIS_RELAY, math.log2(exits), why)
