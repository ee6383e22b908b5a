# SPDX-License-Identifier: Apache-2.0
"""What each source-NAT rule tells about the peer whose flow it translates, and what to write instead.

Pure: a `RuleSet` in, one `Judgement` for each rule out. The facts are docs/leak-modes.md §2, the verdicts §4,
the remedies §7. A judgement is about the rules alone, whatever the traffic is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised
from detector.base.verdicts import Severity
from detector.nat.model import (
    About,
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
    SymHash,
)
from detector.nat.remedy import Remedy, remedies
from detector.nat.splits import Cell, Split, splits

_NO_REMEDY = " The rules name no second exit to share, so no other rule can be written from them: add exits."

HASH_BITS = 32.0
"""The kernel's hash is one 32-bit number, however large an IPv6 pool is (docs/leak-modes.md §2)."""


class Reach(StrEnum):
    """To whom a rule tells something."""

    ANY_SITE_EVERY_RELAY = "any site, across relays"
    ONE_SITE_EVERY_RELAY = "one site, across relays"
    ANY_SITE_THIS_RELAY = "any site, on this relay"
    ONE_SITE_THIS_RELAY = "one site, on this relay"
    OWN_NETWORK = "the own network alone"
    NOBODY = "nobody"
    UNKNOWN = "unknown"


class Form(StrEnum):
    """The kind of a finding: what about the rule it is that tells, or does not."""

    KERNEL_HASH = "kernel_hash"
    SEEDED_HASH = "seeded_hash"
    DRAWN_HASH = "drawn_hash"
    NETMAP = "netmap"
    BITS = "address_bits"
    ONE_TO_ONE = "one_to_one"
    PORT_BLOCK = "port_block"
    GROUPS = "groups"
    INTERFACES = "interfaces"
    DRAW = "draw"
    ONE_EXIT = "one_exit"
    PORTS_ONLY = "ports_only"
    OWN_NETWORK = "own_network"
    NOTHING = "translates_nothing"
    NOT_UNDERSTOOD = "not_understood"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one rule leaks.

    Attributes:
        where: the rule's place.
        text: the rule as it is written; for the operator's own screen, not for logs.
        families: ``ipv4``, ``ipv6``.
        verdict: as docs/leak-modes.md §4 names it.
        predictor: what predicts the exit, where the verdict is ``predictable``.
        form: the kind of finding.
        severity: how bad it is.
        reach: to whom it leaks.
        bits: what one exit tells at most, in bits.
        exits: how many exits it chooses from; 0 for an interface's own address.
        why: one paragraph for people.
        remedy: what to write instead, or None; several rules may share one.
        comment: the rule's own comment.
        note: what the finding hangs on, or an empty string.
    """

    where: str
    text: str
    families: tuple[str, ...]
    verdict: str
    predictor: str | None
    form: Form
    severity: Severity
    reach: Reach
    bits: float | None
    exits: int
    why: str
    remedy: Remedy | None = None
    comment: str = ""
    note: str = ""

    @property
    def leaks(self) -> bool:
        """Whether it is a leak that the exit status tells of."""
        return self.severity is Severity.CRITICAL

    @property
    def acts(self) -> bool:
        """Whether it translates anything, as far as is known."""
        return self.form is not Form.NOTHING


@dataclass(frozen=True, slots=True)
class _Finding:
    """A judgement without what every rule has alike."""

    verdict: str
    form: Form
    severity: Severity
    reach: Reach
    bits: float | None
    why: str
    predictor: str | None = None


Told = Sequence[tuple[Cell, Split]]


def audit(rules: RuleSet) -> tuple[Judgement, ...]:
    """One judgement for each rule, in the kernel's order, then one for each that is not understood."""
    told = splits(rules)
    found = [(rule, _find(rule, told.get(at, ()))) for at, rule in enumerate(rules.rules)]
    exclusive = {at for at, cells in told.items() if any(split.exclusive for _, split in cells)}
    leaking = [at for at, (_, finding) in enumerate(found) if finding.severity is Severity.CRITICAL]
    written = remedies(rules, told, leaking, exclusive)
    judged = [
        _judgement(rule, finding, written.get(at), _order_note(rule, rules))
        for at, (rule, finding) in enumerate(found)
    ]
    judged += (_judgement(rule, _unreached(), None, "") for rule in rules.unreached)
    unread = [
        _unknown(str(one.where), one.text, f"{one.reason}. It may leak.") for one in rules.not_understood
    ]
    return _once([*judged, *unread])


def _unknown(where: str, text: str, why: str) -> Judgement:
    return Judgement(
        where=where,
        text=text,
        families=(),
        verdict="unknown",
        predictor=None,
        form=Form.NOT_UNDERSTOOD,
        severity=Severity.UNKNOWN,
        reach=Reach.UNKNOWN,
        bits=None,
        exits=0,
        why=f"This rule is not understood: {why}",
    )


_ORDER = [Severity.CRITICAL, Severity.UNKNOWN, Severity.WARNING, Severity.OK]


def _once(judged: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """A rule that several ways reach is told of once, with the worst that is found of it."""
    worst: dict[str, Judgement] = {}
    for one in judged:
        before = worst.get(one.where)
        rank = (_ORDER.index(one.severity), -(one.bits or 0.0))
        if before is None or rank < (_ORDER.index(before.severity), -(before.bits or 0.0)):
            worst[one.where] = one
    return tuple(sorted(worst.values(), key=lambda one: one.severity is Severity.UNKNOWN))


def _judgement(rule: NatRule, finding: _Finding, remedy: Remedy | None, note: str) -> Judgement:
    leaks = finding.severity is Severity.CRITICAL
    if finding.severity is Severity.UNKNOWN:
        return replace(_unknown(str(rule.where), rule.text, f"{finding.why}. It may leak."), note=note)
    return Judgement(
        where=str(rule.where),
        text=rule.text,
        families=tuple(sorted(rule.families)),
        verdict=finding.verdict,
        predictor=finding.predictor,
        form=finding.form,
        severity=finding.severity,
        reach=finding.reach,
        bits=None if finding.bits is None else round(finding.bits, 2),
        exits=sum(pool.size for pool in normalised(rule.pools)),
        why=finding.why + (_NO_REMEDY if leaks and remedy is None else ""),
        remedy=remedy if leaks else None,
        comment=rule.comment,
        note=note,
    )


def _order_note(rule: NatRule, rules: RuleSet) -> str:
    """What a listing cannot tell: which of several chains of one priority is asked first."""
    others = [one for group in rules.rivals if rule.base in group for one in group if one != rule.base]
    if not others or rule.base is None:
        return ""
    named = ", ".join(map(str, others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return (
        f"{named} {'has' if len(others) == 1 else 'have'} the same priority ({rule.base.priority}): the "
        "kernel asks the chain that was registered last first, and a listing does not tell which that is. "
        "What that one takes never gets here; give one of them another priority."
    )


def _find(rule: NatRule, told: Told) -> _Finding:
    if told and all(cell.own_network for cell, _ in told):
        return _own_network()
    seen = [(cell, split) for cell, split in told if not cell.own_network]
    mapping = rule.mapping
    match mapping:
        case RangeHash(pool, persistent):
            return _worse(_range_hash(rule, pool, persistent), seen)
        case Netmap():
            return _netmap(mapping)
        case Chosen():
            return _worse(_chosen(rule, mapping), seen)
        case FieldMap():
            return _field_map(rule, mapping, seen)
        case PortsOnly():
            why = "Only ports are translated: the packet keeps its own source address, whatever that tells."
            return _Finding("unknown", Form.PORTS_ONLY, Severity.WARNING, Reach.UNKNOWN, None, why)
        case _:
            return _worse(_drawn(rule, seen) or _one_exit(rule), seen)


def _worse(found: _Finding, told: Told) -> _Finding:
    """A finding about the way of choosing, or what the split from other rules tells, if that is worse."""
    if found.severity is Severity.CRITICAL and found.form is not Form.ONE_EXIT:
        return found
    split = _split(told)
    return (
        split if split is not None and _ORDER.index(split.severity) < _ORDER.index(found.severity) else found
    )


def _split(told: Told) -> _Finding | None:
    """What the cells of a rule tell beside the others: the worst of it."""
    exclusive = [split for _, split in told if split.exclusive]
    if exclusive:
        worst = max(exclusive, key=lambda one: (not one.by_port, one.peers))
        return _one_to_one(worst.peers, worst.by_port)
    differing = [(cell, split) for cell, split in told if split.others]
    if not differing:
        return None
    about = frozenset(kind for _, split in differing for kind in split.about)
    exits = max(split.exits for _, split in differing)
    if About.BITS in about:
        return _modulo(exits)
    reason = next((split.reason for _, split in differing if split.reason), "")
    own = frozenset(one.about for cell, _ in differing for one in cell.selection.sender)
    if About.HIDDEN in own:
        return _Finding("unknown", Form.NOT_UNDERSTOOD, Severity.UNKNOWN, Reach.UNKNOWN, None, reason)
    if not about - {About.HIDDEN}:
        return None  # the rest beside marked packets: those are told of
    ports = len({split_exits[1] for split_exits in (cell.exits for cell, _ in differing)}) > 1
    return _groups(exits, about - {About.HIDDEN}, reason, ports)


def _own_network() -> _Finding:
    why = (
        "It takes traffic to private addresses alone: no site on the internet sees this exit. The hosts of "
        "the own network see it."
    )
    return _Finding("single_exit", Form.OWN_NETWORK, Severity.OK, Reach.OWN_NETWORK, 0.0, why)


def _unreached() -> _Finding:
    why = "No packet gets here: earlier rules take everything that this one could. It can go."
    return _Finding("unreached", Form.NOTHING, Severity.OK, Reach.NOBODY, None, why)


def _range_hash(rule: NatRule, pool: AddressRange, persistent: bool) -> _Finding:
    bits = min(math.log2(pool.size), HASH_BITS)
    cure = _false_cure(rule)
    if persistent:
        why = (
            "The kernel hashes the tunnel address alone, with no secret: every site sees this peer at the "
            "same fraction of the pool, on this relay and on every other relay with such a rule, whatever "
            f"its pool. The exit can be computed from the tunnel address.{cure}"
        )
        reach, predictor = Reach.ANY_SITE_EVERY_RELAY, "kernel_persistent"
    else:
        why = (
            "The kernel hashes tunnel address and destination, with no secret: a site sees this peer at the "
            "same fraction of the pool on every relay with such a rule, whatever its pool. The exit can be "
            f"computed from the tunnel address and the site's own address. Other sites see other exits.{cure}"
        )
        reach, predictor = Reach.ONE_SITE_EVERY_RELAY, "kernel_destination"
    return _Finding("predictable", Form.KERNEL_HASH, Severity.CRITICAL, reach, bits, why, predictor)


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
    reach = Reach.ANY_SITE_EVERY_RELAY
    return _Finding("predictable", Form.NETMAP, Severity.CRITICAL, reach, bits, why, "netmap")


def _chosen(rule: NatRule, mapping: Chosen) -> _Finding:
    inner = max((slot.exits for slot in mapping.slots), key=lambda pool: pool.size, default=None)
    if inner is not None and not inner.single:
        found = _range_hash(rule, inner, mapping.persistent)
        why = f"The draw leads to a range of {inner.size} exits, in which the kernel's own hash chooses. "
        return replace(found, why=why + found.why)
    exits = len({(slot.exits, slot.ports) for slot in mapping.slots})
    if exits < 2:
        return _one_exit(rule)
    chooser = mapping.chooser
    return _jhash(chooser, math.log2(exits)) if isinstance(chooser, JHash) else _draws(chooser)


def _drawn(rule: NatRule, told: Told) -> _Finding | None:
    """A draw among the conditions of a rule to one exit."""
    choosers = rule.choosers
    if not choosers:
        return None
    hashed = [one for one in choosers if isinstance(one, JHash)]
    exits = max((split.exits for _, split in told), default=1)
    if hashed:
        return _jhash(hashed[0], math.log2(max(exits, 2)))
    return _draws(next(one for one in choosers if not isinstance(one, JHash)))


def _draws(chooser: Numgen | SymHash) -> _Finding:
    if isinstance(chooser, SymHash):
        why = (
            "A hash of the whole flow, with a kernel secret, gives each flow its exit: it does not tell who."
        )
    else:
        how = "draws" if chooser.mode.value == "random" else "counts out"
        why = f"The kernel {how} an exit for each flow, whoever sends it: it does not tell who."
    return _Finding("unlinkable", Form.DRAW, Severity.OK, Reach.NOBODY, 0.0, why)


def _jhash(chooser: JHash, bits: float) -> _Finding:
    source = any(one.is_source for one in chooser.fields)
    site = any(one.is_destination for one in chooser.fields)
    flow = any(one.name.endswith(" sport") or one.name.endswith("proto-src") for one in chooser.fields)
    if not source:
        why = "The hash does not look at the source address: the exit does not tell who."
        return _Finding("unlinkable", Form.DRAW, Severity.OK, Reach.NOBODY, 0.0, why)
    if flow:
        why = "The hash takes the source port in, so each flow gets an exit of its own: it does not tell who."
        if chooser.seed is not None:
            why += " Leave the seed out all the same: a seed that gets known makes flows computable."
        return _Finding("unlinkable", Form.DRAW, Severity.OK, Reach.NOBODY, 0.0, why)
    who = "a site sees" if site else "every site sees"
    if chooser.seed is not None:
        reach = Reach.ONE_SITE_EVERY_RELAY if site else Reach.ANY_SITE_EVERY_RELAY
        why = (
            f"The hash is seeded with a number that is written in the rules: {who} this peer at the same "
            "fraction of the pool on every relay that is given the same seed, and who knows the seed "
            "computes the exit."
        )
        return _Finding("predictable", Form.SEEDED_HASH, Severity.CRITICAL, reach, bits, why, "seeded_jhash")
    reach = Reach.ONE_SITE_THIS_RELAY if site else Reach.ANY_SITE_THIS_RELAY
    why = (
        f"The kernel drew a seed for this rule when it was loaded: {who} this peer at the same exit on this "
        "relay, until the rules are loaded again, which re-draws everybody. Other relays say nothing of it."
    )
    verdict = "destination_linked" if site else "pinned"
    return _Finding(verdict, Form.DRAWN_HASH, Severity.WARNING, reach, bits, why)


def _field_map(rule: NatRule, mapping: FieldMap, told: Told) -> _Finding:
    if not mapping.entries:
        why = "Its map is empty now: it translates nothing until something fills the map."
        return _Finding("single_exit", Form.NOTHING, Severity.OK, Reach.NOBODY, None, why)
    split = _split(told)
    if split is not None and split.form in {Form.ONE_TO_ONE, Form.PORT_BLOCK}:
        return split
    widest = max((entry.exits for entry in mapping.entries), key=lambda pool: pool.size)
    if not widest.single:
        found = _range_hash(rule, widest, mapping.persistent)
        why = f"The map leads to up to {widest.size} exits, among which the kernel's own hash chooses. "
        return replace(found, why=why + found.why)
    if split is not None:
        return split
    exits = len({entry.exits for entry in mapping.entries})
    if exits > 1 and not mapping.by_source:
        why = "The map does not look at the source address: the exit does not tell who."
        return _Finding("unlinkable", Form.DRAW, Severity.OK, Reach.NOBODY, 0.0, why)
    return _one_exit(rule)


def _one_exit(rule: NatRule) -> _Finding:
    if isinstance(rule.mapping, Masquerade):
        why = "Everybody whom the rule takes leaves by the outgoing interface's address: it tells nothing."
    else:
        why = "Everybody whom the rule takes leaves by one address: it tells no more than that."
    return _Finding("single_exit", Form.ONE_EXIT, Severity.OK, Reach.NOBODY, 0.0, why)


def _one_to_one(peers: int, by_port: bool) -> _Finding:
    if by_port:
        why = (
            "One source address has these ports of the exit for itself: exit and port together are the "
            "peer's identity, for every site, and for everybody who once learns whose they are. Others share "
            "the address, which hides nobody."
        )
        form = Form.PORT_BLOCK
    else:
        why = (
            "One source address has this exit for itself: the exit is the peer's identity, for every site, "
            "and for everybody who once learns whose it is."
        )
        form = Form.ONE_TO_ONE
    bits = math.log2(peers) if peers > 1 else None
    return _Finding("exclusive", form, Severity.CRITICAL, Reach.ANY_SITE_EVERY_RELAY, bits, why)


def _modulo(exits: int) -> _Finding:
    why = (
        "Bits of the tunnel address choose the exit, with no secret: every site learns them, and finds "
        "them again on every relay that does the same."
    )
    reach = Reach.ANY_SITE_EVERY_RELAY
    return _Finding(
        "predictable", Form.BITS, Severity.CRITICAL, reach, math.log2(max(exits, 2)), why, "modulo"
    )


_BY = {
    About.SENDER: "by their tunnel address",
    About.NAMED: "by a list that the rules do not show",
    About.INTERFACE: "by the interface that they come in by",
}


def _groups(exits: int, about: frozenset[About], reason: str, ports: bool) -> _Finding:
    kinds = [kind for kind in _BY if kind in about] or [About.SENDER]
    by = " and ".join(_BY[kind] for kind in kinds)
    what = "an exit or ports of an exit" if ports else "an exit"
    why = (
        f"Peers are split {by} into groups with {what} each, {exits} in all: every site "
        "learns a visitor's group, always. Inside a group nobody is told apart; see that the groups are "
        "large."
    )
    if kinds == [About.INTERFACE]:
        why += " A tunnel interface with one peer is a group of one."
    if About.NAMED in kinds and reason:
        why += f" ({reason[0].upper()}{reason[1:]}: a list of one is an exit of one's own.)"
    form = Form.INTERFACES if kinds == [About.INTERFACE] else Form.GROUPS
    bits = math.log2(max(exits, 2))
    return _Finding("pinned", form, Severity.WARNING, Reach.ANY_SITE_THIS_RELAY, bits, why)


def families_translated(rules: RuleSet) -> frozenset[Family]:
    """The families in which some rule translates."""
    return frozenset(family for rule in rules.rules for family in rule.families)
