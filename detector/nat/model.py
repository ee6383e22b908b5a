# SPDX-License-Identifier: Apache-2.0
"""What a source-NAT rule says: where it stands, whom it takes, how it chooses the exit, and from which pool.

Both readers (nftables, iptables) end in these types, and everything else (pools for the kernel program,
predictors, the audit) starts from them. Nothing in here does I/O.

A rule can be about single peers (``ip saddr 10.64.0.2 snat to ...``, one-to-one maps). Fields that may hold
a tunnel address are therefore left out of ``repr``; a log names a rule by its `Where`, never by its `text`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from detector.base.family import Address, Family, family_of
from detector.base.ranges import AddressRange


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the packet that a hash or a map looks at.

    Attributes:
        name: as nft writes it: ``ip saddr``, ``ip6 daddr``, ``tcp sport``, ``iifname``.
        mask: only these bits of it, or None for all.
    """

    name: str
    mask: int | None = None

    @property
    def about(self) -> About:
        """What it can tell of the sender."""
        if self.is_source:
            return About.SENDER if self.mask is None else About.BITS
        return About.INTERFACE if self.name in INTERFACE_FIELDS else About.PLACE

    @property
    def is_source(self) -> bool:
        """Whether it says who the peer is: the source address before translation."""
        return self.name in SOURCE_FIELDS

    @property
    def is_destination(self) -> bool:
        """Whether it belongs to the site that is visited."""
        return self.name.rpartition(" ")[2] in {"daddr", "dport"}


SOURCE_FIELDS = frozenset(
    {"ip saddr", "ip6 saddr", "ct original ip saddr", "ct original ip6 saddr", "ct original saddr"}
)

INTERFACE_FIELDS = frozenset(
    {"iif", "iifname", "iifgroup", "iiftype", "meta ibrname", "meta ibriport", "meta sdif", "meta sdifname"}
)
"""Fields that say by which interface a packet came in, which may be a peer's own."""


class About(StrEnum):
    """What a condition looks at, as far as it can tell peers apart."""

    PLACE = "place"
    """The site, the outgoing interface, the protocol: nothing of who sends."""
    SENDER = "sender"
    """Source addresses that the rules write out."""
    BITS = "bits"
    """Bits of the source address."""
    NAMED = "named"
    """Senders by a list, a user or a station that the rules do not write out."""
    INTERFACE = "interface"
    """The interface that the packet came in by."""
    HIDDEN = "hidden"
    """Something that is decided elsewhere (a mark, a program) and may stand for a peer."""


@dataclass(frozen=True, slots=True)
class JHash:
    """``jhash FIELDS mod M [seed S] [offset O]``: the kernel's jhash, scaled to M, plus O.

    `seed` None means that the kernel drew one when the rule was loaded.
    """

    fields: tuple[Field, ...]
    modulus: int
    seed: int | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class SymHash:
    """``symhash mod M``: the kernel's hash of addresses and ports, with a secret of the kernel."""

    modulus: int
    offset: int = 0


class NumgenMode(StrEnum):
    """How a number generator goes on."""

    RANDOM = "random"
    INC = "inc"


@dataclass(frozen=True, slots=True)
class Numgen:
    """``numgen random|inc mod M``: a new number for each flow; iptables' ``-m statistic`` is the same."""

    mode: NumgenMode
    modulus: int
    offset: int = 0


Chooser = JHash | SymHash | Numgen


@dataclass(frozen=True, slots=True)
class Slot:
    """The numbers `first` to `last` of a chooser (offset included), and the exits and ports they mean."""

    first: int
    last: int
    exits: AddressRange
    ports: str = ""


@dataclass(frozen=True, slots=True)
class RangeHash:
    """``snat to A-B``: the kernel's own hash of source and destination (docs/leak-modes.md §2)."""

    pool: AddressRange
    persistent: bool

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from."""
        return (self.pool,)


@dataclass(frozen=True, slots=True)
class SingleAddress:
    """``snat to A``: one exit for everybody that the rule takes."""

    address: Address

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from."""
        return (AddressRange.of(self.address),)


@dataclass(frozen=True, slots=True)
class Masquerade:
    """The address of the outgoing interface: one exit, which the rules do not name."""

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """None: the address is the interface's."""
        return ()


@dataclass(frozen=True, slots=True)
class PortsOnly:
    """``snat to :P-Q``: ports are translated, the source address stays."""

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class NetmapPair:
    """Sources (None: any) whose host bits are kept under the prefix `exits`."""

    source: AddressRange | None = field(repr=False)
    exits: AddressRange


@dataclass(frozen=True, slots=True)
class Netmap:
    """``snat prefix to``, iptables' NETMAP: the network part is replaced, the host bits are kept."""

    pairs: tuple[NetmapPair, ...]

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from."""
        return _unique(pair.exits for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Chosen:
    """``snat to CHOOSER map {number : exits}``.

    Attributes:
        chooser: what gives the number.
        slots: in order of their numbers; a number without a slot is not translated by this rule.
        persistent: when a slot is a range, the kernel's range hash chooses in it, with this flag.
    """

    chooser: Chooser
    slots: tuple[Slot, ...]
    persistent: bool = False

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from, in the order of the numbers."""
        return _unique(slot.exits for slot in self.slots)

    def exits_of(self, number: int) -> AddressRange | None:
        """What a number of the chooser (offset included) stands for."""
        return next((slot.exits for slot in self.slots if slot.first <= number <= slot.last), None)

    @property
    def addresses(self) -> tuple[Address, ...] | None:
        """The exit of number offset + i at index i, for all i below the modulus.

        None when a number has no exit or a whole range of them, or when there are more than 65,536 numbers.
        """
        modulus, offset = self.chooser.modulus, self.chooser.offset
        if modulus > MAX_NUMBERS or any(not slot.exits.single for slot in self.slots):
            return None
        row: list[Address | None] = [None] * modulus
        for slot in self.slots:
            for number in range(max(slot.first - offset, 0), min(slot.last - offset + 1, modulus)):
                row[number] = slot.exits.first
        found = tuple(address for address in row if address is not None)
        return found if len(found) == modulus else None


MAX_NUMBERS = 65_536


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One element of a map.

    Attributes:
        key: the value of each field as written; ``*`` for whatever no other element has.
        source: the source among them, or None.
        exits: where it leads.
        ports: the source ports that go with it, or an empty string.
    """

    key: tuple[str, ...] = field(repr=False)
    source: AddressRange | None = field(repr=False)
    exits: AddressRange
    ports: str = ""

    @property
    def catches_all(self) -> bool:
        """Whether it is the element that takes whatever no other one has."""
        return self.key == ("*",)


@dataclass(frozen=True, slots=True)
class FieldMap:
    """``snat to FIELDS map {value : exits}``, e.g. source addresses or prefixes to addresses or ranges."""

    fields: tuple[Field, ...]
    entries: tuple[MapEntry, ...]
    persistent: bool = False
    name: str = ""

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from, in the order of the map."""
        return _unique(entry.exits for entry in self.entries)

    @property
    def by_source(self) -> bool:
        """Whether the source address is looked at."""
        return any(one.is_source for one in self.fields)


Mapping = RangeHash | SingleAddress | Masquerade | PortsOnly | Netmap | Chosen | FieldMap


@dataclass(frozen=True, slots=True)
class Where:
    """Where a rule stands.

    Attributes:
        reader: ``nftables`` or ``iptables``.
        family: ``ip``, ``ip6`` or ``inet``.
        table, chain: their names.
        handle: nft's rule handle, or None.
        table_handle: nft's table handle, or None.
        number: place in its chain, 1 being the first.
    """

    reader: str
    family: str
    table: str
    chain: str
    handle: int | None = None
    table_handle: int | None = None
    number: int | None = None

    def __str__(self) -> str:
        if self.reader == "iptables":
            tool = "ip6tables" if self.family == "ip6" else "iptables"
            return f"{tool} -t {self.table} {self.chain} rule {self.number}"
        place = f"{self.family} {self.table} {self.chain}"
        return f"{place} handle {self.handle}" if self.handle is not None else f"{place} rule {self.number}"


@dataclass(frozen=True, slots=True)
class Base:
    """A chain at hook postrouting.

    Attributes:
        family, table, chain: its name, as in `Where`.
        priority: the kernel asks chains in ascending order; of equal ones, the one registered last first.
        policy: of the chain.
        reader: ``nftables`` or ``iptables``.
    """

    family: str
    table: str
    chain: str
    priority: int = 100
    policy: str = "accept"
    reader: str = "nftables"

    def __str__(self) -> str:
        if self.reader == "iptables":
            return f"{'ip6tables' if self.family == 'ip6' else 'iptables'} -t {self.table} {self.chain}"
        return f"{self.family} {self.table} {self.chain}"


@dataclass(frozen=True, slots=True)
class Match:
    """One condition that limits whom a rule takes.

    Attributes:
        subject: as nft writes it (``ip saddr``, ``oifname``, ``meta l4proto``); the whole text of a condition
            that is known only as text.
        values: any of these; addresses as ``A``, ``A-B`` or ``A/len``.
        negated: none of `values` instead.
        chooser: what gives the number that `values` are compared with, when the condition is a draw.
        sources: the source addresses among `values`, when it is about them.
        about: what it can tell of the sender.
        reason: what decides, where that is `About.HIDDEN` or `About.NAMED`.
        origin: the rule whose one look at a draw led here (vmap), else None.
        options: where values are concatenations, the conditions that each of them stands for, any of which
            is enough; `sources` is empty then.
        text: in the language that the rule is written in, where that is not what the other fields say.
    """

    subject: str
    values: tuple[str, ...] = field(default=(), repr=False)
    negated: bool = False
    chooser: Chooser | None = None
    sources: tuple[AddressRange, ...] = field(default=(), repr=False)
    about: About = About.PLACE
    reason: str = ""
    origin: Where | None = None
    options: tuple[tuple[Match, ...], ...] = field(default=(), repr=False)
    text: str = field(default="", repr=False, compare=False)

    @property
    def about_source(self) -> bool:
        """Whether it looks at who the peer is."""
        return self.about is not About.PLACE

    def __str__(self) -> str:
        wanted = self.values[0] if len(self.values) == 1 else "{ " + ", ".join(self.values) + " }"
        if not self.values:
            return f"not ({self.subject})" if self.negated else self.subject
        return f"{self.subject} {'!= ' if self.negated else ''}{wanted}"


@dataclass(frozen=True, slots=True)
class Exemption:
    """A rule before a source-NAT rule that takes packets away from it, and translates them or not.

    Attributes:
        where: where it stands.
        families: whose packets it takes.
        matches: the conditions, those of the jumps to its chain first.
        until: how many source-NAT rules of the rule set, counted in order, it stands before at most; the
            rules after those are reached again (a return from a chain that was jumped to).
        since: how many source-NAT rules come before it.
    """

    where: Where
    families: frozenset[Family]
    matches: tuple[Match, ...]
    since: int
    until: int


MAX_COMMENT = 48
"""Characters of a comment that stand beside a rule's place."""

_TELLING = re.compile(r"\d+\.\d+\.\d+|[0-9a-fA-F]*:[0-9a-fA-F]*:|[A-Za-z0-9+/]{42,}|@\w+\.\w")
"""Addresses, keys and mail addresses, which may be a peer's."""


@dataclass(frozen=True, slots=True)
class NatRule:
    """One source-NAT rule on one way that packets reach it.

    Attributes:
        families: the address families it can take.
        where: where it stands; may be logged.
        text: the rule for people, in the syntax of its tool; may hold tunnel addresses, so never log it.
        matches: everything that limits it, the conditions of the jumps to its chain first.
        mapping: how it chooses the exit.
        flags: of ``persistent``, ``random``, ``fully-random``; the last two are about ports only.
        inherited: how many of `matches`, the first ones, are conditions of jumps.
        depth: jumps between the hook and the rule; 0 in a base chain.
        base: the chain at the hook by which packets come here.
        lead: what stands in the rule before its target, piece by piece, in the language of its tool; a piece
            that cannot be written is JSON.
        ports: the source ports that its target names (``1024-2047``), or an empty string.
        comment: of the rule; without control characters.
        number: its place among all rules that are reached, from 0 on.
        parts: the rules that this one stands for, where several are one draw; else empty.
        alone: the one sender of a family that earlier rules leave to it, where it is one.
    """

    families: frozenset[Family]
    where: Where
    text: str = field(repr=False)
    matches: tuple[Match, ...]
    mapping: Mapping
    flags: frozenset[str] = frozenset()
    inherited: int = 0
    depth: int = 0
    base: Base | None = None
    lead: tuple[str, ...] = field(default=(), repr=False, compare=False)
    ports: str = ""
    comment: str = field(default="", compare=False)
    number: int = field(default=0, compare=False)
    parts: tuple[NatRule, ...] = field(default=(), compare=False)
    alone: tuple[AddressRange, ...] = field(default=(), repr=False)

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from."""
        return self.mapping.pools

    @property
    def named(self) -> str:
        """Its place and its comment, for logs and screens; a comment that may name a peer is left out."""
        words = " ".join("".join(char if char.isprintable() else " " for char in self.comment).split())
        if not words or _TELLING.search(words):
            return str(self.where)
        return f'{self.where} "{words[:MAX_COMMENT].replace(";", ",").replace(chr(34), chr(39))}"'

    @property
    def own_matches(self) -> tuple[Match, ...]:
        """The conditions that are written in the rule itself."""
        return self.matches[self.inherited :]

    @property
    def choosers(self) -> tuple[Chooser, ...]:
        """The draws that decide on the exit, those in the conditions too."""
        inner = (self.mapping.chooser,) if isinstance(self.mapping, Chosen) else ()
        return (*(one.chooser for one in self.matches if one.chooser), *inner)

    @property
    def drawn_at_load(self) -> bool:
        """Whether loading the rule again re-draws the mapping (jhash without a seed)."""
        return any(isinstance(one, JHash) and one.seed is None for one in self.choosers)

    @property
    def reuses_ports(self) -> bool:
        """Whether a flow with the source and port of a living one inherits its exit (no random port)."""
        return not self.flags & {"random", "fully-random"}

    @property
    def sources(self) -> tuple[AddressRange, ...] | None:
        """The source addresses that its conditions name, None for any."""
        named = [one.sources for one in self.matches if one.sources and not one.negated]
        return named[-1] if named else None

    def may_take(self, source: Address) -> bool:
        """Whether its conditions on the source address let this one in; others are not looked at."""
        return family_of(source) in self.families and all(
            any(source in pool for pool in one.sources) != one.negated for one in self.matches if one.sources
        )


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """A rule about source NAT that is not understood: why, and where it stands. Its text is never logged.

    Attributes:
        compat: the rule was loaded by iptables-nft, so iptables-save may still tell.
    """

    where: Where
    text: str = field(repr=False)
    reason: str
    compat: bool = False


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The source-NAT rules of a network namespace, in the order in which the kernel asks them.

    Attributes:
        rules: the rules that are reached; one that two jumps reach is listed for each.
        not_understood: what is about source NAT and cannot be read.
        fingerprint: changes when, and only when, the source NAT behaviour may have changed; counters,
            comments and handles do not change it.
        load_identity: changes when rules whose mapping is drawn at load (jhash without a seed, or not
            understood) were loaded again, although they read the same.
        unreached: rules behind others that take everything they could.
        exemptions: what takes packets away from the rules, in order.
        rivals: chains of one priority, of which the kernel asks the one registered last first; a listing
            does not tell which that is.
        marks: changes when the rules that set marks do.
        choice: changes when the way in which exits are chosen does; peers and senders that come, go or are
            named by other elements do not change it.
    """

    rules: tuple[NatRule, ...] = ()
    not_understood: tuple[NotUnderstood, ...] = ()
    fingerprint: str = ""
    load_identity: str = ""
    unreached: tuple[NatRule, ...] = ()
    exemptions: tuple[Exemption, ...] = ()
    rivals: tuple[tuple[Base, ...], ...] = ()
    marks: str = ""
    choice: str = ""


def rule_set(
    rules: Iterable[NatRule],
    not_understood: Iterable[NotUnderstood],
    unreached: Iterable[NatRule] = (),
    exemptions: Iterable[Exemption] = (),
    rivals: Iterable[tuple[Base, ...]] = (),
    marks: str = "",
) -> RuleSet:
    """The `RuleSet` of these rules, with its fingerprints."""
    kept, unread = tuple(rules), tuple(not_understood)
    behaviour = [_behaviour(rule) for rule in kept] + [("not understood", one.text) for one in unread]
    drawn = [rule.where for rule in kept if rule.drawn_at_load] + [one.where for one in unread]
    loads = [(one.family, one.table, one.table_handle, one.handle) for one in drawn]
    return RuleSet(
        kept,
        unread,
        digest(behaviour),
        digest(loads),
        tuple(unreached),
        tuple(exemptions),
        tuple(rivals),
        marks,
        digest([_way_of_choosing(rule) for rule in kept] + [("not understood", one.text) for one in unread]),
    )


def _way_of_choosing(rule: NatRule) -> tuple[object, ...]:
    """What of a rule decides how exits are chosen, without the senders that it names."""
    mapping: object = rule.mapping
    if isinstance(mapping, FieldMap) and mapping.by_source:
        mapping = (mapping.fields, mapping.persistent, mapping.name)
    elif isinstance(mapping, Netmap):
        mapping = tuple(sorted({str(pair.exits) for pair in mapping.pairs}))
    else:
        mapping = repr(mapping)
    conditions = tuple(
        (one.subject, () if one.sources else one.values, one.negated, repr(one.chooser))
        for one in rule.matches
    )
    return (sorted(rule.families), conditions, mapping, sorted(rule.flags), rule.ports)


def _behaviour(rule: NatRule) -> tuple[object, ...]:
    """What of a rule decides on exits; `repr` would leave out the fields that hide tunnel addresses."""
    mapping = rule.mapping
    hidden: tuple[object, ...] = ()
    if isinstance(mapping, Netmap):
        hidden = tuple(str(pair.source) for pair in mapping.pairs)
    elif isinstance(mapping, FieldMap):
        hidden = tuple(entry.key for entry in mapping.entries)
    conditions = tuple((one.subject, one.values, one.negated) for one in rule.matches)
    return (sorted(rule.families), conditions, repr(mapping), hidden, sorted(rule.flags), rule.ports)


def digest(what: object) -> str:
    """A short fingerprint of plain values."""
    return hashlib.sha256(repr(what).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _unique(pools: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    return tuple(dict.fromkeys(pools))
