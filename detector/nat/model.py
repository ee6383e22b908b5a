# SPDX-License-Identifier: Apache-2.0
"""What a source-NAT rule says: where it stands, whom it takes, how it chooses the exit, and from which pool.

Both readers (nftables, iptables) end in these types, and everything else (pools for the kernel program,
predictors, the audit) starts from them. Nothing in here does I/O.

A rule can be about single peers (``ip saddr 10.64.0.2 snat to ...``, one-to-one maps). Fields that may hold
a tunnel address are therefore left out of ``repr``; a log names a rule by its `Where`, never by its `text`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
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
    """The numbers `first` to `last` of a chooser (offset included) and the exits that they stand for."""

    first: int
    last: int
    exits: AddressRange


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
    """One element of a map: the value of each field as written, the source among them, the exits."""

    key: tuple[str, ...] = field(repr=False)
    source: AddressRange | None = field(repr=False)
    exits: AddressRange


@dataclass(frozen=True, slots=True)
class FieldMap:
    """``snat to FIELDS map {value : exits}``, e.g. source addresses or prefixes to addresses or ranges."""

    fields: tuple[Field, ...]
    entries: tuple[MapEntry, ...]
    persistent: bool = False

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from, in the order of the map."""
        return _unique(entry.exits for entry in self.entries)

    @property
    def by_source(self) -> bool:
        """Whether the source address is looked at."""
        return any(one.is_source for one in self.fields)

    @property
    def one_to_one(self) -> bool:
        """Whether each exit belongs to one source address alone."""
        if not self.by_source or any(one.mask is not None for one in self.fields):
            return False
        owner: dict[AddressRange, AddressRange] = {}
        return all(
            entry.source is not None
            and entry.source.single
            and owner.setdefault(entry.exits, entry.source) == entry.source
            for entry in self.entries
        )


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
class Match:
    """One condition that limits whom a rule takes.

    Attributes:
        subject: as nft writes it (``ip saddr``, ``oifname``, ``meta l4proto``); the whole text of a condition
            that is known only as text.
        values: any of these; addresses as ``A``, ``A-B`` or ``A/len``.
        negated: none of `values` instead.
        chooser: what gives the number that `values` are compared with, when the condition is a draw.
        sources: the source addresses among `values`, when it is about them.
        unclear: why it may choose among peers in a way that the rule does not tell, or an empty string.
        origin: the rule whose one look at a draw led here (vmap), else None.
    """

    subject: str
    values: tuple[str, ...] = field(default=(), repr=False)
    negated: bool = False
    chooser: Chooser | None = None
    sources: tuple[AddressRange, ...] = field(default=(), repr=False)
    unclear: str = ""
    origin: Where | None = None

    @property
    def about_source(self) -> bool:
        """Whether it looks at who the peer is."""
        return bool(self.sources) or self.subject.startswith(tuple(SOURCE_FIELDS))

    def __str__(self) -> str:
        wanted = self.values[0] if len(self.values) == 1 else "{ " + ", ".join(self.values) + " }"
        if not self.values:
            return f"not ({self.subject})" if self.negated else self.subject
        return f"{self.subject} {'!= ' if self.negated else ''}{wanted}"


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
    """

    families: frozenset[Family]
    where: Where
    text: str = field(repr=False)
    matches: tuple[Match, ...]
    mapping: Mapping
    flags: frozenset[str] = frozenset()
    inherited: int = 0
    depth: int = 0

    @property
    def pools(self) -> tuple[AddressRange, ...]:
        """The pools that exits come from."""
        return self.mapping.pools

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

    @property
    def is_one_pair(self) -> bool:
        """Whether it takes a single source address to a single exit."""
        sources = self.sources
        alone = sources is not None and len(sources) == 1 and sources[0].single
        return alone and isinstance(self.mapping, SingleAddress) and not self.choosers

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
    """

    rules: tuple[NatRule, ...] = ()
    not_understood: tuple[NotUnderstood, ...] = ()
    fingerprint: str = ""
    load_identity: str = ""


def one_to_one_rules(rules: RuleSet) -> tuple[NatRule, ...]:
    """The rules that give a peer an exit of its own: one-to-one maps, and rules for one source each."""
    named = Counter(pool for rule in rules.rules for pool in set(rule.pools) if not rule.is_one_pair)
    sources: dict[AddressRange, set[AddressRange]] = {}
    for rule in rules.rules:
        if rule.is_one_pair and rule.sources:
            sources.setdefault(rule.pools[0], set()).add(rule.sources[0])
    shared = [pool for pool in named if not pool.single]
    alone = {
        exits
        for exits, of in sources.items()
        if len(of) == 1 and not named[exits] and not any(map(exits.overlaps, shared))
    }
    return tuple(rule for rule in rules.rules if _is_one_to_one(rule, alone))


def _is_one_to_one(rule: NatRule, alone: set[AddressRange]) -> bool:
    if isinstance(rule.mapping, FieldMap):
        return rule.mapping.one_to_one and bool(rule.mapping.entries)
    return rule.is_one_pair and rule.pools[0] in alone


def rule_set(rules: Iterable[NatRule], not_understood: Iterable[NotUnderstood]) -> RuleSet:
    """The `RuleSet` of these rules, with its fingerprints."""
    kept, unread = tuple(rules), tuple(not_understood)
    behaviour = [_behaviour(rule) for rule in kept] + [("not understood", one.text) for one in unread]
    drawn = [rule.where for rule in kept if rule.drawn_at_load] + [one.where for one in unread]
    loads = [(one.family, one.table, one.table_handle, one.handle) for one in drawn]
    return RuleSet(kept, unread, _digest(behaviour), _digest(loads))


def _behaviour(rule: NatRule) -> tuple[object, ...]:
    """What of a rule decides on exits; `repr` would leave out the fields that hide tunnel addresses."""
    mapping = rule.mapping
    hidden: tuple[object, ...] = ()
    if isinstance(mapping, Netmap):
        hidden = tuple(str(pair.source) for pair in mapping.pairs)
    elif isinstance(mapping, FieldMap):
        hidden = tuple(entry.key for entry in mapping.entries)
    conditions = tuple((one.subject, one.values, one.negated) for one in rule.matches)
    return (sorted(rule.families), conditions, repr(mapping), hidden, sorted(rule.flags))


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _unique(pools: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    return tuple(dict.fromkeys(pools))
