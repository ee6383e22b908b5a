# SPDX-License-Identifier: Apache-2.0
"""Which packets a conjunction of conditions takes: the senders as spans of addresses, the rest as conditions.

Two questions are asked of it. Does an earlier rule take everything that a later one could (then the later one
is never reached)? Can two rules take packets that differ in nothing but the sender (then they split peers)?
Both answers are cautious: what cannot be compared covers nothing, and excludes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import combinations, islice, product

from detector.base.family import Family, family_of
from detector.base.ranges import AddressRange
from detector.nat.model import About, JHash, Match

Span = tuple[int, int]
"""First and last address, as numbers of one family."""

Spans = tuple[Span, ...]
"""Ascending, disjoint, not adjacent."""

WHOLE: dict[Family, Span] = {Family.IPV4: (0, (1 << 32) - 1), Family.IPV6: (0, (1 << 128) - 1)}

MAX_WAYS = 4096
"""Ways to satisfy the conditions of one rule (elements of concatenated sets) that are told apart."""

_SUBSETS = 5
"""Conditions of a rule up to which every subset of them is looked up."""

_SCANNED = 64
"""Sets of conditions that are compared one by one."""

_FLEETING = frozenset({"limit", "quota", "recent", "hashlimit", "connlimit", "connbytes", "rateest", "time"})
"""Conditions that the same packet may meet once and not the next time."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition that is not about source addresses: any of `values`, or none of them."""

    subject: str
    values: frozenset[str]
    negated: bool
    about: About

    def covers(self, other: Condition) -> bool:
        """Whether whatever meets `other` meets this one too."""
        if self.subject != other.subject:
            return False
        if not self.negated:
            return not other.negated and _within(self.subject, other.values, self.values)
        if other.negated:
            return _within(self.subject, self.values, other.values)
        return _apart(self.subject, self.values, other.values)

    def excludes(self, other: Condition) -> bool:
        """Whether no packet meets both, for sure."""
        if self.subject != other.subject or (self.negated and other.negated):
            return False
        if self.negated:
            return _within(self.subject, other.values, self.values)
        if other.negated:
            return _within(self.subject, self.values, other.values)
        return _apart(self.subject, self.values, other.values)


Conditions = frozenset[Condition]


@dataclass(frozen=True, slots=True)
class Selection:
    """The packets of one family under some conditions.

    Attributes:
        sources: the senders, None for any.
        conditions: everything else that is asked.
        drawn: a draw decides too, so it takes only a part of what it describes.
    """

    sources: Spans | None = field(repr=False)
    conditions: Conditions
    drawn: bool = False

    @property
    def place(self) -> Conditions:
        """The conditions that say nothing of who sends."""
        return frozenset(one for one in self.conditions if one.about is About.PLACE)

    @property
    def sender(self) -> Conditions:
        """The conditions on the sender beside its address."""
        return self.conditions - self.place

    @property
    def lasting(self) -> bool:
        """Whether the same packet meets it each time."""
        return not self.drawn and not any(one.subject in _FLEETING for one in self.conditions)


def selections(matches: Sequence[Match], family: Family) -> tuple[Selection, ...]:
    """The ways to meet all of these conditions; none where no packet of the family can."""
    choices = [one.options for one in matches if one.options]
    plain = [one for one in matches if not one.options]
    count = 1
    for options in choices:
        count *= len(options)
    if count > MAX_WAYS:  # too many to tell apart: the concatenations are left closed
        closed = [_closed(one) for one in matches if one.options]
        made = _selection([*plain, *closed], family)
        return () if made is None else (made,)
    found = (_selection([*plain, *(m for way in ways for m in way)], family) for ways in product(*choices))
    return tuple(one for one in found if one is not None)


def _closed(match: Match) -> Match:
    about = match.about if match.about is not About.SENDER else About.NAMED
    return Match(match.subject, match.values, match.negated, about=about)


def _selection(matches: Iterable[Match], family: Family) -> Selection | None:
    sources: Spans | None = None
    conditions: set[Condition] = set()
    drawn = False
    for one in matches:
        if one.chooser is not None:
            drawn = True
            if not isinstance(one.chooser, JHash):
                continue
        if one.sources:
            spans = spans_of(one.sources, family)
            spans = inverted(spans, family) if one.negated else spans
            sources = spans if sources is None else intersected(sources, spans)
            if not sources:
                return None
        elif one.chooser is None:
            subject, values = _subject(one)
            conditions.add(Condition(subject, values, one.negated, one.about))
    return Selection(sources, frozenset(conditions), drawn)


_SAME = {
    "ip protocol": "meta l4proto", "ip6 nexthdr": "meta l4proto",
    "oif": "oifname", "iif": "iifname", "meta oifname": "oifname", "meta iifname": "iifname",
    "tcp dport": "dport", "udp dport": "dport", "th dport": "dport", "sctp dport": "dport",
    "tcp sport": "sport", "udp sport": "sport", "th sport": "sport", "sctp sport": "sport",
}  # fmt: skip


def _subject(match: Match) -> tuple[str, frozenset[str]]:
    """What is compared, under one name for nft and iptables, and with what."""
    subject = _SAME.get(match.subject, match.subject)
    return subject, frozenset(match.values)


@lru_cache(maxsize=4096)
def _within(subject: str, inner: frozenset[str], outer: frozenset[str]) -> bool:
    """Whether every value of `inner` is one of `outer`."""
    if inner <= outer:
        return True
    if subject.endswith("daddr"):
        return all(any(_in_range(one, other) for other in outer) for one in inner)
    if subject.endswith("ifname"):
        return all(any(_in_name(one, other) for other in outer) for one in inner)
    if subject.endswith("port"):
        return all(any(_in_ports(one, other) for other in outer) for one in inner)
    return False


@lru_cache(maxsize=4096)
def _apart(subject: str, left: frozenset[str], right: frozenset[str]) -> bool:
    """Whether no value can be one of both; where values are not plain, it is not known."""
    if not left or not right or any(one.startswith("@") for one in (*left, *right)):
        return False
    if subject.endswith("daddr"):
        return not any(_ranges_meet(one, other) for one in left for other in right)
    if subject.endswith("ifname"):
        return not any(_in_name(one, other) or _in_name(other, one) for one in left for other in right)
    if subject.endswith("port"):
        return not any(_ports_meet(one, other) for one in left for other in right)
    if subject in {"meta l4proto", "meta nfproto"}:
        return not any(_protocol(one) == _protocol(other) for one in left for other in right)
    return False


_NUMBERS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp", "132": "sctp"}


def _protocol(word: str) -> str:
    return _NUMBERS.get(word.lower(), word.lower())


@lru_cache(maxsize=4096)
def range_of(text: str) -> AddressRange | None:
    """The range that ``A``, ``A-B``, ``A/len`` or ``A/mask`` means, or None."""
    first, dash, last = text.partition("-")
    try:
        if dash:
            return AddressRange(ip_address(first), ip_address(last))
        return AddressRange.of(ip_network(first, strict=False))
    except ValueError:
        return None


def _in_range(inner: str, outer: str) -> bool:
    one, other = range_of(inner), range_of(outer)
    return one is not None and other is not None and one.first in other and one.last in other


def _ranges_meet(one: str, other: str) -> bool:
    left, right = range_of(one), range_of(other)
    return left is None or right is None or left.overlaps(right)


def _in_name(inner: str, outer: str) -> bool:
    """Whether an interface's name fits another that may end in + or *."""
    if outer[-1:] in {"+", "*"}:
        return inner.rstrip("+*").startswith(outer[:-1])
    return inner == outer


def _ports(text: str) -> tuple[int, int] | None:
    first, _, last = text.replace(":", "-").partition("-")
    try:
        return int(first or 0), int(last or (65_535 if text[-1:] in {":", "-"} else first))
    except ValueError:
        return None


def _in_ports(inner: str, outer: str) -> bool:
    one, other = _ports(inner), _ports(outer)
    return one is not None and other is not None and other[0] <= one[0] and one[1] <= other[1]


def _ports_meet(one: str, other: str) -> bool:
    left, right = _ports(one), _ports(other)
    return left is None or right is None or (left[0] <= right[1] and right[0] <= left[1])


def spans_of(ranges: Iterable[AddressRange], family: Family) -> Spans:
    """The addresses of one family, joined."""
    numbers = sorted((int(one.first), int(one.last)) for one in ranges if family_of(one.first) is family)
    made: list[Span] = []
    for first, last in numbers:
        if made and first <= made[-1][1] + 1:
            made[-1] = (made[-1][0], max(made[-1][1], last))
        else:
            made.append((first, last))
    return tuple(made)


def inverted(spans: Spans, family: Family) -> Spans:
    """Every other address of the family."""
    start, end = WHOLE[family]
    made: list[Span] = []
    for first, last in spans:
        if first > start:
            made.append((start, first - 1))
        start = last + 1
    if start <= end:
        made.append((start, end))
    return tuple(made)


def intersected(left: Spans, right: Spans) -> Spans:
    """The addresses of both."""
    made: list[Span] = []
    at = other = 0
    while at < len(left) and other < len(right):
        first, last = max(left[at][0], right[other][0]), min(left[at][1], right[other][1])
        if first <= last:
            made.append((first, last))
        if left[at][1] < right[other][1]:
            at += 1
        else:
            other += 1
    return tuple(made)


def place_covers(outer: Conditions, inner: Conditions) -> bool:
    """Whether whatever meets all of `inner` meets all of `outer`."""
    return all(any(one.covers(other) for other in inner) for one in outer)


def places_meet(left: Conditions, right: Conditions) -> bool:
    """Whether a packet could meet both."""
    return not any(one.excludes(other) for one in left for other in right)


@dataclass(slots=True)
class _Taken:
    """Spans that are added one by one, ascending and disjoint."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, first: int, last: int) -> None:
        low = bisect_left(self.ends, first - 1)
        high = bisect_right(self.starts, last + 1)
        if low < high:
            first, last = min(first, self.starts[low]), max(last, self.ends[high - 1])
        self.starts[low:high] = [first]
        self.ends[low:high] = [last]

    def left_of(self, span: Span) -> Iterator[Span]:
        """The parts of a span that are not taken."""
        first, last = span
        at = bisect_left(self.ends, first)
        while at < len(self.starts) and self.starts[at] <= last:
            if self.starts[at] > first:
                yield first, self.starts[at] - 1
            first = self.ends[at] + 1
            at += 1
        if first <= last:
            yield first, last


class Consumed:
    """What earlier rules take, whatever comes after them."""

    def __init__(self) -> None:
        self._taken: dict[tuple[Family, Conditions], _Taken] = {}

    def add(self, matches: Sequence[Match], families: Iterable[Family]) -> None:
        """A rule with these conditions takes its packets; draws and limits take nothing for sure."""
        for family in families:
            for one in selections(matches, family):
                if one.lasting:
                    taken = self._taken.setdefault((family, one.conditions), _Taken())
                    for span in one.sources if one.sources is not None else (WHOLE[family],):
                        taken.add(*span)

    def covering(self, family: Family, conditions: Conditions) -> list[_Taken]:
        """What is taken of the packets under these conditions, by each set of conditions that covers them."""
        keys = {frozenset[Condition](), conditions}
        if len(conditions) <= _SUBSETS:
            sizes = range(1, len(conditions))
            keys |= {frozenset(some) for size in sizes for some in combinations(conditions, size)}
        found = {key: self._taken[family, key] for key in keys if (family, key) in self._taken}
        for (of, key), taken in islice(self._taken.items(), _SCANNED):
            if of is family and key not in found and place_covers(key, conditions):
                found[key] = taken
        return list(found.values())


def remaining(selection: Selection, family: Family, before: Sequence[Consumed], most: int = 2) -> Spans:
    """The senders that earlier rules leave, as the first spans of more than `most` addresses together."""
    taken = [one for consumed in before for one in consumed.covering(family, selection.conditions)]
    left: list[Span] = []
    count = 0
    for span in selection.sources if selection.sources is not None else (WHOLE[family],):
        for part in _left(span, taken):
            left.append(part)
            count += part[1] - part[0] + 1
            if count > most:
                return tuple(left)
    return tuple(left)


def _left(span: Span, taken: Sequence[_Taken]) -> Iterator[Span]:
    if not taken:
        yield span
        return
    for part in taken[0].left_of(span):
        yield from _left(part, taken[1:])
