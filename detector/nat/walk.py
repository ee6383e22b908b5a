# SPDX-License-Identifier: Apache-2.0
"""Follows packets through chains, as the kernel does, and lists the source-NAT rules that they can reach.

nftables and iptables differ in how a rule is written, not in how chains are walked: both readers turn their
rules into `Entry` and leave jumps, gotos, returns, priorities and rules that nothing reaches to this module.

Chains of one priority are asked last-registered first (measured on 6.18, ip and inet tables in any mix,
iptables-nft beside nft), and a listing does not tell for sure which was registered last: none of them takes
anything away from another. An accept ends its own base chain only: the next nat chain is asked all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby

from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.nat.choices import joined_choices
from detector.nat.model import (
    About,
    Base,
    Chosen,
    Exemption,
    FieldMap,
    Mapping,
    Match,
    NatRule,
    Netmap,
    NotUnderstood,
    RuleSet,
    Where,
    rule_set,
)
from detector.nat.selection import Consumed, remaining, selections
from detector.nat.splits import doubts

MAX_JUMPS = 64
"""Jumps below each other; the kernel allows 16."""

MAX_STEPS = 200_000
"""Rules visited, over all ways; more is not a rule set that people write but one that multiplies its ways."""


@dataclass(frozen=True, slots=True)
class Translate:
    """The source is translated, and no further rule is asked."""

    mapping: Mapping
    flags: frozenset[str] = frozenset()
    ports: str = ""


@dataclass(frozen=True, slots=True)
class Jump:
    """On to another chain; `comes_back` tells a jump from a goto."""

    target: str
    comes_back: bool = True


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the chain that jumped here."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Accepted or dropped: the rest of this base chain is not asked; `dropped` ends the packet."""

    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Unclear:
    """About source NAT, and not understood."""

    reason: str
    compat: bool = False


Action = Translate | Jump | Return | Stop | Unclear


@dataclass(frozen=True, slots=True)
class Branch:
    """What a rule does with the packets that one more condition lets in; a vmap has one for each value."""

    action: Action
    match: Match | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule: for packets of `families` under `matches`, the branch that fits; none: go on."""

    where: Where
    text: str
    families: frozenset[Family]
    matches: tuple[Match, ...]
    branches: tuple[Branch, ...]
    lead: tuple[str, ...] = ()
    comment: str = ""


Chains = AnyMapping[str, Sequence[Entry]]


@dataclass(frozen=True, slots=True)
class Hooked:
    """A base chain, and the chains that it can jump to.

    Attributes:
        base: its name and priority.
        chains: the rules of each chain of its table.
        families: whose packets it sees.
        stateless: it translates without conntrack, so that nat chains are asked all the same.
    """

    base: Base
    chains: Chains
    families: frozenset[Family]
    stateless: bool = False


def walked(hooked: Iterable[Hooked], unread: Iterable[NotUnderstood] = (), marks: str = "") -> RuleSet:
    """The source-NAT rules that packets can reach by these base chains.

    Args:
        hooked: the base chains, in any order; those of one priority as they are listed.
        unread: what the reader itself did not understand.
        marks: the fingerprint of the rules that set marks.
    """
    walk = _Walk(unread=list(unread))
    rivals: list[tuple[Base, ...]] = []
    ordered = sorted(hooked, key=lambda one: one.base.priority)
    for _, level in groupby(ordered, key=lambda one: one.base.priority):
        equals = list(level)
        taken = [_Way(walk, one).all() for one in equals]
        walk.lower += taken
        rivals += _rivals([one.base for one in equals], walk.rules)
    rules, unreached = joined_choices(walk.rules), _never_reached(walk)
    unclear = doubts(RuleSet(rules, rivals=tuple(rivals)))
    told = dict.fromkeys([*walk.unread, *unclear])
    return rule_set(rules, told, unreached, walk.exemptions, rivals, marks)


def _rivals(equals: Sequence[Base], rules: Sequence[NatRule]) -> list[tuple[Base, ...]]:
    """Those chains of one priority that translate something, where they are several."""
    acting = {rule.base for rule in rules}
    found = tuple(one for one in equals if one in acting)
    return [found] if len(found) > 1 else []


def _never_reached(walk: _Walk) -> list[NatRule]:
    """A rule that one way reaches is not called unreached for the others."""
    reached = {rule.where for rule in walk.rules}
    return [rule for rule in walk.unreached if rule.where not in reached]


@dataclass(slots=True)
class _Walk:
    rules: list[NatRule] = field(default_factory=list)
    unread: list[NotUnderstood] = field(default_factory=list)
    unreached: list[NatRule] = field(default_factory=list)
    exemptions: list[Exemption] = field(default_factory=list)
    lower: list[Consumed] = field(default_factory=list)
    steps: int = 0


@dataclass(slots=True)
class _Scope:
    """A chain that packets are in: what its returns took away, and the exemptions that end with it."""

    returned: Consumed = field(default_factory=Consumed)
    open: list[int] = field(default_factory=list)


class _Way:
    """One base chain with what it jumps to."""

    def __init__(self, walk: _Walk, hooked: Hooked) -> None:
        self._walk = walk
        self._hooked = hooked
        self._gone = Consumed()  # for the rest of this base chain
        self._final = Consumed()  # for later base chains too
        self._scopes: list[_Scope] = []

    def all(self) -> Consumed:
        """Walks the chain; what no later base chain sees."""
        self._chain(self._hooked.base.chain, self._hooked.families, (), ())
        return self._final

    def _chain(
        self, name: str, families: frozenset[Family], matches: tuple[Match, ...], above: tuple[str, ...]
    ) -> None:
        scope = _Scope()
        self._scopes.append(scope)
        for entry in self._hooked.chains.get(name, ()):
            taken = entry.families & families
            if not taken:
                continue
            self._walk.steps += 1
            if self._walk.steps > MAX_STEPS or name in above or len(above) > MAX_JUMPS:
                self._unclear(entry, "its chains lead into each other without end, or in too many ways")
                break
            for branch in entry.branches:
                self._act(entry, branch, taken, matches, (*above, name))
        self._scopes.pop()
        if self._scopes:  # a return from the base chain is an accept
            for at in scope.open:
                self._walk.exemptions[at] = replace(self._walk.exemptions[at], until=len(self._walk.rules))

    def _act(
        self,
        entry: Entry,
        branch: Branch,
        families: frozenset[Family],
        outer: tuple[Match, ...],
        above: tuple[str, ...],
    ) -> None:
        own = entry.matches if branch.match is None else (*entry.matches, branch.match)
        matches = (*outer, *own)
        match branch.action:
            case Jump(target, comes_back):
                left = self._left(families, matches)
                if left and target in self._hooked.chains:
                    self._chain(target, left, matches, above)
                if not comes_back:
                    self._return(entry, families, matches)
            case Return():
                self._return(entry, families, matches)
            case Stop(dropped):
                self._take(entry, families, matches, final=dropped)
            case Unclear(reason, compat):
                self._unclear(entry, reason, compat)
            case Translate():
                self._translate(entry, branch.action, families, outer, matches, len(above) - 1)

    def _left(self, families: frozenset[Family], matches: tuple[Match, ...]) -> frozenset[Family]:
        """The families of which some packets under these conditions get here."""
        return frozenset(one for one in families if self._gets_here(one, matches))

    def _gets_here(self, family: Family, matches: tuple[Match, ...]) -> bool:
        before = [*self._walk.lower, self._gone, *(scope.returned for scope in self._scopes)]
        return any(remaining(one, family, before, 0) for one in selections(matches, family))

    def _alone(self, family: Family, matches: tuple[Match, ...]) -> list[AddressRange]:
        """The one sender that earlier rules leave; nothing where there are more."""
        ways = selections(matches, family)
        before = [*self._walk.lower, self._gone, *(scope.returned for scope in self._scopes)]
        left = remaining(ways[0], family, before, 1) if len(ways) == 1 else ()
        if len(left) != 1 or left[0][0] != left[0][1]:
            return []
        kind = IPv4Address if family is Family.IPV4 else IPv6Address
        return [AddressRange.of(kind(left[0][0]))]

    def _translate(
        self,
        entry: Entry,
        action: Translate,
        families: frozenset[Family],
        outer: tuple[Match, ...],
        matches: tuple[Match, ...],
        depth: int,
    ) -> None:
        left = self._left(families, matches)
        rule = NatRule(
            left or families,
            entry.where,
            entry.text,
            matches,
            action.mapping,
            action.flags,
            inherited=len(outer),
            depth=depth,
            base=self._hooked.base,
            lead=entry.lead,
            ports=action.ports,
            comment=entry.comment,
            number=len(self._walk.rules),
            alone=tuple(one for family in sorted(left) for one in self._alone(family, matches)),
        )
        if not left:
            self._walk.unreached.append(rule)
            return
        self._walk.rules.append(rule)
        taking = matches if _is_total(action.mapping) else _under_map(action.mapping, matches)
        if taking is not None:
            self._take(entry, left, taking, final=not self._hooked.stateless, exempt=False)

    def _take(
        self,
        entry: Entry,
        families: frozenset[Family],
        matches: tuple[Match, ...],
        *,
        final: bool,
        exempt: bool = True,
    ) -> None:
        """These packets are asked no further in this base chain, or (`final`) at all."""
        if exempt:
            self._exempt(entry, families, matches)
        self._gone.add(matches, families)
        if final:
            self._final.add(matches, families)

    def _return(self, entry: Entry, families: frozenset[Family], matches: tuple[Match, ...]) -> None:
        self._scopes[-1].open.append(len(self._walk.exemptions))
        self._exempt(entry, families, matches)
        self._scopes[-1].returned.add(matches, families)

    def _exempt(self, entry: Entry, families: frozenset[Family], matches: tuple[Match, ...]) -> None:
        since = len(self._walk.rules)
        self._walk.exemptions.append(Exemption(entry.where, families, matches, since, MAX_STEPS))

    def _unclear(self, entry: Entry, reason: str, compat: bool = False) -> None:
        self._walk.unread.append(NotUnderstood(entry.where, entry.text, reason, compat))


def _is_total(mapping: Mapping) -> bool:
    """Whether it translates whatever reaches it."""
    match mapping:
        case Netmap(pairs):
            return any(pair.source is None for pair in pairs)
        case Chosen():
            return mapping.addresses is not None or _is_filled(mapping)
        case FieldMap(entries=entries):
            return any(one.catches_all for one in entries)
        case _:
            return True


def _is_filled(mapping: Chosen) -> bool:
    """Whether every number has an exit, be it a range."""
    following = mapping.chooser.offset
    for slot in mapping.slots:
        if slot.first > following:
            return False
        following = max(following, slot.last + 1)
    return following >= mapping.chooser.offset + mapping.chooser.modulus


def _under_map(mapping: Mapping, matches: tuple[Match, ...]) -> tuple[Match, ...] | None:
    """The packets that a map of source addresses alone takes; None where that is not told."""
    if not isinstance(mapping, FieldMap) or mapping.name or len(mapping.fields) != 1:
        return None
    (field_,) = mapping.fields
    sources = tuple(one.source for one in mapping.entries if one.source is not None)
    if not field_.is_source or field_.mask is not None or not sources:
        return None
    return (*matches, Match(field_.name, sources=sources, about=About.SENDER))
