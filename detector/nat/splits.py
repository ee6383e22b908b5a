# SPDX-License-Identifier: Apache-2.0
"""Whether rules split peers: exits that differ where nothing but the sender does.

Every rule, and every element of its map, becomes a `Cell`: these senders, in this place (outgoing interface,
site, protocol), by these exits. Two cells split peers when a packet could be in both places, their exits
differ, and what they ask of the sender differs. What the place decides is no split: two uplinks, two ports
and a hairpin for the own network tell nothing of who sends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised
from detector.nat.model import (
    About,
    FieldMap,
    Masquerade,
    Match,
    NatRule,
    Netmap,
    NotUnderstood,
    PortsOnly,
    RangeHash,
    RuleSet,
)
from detector.nat.selection import (
    Condition,
    Conditions,
    Selection,
    Spans,
    intersected,
    inverted,
    places_meet,
    range_of,
    selections,
    spans_of,
)

Exits = tuple[tuple[AddressRange, ...], str]
"""The ranges that a cell's exits are of (none: the interface's own address) and its source ports."""

MAX_PLACES = 400
"""Places that are compared two by two; beyond, each is compared with itself and with the widest."""

MAX_WIDE = 64
"""The widest places, with which each of many is compared."""

MAX_COMPARED = 200
"""Cells of places that meet, up to which they are compared two by two; beyond, by their exits and senders."""

_OWN = tuple(
    AddressRange.of(ip_network(text))
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8",
        "224.0.0.0/4", "255.255.255.255/32", "fc00::/7", "fe80::/10", "ff00::/8", "::1/128",
    )
)  # fmt: skip
"""Destinations that no site on the internet has."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Senders in a place that leave by the same exits.

    Attributes:
        rule: index of the rule.
        family: of the addresses.
        selection: senders and place.
        exits: where they leave.
        only: the one sender that it takes, where it is one.
        own_network: no site sees it, because its destinations are private.
    """

    rule: int
    family: Family
    selection: Selection
    exits: Exits
    only: int | None = field(default=None, repr=False)
    own_network: bool = False

    @property
    def restricted(self) -> bool:
        """Whether it asks anything of the sender."""
        return self.selection.sources is not None or bool(self.selection.sender)

    @property
    def about(self) -> frozenset[About]:
        """What its conditions on the sender look at."""
        named = {About.SENDER} if self.selection.sources is not None else set[About]()
        return frozenset(named | {one.about for one in self.selection.sender})

    @property
    def sender(self) -> tuple[Spans | None, Conditions]:
        """What it asks of the sender."""
        return self.selection.sources, self.selection.sender


@dataclass(frozen=True, slots=True)
class Split:
    """What one cell tells of its senders beside the others.

    Attributes:
        exclusive: it has a sender of its own, with exits (or ports of an exit) that nobody else has.
        by_port: the exit is shared, its ports are the sender's own.
        others: how many other exits senders have who differ from its own, in the same place.
        exits: how many exits there are in that place.
        peers: how many senders have exits of their own in that place.
        about: what its conditions on the sender look at, or those of earlier cells where it has none itself.
        reason: what decides, where the rules do not tell.
    """

    exclusive: bool
    by_port: bool
    others: int
    exits: int
    peers: int
    about: frozenset[About]
    reason: str


def splits(rules: RuleSet) -> dict[int, list[tuple[Cell, Split]]]:
    """Every rule's cells (by the rule's index) with what they tell."""
    cells = [cell for at, rule in enumerate(rules.rules) for cell in cells_of(at, rule)]
    owners = _Owners(cells)
    reasons = _Reasons(rules.rules)
    places = _Places(cells, owners, rules)
    found: dict[int, list[tuple[Cell, Split]]] = {}
    for cell in cells:
        found.setdefault(cell.rule, []).append((cell, places.split(cell, reasons)))
    return found


def doubts(rules: RuleSet) -> list[NotUnderstood]:
    """The rules under a condition that is decided elsewhere, where that may split peers."""
    found: dict[NotUnderstood, None] = {}
    matches = (match for rule in rules.rules for match in rule.matches)
    if not any(one.about is About.HIDDEN for match in matches for one in _all_of(match)):
        return []
    for at, told in splits(rules).items():
        rule = rules.rules[at]
        hashed = isinstance(rule.mapping, RangeHash | Netmap)  # they leak whatever the condition is
        for cell, split in () if hashed or any(split.exclusive for _, split in told) else told:
            if split.others and any(one.about is About.HIDDEN for one in cell.selection.sender):
                found.setdefault(NotUnderstood(rule.where, rule.text, split.reason))
    return list(found)


def _all_of(match: Match) -> Iterator[Match]:
    """A condition, and those that its concatenations stand for."""
    yield match
    for way in match.options:
        yield from way


def exclusive_families(rules: RuleSet) -> frozenset[Family]:
    """The families in which a rule gives a peer an exit, or ports of an exit, of its own."""
    found = splits(rules).values()
    return frozenset(cell.family for cells in found for cell, split in cells if split.exclusive)


def cells_of(at: int, rule: NatRule) -> Iterator[Cell]:
    """The cells of one rule; none where the source address stays."""
    if isinstance(rule.mapping, PortsOnly):
        return
    for family in sorted(rule.families):
        ways = selections(rule.matches, family)
        for selection in ways:
            alone = rule.alone if len(ways) == 1 else ()
            if isinstance(rule.mapping, FieldMap):
                yield from _of_map(at, rule, rule.mapping, family, selection)
            else:
                yield _cell(at, family, selection, (_ranges(rule, family), rule.ports), alone)


def _ranges(rule: NatRule, family: Family) -> tuple[AddressRange, ...]:
    if isinstance(rule.mapping, Masquerade):
        return ()
    return tuple(one for one in normalised(rule.pools) if one.family is family)


def _of_map(
    at: int, rule: NatRule, mapping: FieldMap, family: Family, selection: Selection
) -> Iterator[Cell]:
    """One cell for each element of a map."""
    named = [one.source for one in mapping.entries if one.source is not None]
    for entry in mapping.entries:
        exits = (entry.exits,), entry.ports or rule.ports
        if entry.exits.family is not family:
            continue
        sources, conditions = selection.sources, set(selection.conditions)
        if entry.catches_all:
            rest = inverted(spans_of(named, family), family) if named else None
            sources = rest if sources is None or rest is None else intersected(sources, rest)
            if not named:
                conditions |= {_keyed(one.name, one.about, "*") for one in mapping.fields}
        else:
            for one, value in zip(mapping.fields, entry.key, strict=True):
                if one.about is not About.SENDER and not (one.is_source and entry.source is not None):
                    conditions.add(_keyed(one.name, one.about, value))
            if entry.source is not None:
                spans = spans_of([entry.source], family)
                sources = spans if sources is None else intersected(sources, spans)
        if sources != ():
            made = Selection(sources, frozenset(conditions), selection.drawn)
            yield _cell(at, family, made, exits, ())


def _keyed(name: str, about: About, value: str) -> Condition:
    names = {"oif": "oifname", "iif": "iifname", "ip protocol": "meta l4proto"}
    return Condition(names.get(name, name), frozenset({value}), False, about)


def _cell(at: int, family: Family, selection: Selection, exits: Exits, alone: Sequence[AddressRange]) -> Cell:
    spans = selection.sources or tuple(
        (int(one.first), int(one.last)) for one in alone if one.family is family
    )
    only = spans[0][0] if len(spans) == 1 and spans[0][0] == spans[0][1] else None
    if only is None:
        left = [one for one in alone if one.family is family]
        only = int(left[0].first) if len(left) == 1 and left[0].single else None
    return Cell(at, family, selection, exits, only, stays_inside(selection))


def stays_inside(selection: Selection) -> bool:
    """Whether every destination that it takes is private, so that no site on the internet sees the exit."""
    return any(
        one.subject.endswith(" daddr") and not one.negated and one.values and all(map(_is_own, one.values))
        for one in selection.conditions
    )


def _is_own(text: str) -> bool:
    span = range_of(text)
    return span is not None and any(span.first in own and span.last in own for own in _OWN)


Owned = tuple[int, int, int]
"""First and last port of an exit, and the one sender that has them, or -1."""


class _Owners:
    """Who else has an exit: by address and ports for cells with one, by range for those with more."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        fixed: dict[tuple[Family, int], set[Owned]] = {}
        wide: dict[tuple[AddressRange, int], None] = {}
        for cell in cells:
            ranges, ports = cell.exits
            sender = -1 if cell.only is None else cell.only
            for span in ranges if not cell.own_network else ():
                if span.single:
                    fixed.setdefault((cell.family, int(span.first)), set()).add((*_ports(ports), sender))
                else:
                    wide.setdefault((span, sender))
        self._wide = list(wide)
        self._shared = {key: _shared(owned) for key, owned in fixed.items()}
        self._several = {key for key, owned in fixed.items() if len({sender for *_, sender in owned}) > 1}
        self._numbers = sorted(fixed)

    def alone(self, cell: Cell) -> tuple[bool, bool]:
        """Whether nobody else has the exits of a cell with one sender, and whether by their ports alone."""
        ranges, ports = cell.exits
        sender = -1 if cell.only is None else cell.only
        by_port = False
        for span in ranges:
            if any(other != sender and span.overlaps(one) for one, other in self._wide):
                return False, False
            for key in self._within(span, cell.family):
                if span.single and (*_ports(ports), sender) not in self._shared[key]:
                    by_port = by_port or key in self._several
                elif key in self._several or not span.single:
                    return False, False
        return bool(ranges), by_port

    def _within(self, span: AddressRange, family: Family) -> list[tuple[Family, int]]:
        """The single exits in a range."""
        first, last = (family, int(span.first)), (family, int(span.last))
        return self._numbers[bisect_left(self._numbers, first) : bisect_right(self._numbers, last)]


def _ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return (int(first), int(last or first)) if text else (0, 65_535)


def _shared(owned: set[Owned]) -> set[Owned]:
    """Those whose ports another sender has too: overlapped from below, or from above."""
    ordered = sorted(owned)
    found: set[Owned] = set()
    farthest: dict[int, int] = {}  # by sender, of the two that reach farthest up
    for first, last, sender in ordered:
        if any(reach >= first for other, reach in farthest.items() if _differ(other, sender)):
            found.add((first, last, sender))
        farthest[sender] = max(last, farthest.get(sender, -1))
        farthest = dict(sorted(farthest.items(), key=lambda one: -one[1])[:2])
    nearest: dict[int, int] = {}  # by sender, of the two that begin nearest
    for first, last, sender in reversed(ordered):
        if any(start <= last for other, start in nearest.items() if _differ(other, sender)):
            found.add((first, last, sender))
        nearest[sender] = min(first, nearest.get(sender, first))
        nearest = dict(sorted(nearest.items(), key=lambda one: one[1])[:2])
    return found


def _differ(one: int, other: int) -> bool:
    return one != other or one == -1


class _Reasons:
    """What decides by conditions that the rules do not open, by subject."""

    def __init__(self, rules: Sequence[NatRule]) -> None:
        self._by_subject: dict[str, str] = {}
        for match in (match for rule in rules for match in rule.matches):
            for one in (match, *(inner for way in match.options for inner in way)):
                if one.reason:
                    self._by_subject.setdefault(one.subject, one.reason)

    def of(self, selection: Selection, about: About) -> str:
        """The first that fits."""
        found = sorted(one.subject for one in selection.conditions if one.about is about)
        return next((self._by_subject[one] for one in found if one in self._by_subject), "")


@dataclass(slots=True)
class _Seen:
    """The exits of a place.

    Attributes:
        restricted: by exit, the senders of the cells that ask something of the sender (two are enough).
        since: by exit, the first rule of those.
        anybody: by exit, the last rule that takes anybody.
        about: what the conditions on senders look at, and the first rule that does.
        owners: the senders that have exits of their own.
    """

    restricted: dict[Exits, set[object]] = field(default_factory=dict)
    since: dict[Exits, int] = field(default_factory=dict)
    anybody: dict[Exits, int] = field(default_factory=dict)
    about: dict[About, int] = field(default_factory=dict)
    owners: set[int] = field(default_factory=set)

    def add(self, cell: Cell, rank: _Rank) -> None:
        """One cell of this place."""
        if cell.restricted:
            known = self.restricted.setdefault(cell.exits, set())
            if len(known) < 2:
                known.add(cell.sender)
            self.since[cell.exits] = min(rank.first, self.since.get(cell.exits, rank.first))
            for kind in cell.about:
                self.about[kind] = min(rank.first, self.about.get(kind, rank.first))
        else:
            self.anybody[cell.exits] = max(rank.last, self.anybody.get(cell.exits, rank.last))

    def join(self, other: _Seen) -> None:
        """Everything of another place."""
        for exits, senders in other.restricted.items():
            known = self.restricted.setdefault(exits, set())
            known |= set(list(senders)[: 2 - len(known)]) if len(known) < 2 else set()
            self.since[exits] = min(other.since[exits], self.since.get(exits, other.since[exits]))
        for exits, last in other.anybody.items():
            self.anybody[exits] = max(last, self.anybody.get(exits, last))
        for kind, first in other.about.items():
            self.about[kind] = min(first, self.about.get(kind, first))
        self.owners |= other.owners


@dataclass(frozen=True, slots=True)
class _Rank:
    """The place of a rule in the kernel's order: the earliest and the latest that it may have."""

    first: int
    last: int


def _covers(first: Cell, later: Cell) -> bool:
    """Whether a cell that is asked first leaves none of the other's senders to it."""
    asked = first.selection.sender
    if not asked <= later.selection.sender:
        return False
    if first.selection.sources is None:
        return True
    sources = later.selection.sources
    return sources is not None and intersected(sources, first.selection.sources) == sources


_Key = tuple[Family, bool, Conditions]


class _Places:
    """The cells by place, and for each place everything that can meet it."""

    def __init__(self, cells: Sequence[Cell], owners: _Owners, rules: RuleSet) -> None:
        self._owners = owners
        rivals = {base for group in rules.rivals for base in group}
        end = len(rules.rules)
        self._ranks = [
            _Rank(-1, end) if rule.base in rivals else _Rank(at, at) for at, rule in enumerate(rules.rules)
        ]
        own: dict[_Key, _Seen] = {}
        self._cells: dict[_Key, list[Cell]] = {}
        for cell in cells:
            self._cells.setdefault(self._key(cell), []).append(cell)
            seen = own.setdefault(self._key(cell), _Seen())
            seen.add(cell, self._ranks[cell.rule])
            if cell.only is not None and not cell.own_network and owners.alone(cell)[0]:
                seen.owners.add(cell.only)
        wide = list(own) if len(own) <= MAX_PLACES else sorted(own, key=lambda key: len(key[2]))[:MAX_WIDE]
        near = {key: self._near(key, wide) for key in own}
        self._few = {key: self._exact(others) for key, others in near.items()}
        self._all = {key: self._met([own[one] for one in others]) for key, others in near.items()}
        self._pure = {key: self._counted(seen) for key, seen in self._all.items()}
        self._since = {key: sorted(seen.since.values()) for key, seen in self._all.items()}

    @staticmethod
    def _key(cell: Cell) -> _Key:
        return cell.family, cell.own_network, cell.selection.place

    @staticmethod
    def _near(key: _Key, others: Iterable[_Key]) -> list[_Key]:
        """The places that a packet in this one could be in as well, this one among them."""
        same = (one for one in others if one[:2] == key[:2] and one != key)
        return [key, *(one for one in same if places_meet(key[2], one[2]))]

    def _exact(self, near: Iterable[_Key]) -> list[Cell] | None:
        """All cells of these places, where they are few enough to be compared one by one."""
        found = [cell for key in near for cell in self._cells[key]]
        return found if len(found) <= MAX_COMPARED else None

    @staticmethod
    def _met(places: Iterable[_Seen]) -> _Seen:
        """Everything that a packet could be taken by."""
        made = _Seen()
        for seen in places:
            made.join(seen)
        return made

    @staticmethod
    def _counted(seen: _Seen) -> Counter[object]:
        """For each sender, the exits that nobody else has by a condition on the sender."""
        return Counter(next(iter(senders)) for senders in seen.restricted.values() if len(senders) == 1)

    def split(self, cell: Cell, reasons: _Reasons) -> Split:
        """What a cell tells."""
        key, rank = self._key(cell), self._ranks[cell.rule]
        seen, few = self._all[key], self._few[key]
        if few is not None:
            beside = [one for one in few if one.exits != cell.exits and self._parted(cell, one)]
            others = len({one.exits for one in beside})
            about = cell.about or frozenset(kind for one in beside for kind in one.about)
        elif cell.restricted:
            others, about = self._beside(cell, key, rank), cell.about
        else:  # it takes whoever is left: earlier rules that ask something of the sender split
            since = self._since[key]
            others = bisect_left(since, rank.last) - (seen.since.get(cell.exits, rank.last) < rank.last)
            about = frozenset(kind for kind, first in seen.about.items() if first < rank.last)
        alone, by_port = (False, False)
        if cell.only is not None and not cell.own_network:
            alone, by_port = self._owners.alone(cell)
            pooled = any(not span.single for span in cell.exits[0]) or len(cell.exits[0]) > 1
            alone = alone and (others > 0 or not pooled)
        reason = reasons.of(cell.selection, About.HIDDEN) or reasons.of(cell.selection, About.NAMED)
        return Split(alone, by_port, others, others + 1, len(seen.owners), about, reason)

    def _parted(self, one: Cell, other: Cell) -> bool:
        """Whether the sender alone decides which of two cells takes a packet, in an order they may have."""
        mine, its = self._ranks[one.rule], self._ranks[other.rule]
        if one.rule == other.rule:
            return one.sender != other.sender
        before, after = mine.first < its.last, its.first < mine.last
        return (before and not _covers(one, other)) or (after and not _covers(other, one))

    def _beside(self, cell: Cell, key: _Key, rank: _Rank) -> int:
        """The other exits of senders who differ from those of a cell that asks something of the sender."""
        seen = self._all[key]
        mine = seen.restricted[cell.exits] == {cell.sender}
        others = len(seen.restricted) - self._pure[key][cell.sender] - (0 if mine else 1)
        for exits, last in seen.anybody.items():
            differs = exits not in seen.restricted or seen.restricted[exits] == {cell.sender}
            others += exits != cell.exits and last > rank.first and differs
        return others
