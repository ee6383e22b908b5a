# SPDX-License-Identifier: Apache-2.0
"""Source-NAT rules from ``nft -j list ruleset``.

JSON, not text: nft 1.0.6 prints flags, seeds, prefixes and offsets completely in JSON (``netmap`` and
``type_flags`` mark a prefix map; a jhash without ``seed`` drew its own), while its text shows rules of
iptables-nft translated, changed or, for ip6 SNAT, not at all. Such rules are an ``xt`` statement in JSON:
they are reported as not understood with ``compat`` set, and iptables-save tells what they say.

Only hook postrouting is read: source NAT at hook input changes what the relay itself receives, not exits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field
from typing import Any

from detector.base.errors import UsageError
from detector.base.family import Family, family_of
from detector.base.ranges import AddressRange
from detector.nat.model import Chosen, FieldMap, JHash, Match, RuleSet, Where
from detector.nat.nft_exits import (
    Unreadable,
    chooser_of,
    first_address,
    mapping_of,
    numbers_of,
    pairs_of,
    pool_of,
)
from detector.nat.nft_text import SILENT, Json, as_list, show, show_rule
from detector.nat.walk import BY_MARK, Action, Branch, Entry, Jump, Return, Stop, Translate, Unclear, Walk

HINT = "give it the output of `nft -j list ruleset`"

NAT_TARGETS = frozenset({"SNAT", "MASQUERADE", "NETMAP", "SAME"})

_FAMILIES = {
    "ip": frozenset({Family.IPV4}),
    "ip6": frozenset({Family.IPV6}),
    "inet": frozenset(Family),
}
_BY_WORD = {"ip": Family.IPV4, "ipv4": Family.IPV4, "ip6": Family.IPV6, "ipv6": Family.IPV6}
_TRANSPORTS = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6"})
_EFFECTLESS = SILENT | {
    "mangle",
    "notrack",
    "ct helper",
    "ct timeout",
    "ct expectation",
    "flow",
    "set",
    "map",
    "last",
}
"""Statements that neither let packets through or hold them back, nor choose an exit."""


@dataclass(slots=True)
class _Table:
    """One table as listed: base chains with their priorities, rules by chain, maps and sets by name.

    `marked`: some rule of the listing, in whatever table, sets packet or connection marks.
    """

    family: str
    name: str
    handle: int | None = None
    base: list[tuple[str, int]] = field(default_factory=list)
    rules: dict[str, list[AnyMapping[str, Any]]] = field(default_factory=dict)
    maps: dict[str, Json] = field(default_factory=dict)
    marked: bool = False
    dormant: bool = False


def read_nft_json(text: str, outline: str = "") -> RuleSet:
    """The source-NAT rules of ``nft -j list ruleset``.

    Args:
        text: the listing.
        outline: what ``nft -t list ruleset`` prints, where `needs_outline` asks for it.

    Raises:
        UsageError: the text is not nft's JSON.
    """
    try:
        return _read(text, _dormant(outline))
    except RecursionError as error:
        raise UsageError("the nftables listing is nested too deeply", HINT) from error


def needs_outline(text: str) -> bool:
    """Whether a table has flags: nft 1.0.6 prints a stray string in their place (text tells them right)."""
    return bool(re.search(r'\{"table": \{[^{}]*"flags"', text))


def _dormant(outline: str) -> frozenset[tuple[str, str]]:
    """The tables that are switched off, by family and name."""
    heads = re.findall(r"^table (\w+) (\S+) \{[^\n]*\n\tflags ([^\n]*)", outline, re.MULTILINE)
    return frozenset((family, name) for family, name, flags in heads if "dormant" in flags)


def _read(text: str, dormant: frozenset[tuple[str, str]]) -> RuleSet:
    tables = {
        key: table
        for key, table in _tables(_objects(text)).items()
        if key not in dormant and not table.dormant
    }
    compiled = {key: _compile(table) for key, table in tables.items()}
    bases = [(prio, key, chain) for key, table in tables.items() for chain, prio in table.base]
    walk = Walk()
    for table in tables.values():
        for entry in _rewrites(table):
            walk.base({"": [entry]}, "", entry.families)
    for _, key, chain in sorted(bases, key=lambda one: one[0]):
        walk.base(compiled[key], chain, _FAMILIES[tables[key].family])
    return walk.result()


def _objects(text: str) -> Iterator[tuple[str, AnyMapping[str, Any]]]:
    """The listed objects: kind and content."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError("the nftables listing is not JSON", HINT) from error
    listed = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise UsageError('the JSON has no list "nftables"', HINT)
    for one in listed:
        if isinstance(one, dict):
            yield from ((kind, body) for kind, body in one.items() if isinstance(body, dict))


def _tables(objects: Iterable[tuple[str, AnyMapping[str, Any]]]) -> dict[tuple[str, str], _Table]:
    tables: dict[tuple[str, str], _Table] = {}
    for kind, body in objects:
        family, name = str(body.get("family")), str(body.get("name" if kind == "table" else "table"))
        if family not in _FAMILIES:
            continue
        table = tables.setdefault((family, name), _Table(family, name))
        if kind == "table":
            table.handle = _number(body.get("handle"))
            table.dormant = "dormant" in as_list(body.get("flags"))
        elif kind == "chain" and body.get("type") == "nat" and body.get("hook") == "postrouting":
            table.base.append((str(body.get("name")), _number(body.get("prio")) or 0))
        elif kind in {"map", "set"}:
            table.maps[str(body.get("name"))] = None if _filled_by_packets(body) else body.get("elem", [])
        elif kind == "rule":
            table.rules.setdefault(str(body.get("chain")), []).append(body)
    marked = any(
        _marks(rule) for table in tables.values() for rules in table.rules.values() for rule in rules
    )
    for table in tables.values():
        table.marked = marked
    return tables


def _marks(rule: AnyMapping[str, Any]) -> bool:
    """Whether a rule sets a mark, which later rules may choose by."""
    for statement in as_list(rule.get("expr")):
        match statement:
            case {"mangle": {"key": {"meta": {"key": "mark"}} | {"ct": {"key": "mark"}}}}:
                return True
            case {"xt": {"name": "MARK" | "HMARK" | "CONNMARK"}}:
                return True
    return False


def _by_mark(subject: str, table: _Table) -> str:
    """The doubt about a condition on a mark."""
    return BY_MARK if table.marked and re.search(r"\b(meta|ct) mark\b", subject) else ""


def _filled_by_packets(body: AnyMapping[str, Any]) -> bool:
    return bool(
        {"dynamic", "timeout"} & {flag for flag in as_list(body.get("flags")) if isinstance(flag, str)}
    )


def _number(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _compile(table: _Table) -> dict[str, list[Entry]]:
    return {
        chain: [_entry(table, chain, number, rule) for number, rule in enumerate(rules, 1)]
        for chain, rules in table.rules.items()
    }


def _where(table: _Table, chain: str, number: int, rule: AnyMapping[str, Any]) -> Where:
    return Where(
        "nftables", table.family, table.name, chain, _number(rule.get("handle")), table.handle, number
    )


def _entry(table: _Table, chain: str, number: int, rule: AnyMapping[str, Any]) -> Entry:
    where, statements = _where(table, chain, number, rule), rule.get("expr")
    families, matches = _FAMILIES[table.family], list[Match]()
    branches: tuple[Branch, ...] = ()
    for statement in statements if isinstance(statements, list) else []:
        try:
            limit = _limit(statement, table)
            branches = () if limit is not None else _branches(statement, table, where)
        except Unreadable as why:
            limit, branches = None, (Branch(Unclear(str(why))),)
        if limit is not None:
            families &= _families_of(limit)
            if not _says_family_only(limit):
                matches.append(limit)
        if branches:
            break
    matches += (one for branch in branches for one in _implied(branch.action))
    families &= frozenset(family for one in branches for family in _families_named(statement, one))
    return Entry(where, show_rule(statements), families, tuple(matches), branches)


def _branches(statement: Json, table: _Table, where: Where) -> tuple[Branch, ...]:
    """What a statement does with the packet; nothing for one that lets it go on.

    Raises:
        Unreadable: it is about source NAT, and not understood.
    """
    if not isinstance(statement, dict) or len(statement) != 1:
        return ()
    kind, body = next(iter(statement.items()))
    match kind:
        case "snat" | "masquerade":
            return (Branch(Translate(*mapping_of(kind, body, table.maps))),)
        case "xt":
            return _xt(body)
        case "vmap":
            return tuple(_vmap(body, table, where))
    action = _verdict(statement)
    return (Branch(action),) if action is not None else ()


def _implied(action: Action) -> Iterator[Match]:
    """The protocol that a field needs; nft leaves its condition out of the listing."""
    mapping = action.mapping if isinstance(action, Translate) else None
    fields = (
        mapping.chooser.fields if isinstance(mapping, Chosen) and isinstance(mapping.chooser, JHash) else ()
    )
    fields = mapping.fields if isinstance(mapping, FieldMap) else fields
    words = dict.fromkeys(one.name.split(" ")[0] for one in fields)
    yield from (Match("meta l4proto", (word,)) for word in words if word in _TRANSPORTS)


def _xt(body: Json) -> tuple[Branch, ...]:
    """A target of iptables-nft. nft before 1.0.3 does not say which, so any may be source NAT."""
    name = body.get("name") if isinstance(body, dict) else None
    if name is not None and str(name) not in NAT_TARGETS:
        return ()
    return (
        Branch(
            Unclear("it is a rule of iptables-nft; give the output of iptables-save as well", compat=True)
        ),
    )


def _verdict(value: Json) -> Action | None:
    match value:
        case {"jump": {"target": str(target)}}:
            return Jump(target)
        case {"goto": {"target": str(target)}}:
            return Jump(target, comes_back=False)
        case {"return": _}:
            return Return()
        case {"accept": _} | {"queue": _}:
            return Stop()
        case {"drop": _} | {"reject": _}:
            return Stop(dropped=True)
    return None


def _vmap(body: Json, table: _Table, where: Where) -> Iterator[Branch]:
    if not isinstance(body, dict) or not {"key", "data"} <= set(body):
        raise Unreadable("its vmap has no shape that nft prints")
    chooser = chooser_of(body["key"])
    for key, verdict in pairs_of(body["data"], table.maps):
        action = _verdict(verdict)
        if action is None:
            continue
        subject = show(body["key"])
        if chooser is not None:
            numbers_of(key)
        sources = _sources(body["key"], [key])
        unclear = _by_mark(subject, table)
        yield Branch(
            action, Match(subject, (show(key),), False, chooser, sources, unclear, where if chooser else None)
        )


def _limit(statement: Json, table: _Table) -> Match | None:
    """The condition that a statement is, or None when it is none.

    Raises:
        Unreadable: it draws by a chooser that is not understood.
    """
    if not isinstance(statement, dict) or len(statement) != 1:
        return Match(show(statement))
    kind, body = next(iter(statement.items()))
    if kind == "match" and isinstance(body, dict) and {"op", "left", "right"} <= set(body):
        return _match(body, statement, table)
    if kind == "xt" and isinstance(body, dict) and body.get("type") == "match":
        return None if body.get("name") == "comment" else Match(show(statement))
    acts = {"snat", "masquerade", "xt", "vmap"}
    if kind in acts or kind in _EFFECTLESS or _verdict(statement) is not None or kind == "continue":
        return None
    return Match(show(statement))


def _match(body: AnyMapping[str, Any], statement: Json, table: _Table) -> Match:
    chooser = chooser_of(body["left"])
    if str(body["op"]) not in {"==", "!=", "in"} or (chooser is None and _is_computed(body["left"])):
        text = show_rule([statement])
        return Match(text, chooser=chooser, unclear=_by_mark(text, table))
    values = _values(body["right"], table)
    sources = _sources(body["left"], values)
    shown = tuple(show(one) for one in values)
    subject = show(body["left"])
    return Match(subject, shown, body["op"] == "!=", chooser, sources, _by_mark(subject, table))


def _is_computed(left: Json) -> bool:
    return not (isinstance(left, dict) and bool({"payload", "meta", "ct", "concat"} & set(left)))


def _values(right: Json, table: _Table) -> list[Json]:
    """What a field is compared with; a named set is opened, unless packets fill it."""
    if isinstance(right, str) and right.startswith("@"):
        elements = table.maps.get(right[1:])
        return elements if isinstance(elements, list) else [right]
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return list(right["set"])
    return [right]


def _sources(left: Json, values: Iterable[Json]) -> tuple[AddressRange, ...]:
    """The source addresses among the values of a condition; none when it is about something else."""
    if show(left) not in {"ip saddr", "ip6 saddr"}:
        return ()
    try:
        return tuple(pool_of(one) for one in values)
    except Unreadable:
        return ()


def _families_of(limit: Match) -> frozenset[Family]:
    """The families that a condition leaves."""
    word = limit.subject.split(" ", 1)[0]
    if word in {"ip", "ip6"}:  # a negated one too: nft asks for the family first
        return frozenset({_BY_WORD[word]})
    if limit.subject in {"meta nfproto", "meta protocol"} and limit.values:
        named = frozenset(_BY_WORD[one] for one in limit.values if one in _BY_WORD)
        return frozenset(Family) - named if limit.negated else named
    return frozenset(Family)


def _says_family_only(limit: Match) -> bool:
    return limit.subject in {"meta nfproto", "meta protocol"} and bool(limit.values)


def _families_named(statement: Json, branch: Branch) -> frozenset[Family]:
    """The families that a statement can act on: its keyword's, or its exits'."""
    body = statement.get("snat") if isinstance(statement, dict) else None
    word = str(body.get("family")) if isinstance(body, dict) else ""
    if word in _BY_WORD:
        return frozenset({_BY_WORD[word]})
    if isinstance(branch.action, Translate):
        exit_address = first_address(branch.action.mapping)
        if exit_address is not None:
            return frozenset({family_of(exit_address)})
    return frozenset(Family)


def _rewrites(table: _Table) -> Iterator[Entry]:
    """Rules that overwrite the source address without conntrack: no flow to watch, so not understood."""
    reason = "it overwrites the source address without conntrack, so its flows cannot be watched"
    for chain, rules in table.rules.items():
        for number, rule in enumerate(rules, 1):
            for statement in as_list(rule.get("expr")):
                mangled = statement.get("mangle") if isinstance(statement, dict) else None
                if isinstance(mangled, dict) and show(mangled.get("key")) in {"ip saddr", "ip6 saddr"}:
                    where = _where(table, chain, number, rule)
                    families = _FAMILIES[table.family]
                    yield Entry(where, show_rule(rule["expr"]), families, (), (Branch(Unclear(reason)),))
