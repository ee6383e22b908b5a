# SPDX-License-Identifier: Apache-2.0
"""What a condition of an nft rule asks of a packet: from nft's JSON to a `Match`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from detector.base.family import Address
from detector.base.ranges import AddressRange
from detector.nat.model import INTERFACE_FIELDS, SOURCE_FIELDS, About, JHash, Match
from detector.nat.nft_exits import Maps, Unreadable, chooser_of, range_of
from detector.nat.nft_text import Json, as_list, binary, quoted, show, show_statement

BY_MARK = "a mark that other rules set decides which packets it takes"
"""The doubt about a rule that only marked packets reach: the mark may stand for a peer."""

_HIDDEN = {
    "meta mark": BY_MARK,
    "ct mark": BY_MARK,
    "ct original mark": BY_MARK,
    "ct label": "a connection label that other rules set decides which packets it takes",
    "ct zone": "a conntrack zone that other rules set decides which packets it takes",
    "meta priority": "a priority that is set elsewhere decides which packets it takes",
    "meta secmark": "a security mark that is set elsewhere decides which packets it takes",
    "ct secmark": "a security mark that is set elsewhere decides which packets it takes",
}
_NAMED = {
    "ether saddr": "the sender's hardware address decides",
    "meta skuid": "the sender's user decides",
    "meta skgid": "the sender's group decides",
    "meta cgroup": "the sender's control group decides",
}
_COMPARED = {"<": (None, -1), "<=": (None, 0), ">": (1, None), ">=": (0, None)}
_SENDER_BITS = {"ip": ((96, 128),), "ip6": ((64, 192),), "inet": ((96, 128), (64, 192))}
"""Bits of the network header that hold the source address, by family."""

MAX_OPTIONS = 4096
"""Elements of a concatenation that are opened."""


def condition(
    left: Json, op: str, values: Sequence[Json], statement: Json, family: str, name: str = ""
) -> Match:
    """The condition that a field or expression has to meet.

    Args:
        left: what is looked at.
        op: ``==``, ``!=``, ``in`` or a comparison.
        values: what it is compared with, any of these.
        statement: the whole, for its text.
        family: of the table.
        name: of the set that held the values, or an empty string.

    Raises:
        Unreadable: it draws by a chooser that is not understood.
    """
    text = show_statement(statement)
    negated = op == "!="
    chooser = chooser_of(left)
    shown = tuple(show(one) for one in values)
    if chooser is not None:
        plain = op in {"==", "!=", "in"}
        subject = show(left) if plain else text
        about = About.SENDER if _follows_sender(chooser) else About.PLACE
        return Match(subject, shown if plain else (), negated, chooser, about=about, text=text)
    if isinstance(left, dict) and isinstance(left.get("concat"), list):
        return _concatenated(left["concat"], values, negated, text, family, shown)
    if op in _COMPARED and show(left) in SOURCE_FIELDS:
        return _compared(show(left), op, values, text)
    masked = _masked(left)
    if masked is not None:
        return _bits(*masked, values, negated, text)
    if op not in {"==", "!=", "in"} or binary(left):
        about, reason = _about(left, family)
        return Match(text, about=About.BITS if about is About.SENDER else about, reason=reason, text=text)
    return _plain(left, values, negated, text, family, shown, name)


def _follows_sender(chooser: object) -> bool:
    return isinstance(chooser, JHash) and any(one.is_source for one in chooser.fields)


def _plain(
    left: Json,
    values: Sequence[Json],
    negated: bool,
    text: str,
    family: str,
    shown: tuple[str, ...],
    name: str,
) -> Match:
    """A field that is compared as it is."""
    subject = show(left)
    about, reason = _about(left, family)
    if about is not About.SENDER:
        return Match(subject, shown, negated, about=about, reason=reason, text=text)
    sources = _ranges(values)
    if sources:
        return Match(subject, shown, negated, sources=sources, about=about, text=text)
    held = f"the set {name} decides" if name else "a set decides"
    reason = f"{held}, and what it holds is not in the rules"
    return Match(subject, shown or (f"@{name}",), negated, about=About.NAMED, reason=reason, text=text)


def _ranges(values: Iterable[Json]) -> tuple[AddressRange, ...]:
    try:
        return tuple(range_of(one) for one in values)
    except Unreadable:
        return ()


def _compared(subject: str, op: str, values: Sequence[Json], text: str) -> Match:
    """``ip saddr >= A`` as the range that it is."""
    low, high = _COMPARED[op]
    try:
        (edge,) = (ip_address(show(one)) for one in values)
        ends = type(edge)(0), type(edge)(-1 % (1 << edge.max_prefixlen))
        first: Address = ends[0] if low is None else edge + low
        last: Address = ends[1] if high is None else edge + high
        span = AddressRange(first, last)
    except ValueError:
        return Match(text, about=About.NAMED, reason="a comparison of addresses decides", text=text)
    return Match(subject, (str(span),), sources=(span,), about=About.SENDER, text=text)


def _masked(left: Json) -> tuple[str, int] | None:
    """The source field and the mask of ``ip saddr & MASK``, or None."""
    match left:
        case {"&": [inner, (str() | int()) as mask]} if show(inner) in SOURCE_FIELDS:
            try:
                return show(inner), mask if isinstance(mask, int) else int(ip_address(mask))
            except ValueError:
                return None
    return None


def _bits(subject: str, mask: int, values: Sequence[Json], negated: bool, text: str) -> Match:
    """``ip saddr & MASK == VALUE``: a prefix where the mask is one, else bits of the address."""
    width = 128 if "ip6" in subject or mask >> 32 else 32
    free = ~mask & ((1 << width) - 1)
    if free & (free + 1) == 0:
        try:
            starts = [ip_address(one) for one in values]
            spans = tuple(AddressRange(one, one + free) for one in starts)
            return Match(
                subject, tuple(map(str, spans)), negated, sources=spans, about=About.SENDER, text=text
            )
        except ValueError:
            pass
    shown = tuple(show(one) for one in values)
    if all(isinstance(one, int) for one in values):  # bits of an IPv4 address may be listed as a number
        kind = IPv4Address if width == 32 else IPv6Address
        shown = tuple(str(kind(one)) for one in values)
    return Match(f"{subject} & {mask:#x}", shown, negated, about=About.BITS, text=text)


def _concatenated(
    fields: Sequence[Json],
    values: Sequence[Json],
    negated: bool,
    text: str,
    family: str,
    shown: tuple[str, ...],
) -> Match:
    """A concatenation of fields: each element stands for a condition on each field."""
    kinds = [_about(one, family) for one in fields]
    subject = show({"concat": list(fields)})
    opened = [_parts(one) for one in values] if not negated and len(values) <= MAX_OPTIONS else []
    if opened and all(parts is not None and len(parts) == len(fields) for parts in opened):
        options = tuple(
            tuple(
                condition(field, "==", [part], {"match": {"op": "==", "left": field, "right": part}}, family)
                for field, part in zip(fields, parts or (), strict=True)
            )
            for parts in opened
        )
        about = next((kind for kind, _ in kinds if kind is not About.PLACE), About.PLACE)
        return Match(subject, shown, about=about, options=options, text=text)
    worst = _worst(kinds)
    if worst[0] is About.SENDER:
        worst = About.NAMED, "a set decides, and what it holds is not told apart"
    return Match(subject, shown, negated, about=worst[0], reason=worst[1], text=text)


def _worst(kinds: Iterable[tuple[About, str]]) -> tuple[About, str]:
    order = [About.HIDDEN, About.SENDER, About.BITS, About.NAMED, About.INTERFACE, About.PLACE]
    return min(kinds, key=lambda one: order.index(one[0]))


def _parts(value: Json) -> list[Json] | None:
    match value:
        case {"concat": list(parts)}:
            return parts
        case {"elem": {"val": inner}}:
            return _parts(inner)
    return None


def _known(subject: str, source: About) -> tuple[About, str] | None:
    """What a field that has a name tells; `source` is what the sender's own address does."""
    if subject in SOURCE_FIELDS:
        return source, ""
    if subject in INTERFACE_FIELDS:
        return About.INTERFACE, ""
    if subject in _HIDDEN:
        return About.HIDDEN, _HIDDEN[subject]
    if subject in _NAMED:
        return About.NAMED, _NAMED[subject]
    return None


def _about(left: Json, family: str) -> tuple[About, str]:
    """What a field or an expression can tell of the sender, and what decides where that is not plain."""
    if known := _known(show(left), About.SENDER):
        return known
    found = [kind for kind in (_atom(one, family) for one in _atoms(left)) if kind[0] is not About.PLACE]
    return _worst(found) if found else (About.PLACE, "")


def _atoms(value: Json) -> Iterator[Json]:
    """The fields that an expression is made of, each as its JSON."""
    if isinstance(value, list):
        for one in value:
            yield from _atoms(one)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in {"payload", "meta", "ct", "fib", "rt", "socket", "ipsec", "osf", "tunnel"}:
                yield {key: inner}
            else:
                yield from _atoms(inner)


def _atom(value: Json, family: str) -> tuple[About, str]:
    if known := _known(show(value), About.BITS):
        return known
    match value:
        case {"payload": {"base": "nh", "offset": int(offset), "len": int(length)}}:
            if any(offset < end and start < offset + length for start, end in _SENDER_BITS.get(family, ())):
                return About.BITS, ""
        case {"payload": {"base": "ll" | "th" | "ih"}} | {"payload": {"protocol": str()}}:
            return About.PLACE, ""
        case {"ipsec": _} | {"tunnel": _}:
            return About.NAMED, "a tunnel's identity decides"
        case {"socket": _} | {"osf": _}:
            return About.NAMED, "the sender's socket or system decides"
    return About.PLACE, ""


def values_of(right: Json, sets: Maps) -> tuple[list[Json], str]:
    """What a field is compared with, and the set that holds it; no values of a closed one."""
    if isinstance(right, str) and right.startswith("@"):
        elements = sets.get(right[1:])
        return (elements if isinstance(elements, list) else []), right[1:]
    if isinstance(right, dict) and isinstance(right.get("set"), list | str | int | dict):
        return as_list(right["set"]), ""
    return [right], ""


_LIMITS = {"limit": "limit", "quota": "quota", "ct count": "connlimit"}
_SITE_STATEMENTS = frozenset({"dnat", "redirect", "tproxy", "synproxy", "fwd", "dup", "queue", "secmark"})


def statement_condition(statement: Json, sets: Maps, family: str) -> Match | None:
    """The condition that a statement is, or None when it is none.

    Raises:
        Unreadable: it draws by a chooser that is not understood.
    """
    if not isinstance(statement, dict) or len(statement) != 1:
        return Match(show(statement), about=About.HIDDEN, reason="a statement that is not understood decides")
    kind, body = next(iter(statement.items()))
    if kind == "match" and isinstance(body, dict) and {"op", "left", "right"} <= set(body):
        return _matched(body, statement, sets, family)
    text = show_statement(statement)
    if kind in _LIMITS or (isinstance(body, str) and kind == "quota"):
        return Match(_LIMITS[kind], (text,), text=text)
    if kind == "xt" and isinstance(body, dict) and body.get("type") == "match":
        if body.get("name") == "comment":
            return None
        return Match(text, about=About.HIDDEN, reason="a condition of iptables-nft decides", text=text)
    if kind in _SITE_STATEMENTS:
        return None
    return Match(text, about=About.HIDDEN, reason=f"its statement {kind[:20]!r} is not understood", text=text)


def _matched(body: AnyMapping[str, Any], statement: Json, sets: Maps, family: str) -> Match:
    values, name = values_of(body["right"], sets)
    op = str(body["op"])
    if name and not values:
        left, text = body["left"], show_statement(statement)
        about, reason = _about(left, family)
        if about in {About.SENDER, About.BITS}:
            about, reason = About.NAMED, f"the set {name[:40]} decides, and what it holds is not in the rules"
        return Match(show(left), (f"@{name}",), op == "!=", about=about, reason=reason, text=text)
    return condition(body["left"], op, values, statement, family, name)


__all__ = ["BY_MARK", "condition", "quoted", "statement_condition", "values_of"]
