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
from dataclasses import dataclass, field, replace
from typing import Any

from detector.base.errors import UsageError
from detector.base.family import Family, family_of
from detector.nat.model import (
    SOURCE_FIELDS,
    Base,
    Chosen,
    FieldMap,
    JHash,
    Match,
    NotUnderstood,
    RuleSet,
    Where,
    digest,
)
from detector.nat.nft_conditions import condition, statement_condition
from detector.nat.nft_exits import (
    CLOSED,
    FILLED,
    LARGE,
    Unreadable,
    chooser_of,
    first_address,
    mapping_of,
    numbers_of,
    pairs_of,
)
from detector.nat.nft_text import SILENT, Json, as_list, show, show_rule, show_statement
from detector.nat.walk import (
    Action,
    Branch,
    Entry,
    Hooked,
    Jump,
    Return,
    Stop,
    Translate,
    Unclear,
    walked,
)

HINT = "give it the output of `nft -j list ruleset`"

NAT_TARGETS = frozenset({"SNAT", "MASQUERADE", "NETMAP", "SAME"})

_CT_ADDRESS = re.compile(r"\bct (?:original|reply) [sd]addr\b")

NamedSet = tuple[str, str, str]
"""Family, table and name of a set or map."""

_FAMILIES = {
    "ip": frozenset({Family.IPV4}),
    "ip6": frozenset({Family.IPV6}),
    "inet": frozenset(Family),
}
_BY_WORD = {"ip": Family.IPV4, "ipv4": Family.IPV4, "ip6": Family.IPV6, "ipv6": Family.IPV6}
_TRANSPORTS = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmpv6"})
_EFFECTLESS = (SILENT - {"quota"}) | {
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
    """One table as listed: base chains with their priorities, rules by chain, maps and sets by name."""

    family: str
    name: str
    handle: int | None = None
    base: list[Base] = field(default_factory=list)
    rules: dict[str, list[AnyMapping[str, Any]]] = field(default_factory=dict)
    maps: dict[str, Json] = field(default_factory=dict)
    dormant: bool = False


@dataclass(frozen=True, slots=True)
class NftListing:
    """What nft lists, before any chain is walked.

    Attributes:
        hooked: the chains at hook postrouting.
        unread: what is about source addresses, and no NAT that conntrack knows.
        compat: the families whose table ``nat`` holds rules of iptables-nft.
        marks: the fingerprint of the rules that set marks.
        prefixes: the families in which iptables translates prefixes outside of conntrack (SNPT).
    """

    hooked: tuple[Hooked, ...]
    unread: tuple[NotUnderstood, ...]
    compat: frozenset[str]
    marks: str
    prefixes: frozenset[str] = frozenset()


def read_nft_json(text: str, outline: str = "", *, live: bool = False) -> RuleSet:
    """The source-NAT rules of ``nft -j list ruleset``.

    Args:
        text: the listing.
        outline: what ``nft -t list ruleset`` prints, where `needs_outline` asks for it.
        live: these are the rules of a kernel at work, where a map without elements translates nothing; in a
            file it is filled later.

    Raises:
        UsageError: the text is not nft's JSON.
    """
    listing = nft_listing([text], outline, live=live)
    return walked(listing.hooked, listing.unread, listing.marks)


def nft_listing(
    texts: Iterable[str], outline: str = "", *, live: bool = False, large: Iterable[NamedSet] = ()
) -> NftListing:
    """What these listings say together: of a set that is listed twice, the later one counts.

    Args:
        texts: ``nft -j list ruleset``, or ``nft -j -t list ruleset`` and the sets that it leaves closed.
        outline: as for `read_nft_json`.
        live: as for `read_nft_json`.
        large: sets whose elements were not asked for.

    Raises:
        UsageError: a text is not nft's JSON.
    """
    try:
        objects = [one for text in texts for one in _objects(text)]
        return _listing(objects, _dormant(outline), live, frozenset(large))
    except RecursionError as error:
        raise UsageError("the nftables listing is nested too deeply", HINT) from error


def needed_sets(text: str) -> list[tuple[str, NamedSet]]:
    """The maps and sets that rules name on the way to source NAT: kind (``map``, ``set``) and name.

    Args:
        text: ``nft -j -t list ruleset``.

    Raises:
        UsageError: the text is not nft's JSON.
    """
    objects = list(_objects(text))
    tables = _tables(objects, live=True)
    kinds = {
        (str(body.get("family")), str(body.get("table")), str(body.get("name"))): kind
        for kind, body in objects
        if kind in {"map", "set"}
    }
    found: dict[NamedSet, None] = {}
    for (family, name), table in tables.items():
        rules = [rule for chain in _reachable(table) for rule in table.rules.get(chain, ())]
        for word in re.findall(r'"@([^"]{1,256})"', json.dumps([rule.get("expr") for rule in rules])):
            found.setdefault((family, name, word))
    return [(kinds[one], one) for one in found if one in kinds]


def _reachable(table: _Table) -> list[str]:
    """The chains that packets at hook postrouting can get to."""
    seen = dict.fromkeys(base.chain for base in table.base)
    todo = list(seen)
    while todo:
        text = json.dumps([rule.get("expr") for rule in table.rules.get(todo.pop(), ())])
        for target in re.findall(r'"target": "([^"]{1,256})"', text):
            if target not in seen:
                seen[target] = None
                todo.append(target)
    if any("vmap" in json.dumps(table.rules.get(chain, [])) for chain in seen):
        return list(table.rules)  # a named verdict map may lead to any chain of its table
    return list(seen)


def needs_outline(text: str) -> bool:
    """Whether a table has flags: nft 1.0.6 prints a stray string in their place (text tells them right)."""
    return bool(re.search(r'\{"table": \{[^{}]*"flags"', text))


def _dormant(outline: str) -> frozenset[tuple[str, str]]:
    """The tables that are switched off, by family and name."""
    heads = re.findall(r"^table (\w+) (\S+) \{[^\n]*\n\tflags ([^\n]*)", outline, re.MULTILINE)
    return frozenset((family, name) for family, name, flags in heads if "dormant" in flags)


def _listing(
    objects: list[tuple[str, AnyMapping[str, Any]]],
    dormant: frozenset[tuple[str, str]],
    live: bool,
    large: frozenset[NamedSet],
) -> NftListing:
    tables = {
        key: table
        for key, table in _tables(objects, live).items()
        if key not in dormant and not table.dormant
    }
    for family, table_name, name in large:
        if (family, table_name) in tables:
            tables[family, table_name].maps[name] = LARGE
    hooked, compat = list[Hooked](), set[str]()
    for (family, name), table in tables.items():
        chains = _compile(table) if table.base else {}
        hooked += (Hooked(base, chains, _FAMILIES[family]) for base in table.base)
        if name == "nat" and any(_is_compat(entry) for rules in chains.values() for entry in rules):
            compat.add(family)
    unread = tuple(one for table in tables.values() for one in _rewrites(table))
    prefixes = frozenset(one.where.family for one in unread if one.compat)
    return NftListing(tuple(hooked), unread, frozenset(compat), _marks(tables.values()), prefixes)


def _is_compat(entry: Entry) -> bool:
    return any(isinstance(one.action, Unclear) and one.action.compat for one in entry.branches)


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


def _tables(objects: Iterable[tuple[str, AnyMapping[str, Any]]], live: bool) -> dict[tuple[str, str], _Table]:
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
            chain, priority = str(body.get("name")), _number(body.get("prio")) or 0
            table.base.append(Base(family, name, chain, priority, str(body.get("policy", "accept"))))
        elif kind in {"map", "set"}:
            table.maps[str(body.get("name"))] = _elements(body, live)
        elif kind == "rule":
            table.rules.setdefault(str(body.get("chain")), []).append(body)
    return tables


def _elements(body: AnyMapping[str, Any], live: bool) -> Json:
    """The elements of a map or set, or why they are not known."""
    flags = {flag for flag in as_list(body.get("flags")) if isinstance(flag, str)}
    if {"dynamic", "timeout"} & flags:
        return FILLED
    return body.get("elem") or ([] if live else CLOSED)


def _marks(tables: Iterable[_Table]) -> str:
    """The fingerprint of the rules that set marks, which others may choose by."""
    found = [
        (table.family, table.name, chain, show_rule(rule.get("expr")))
        for table in tables
        for chain, rules in table.rules.items()
        for rule in rules
        if any(_sets_mark(one) for one in as_list(rule.get("expr")))
    ]
    return digest(found) if found else ""


def _sets_mark(statement: Json) -> bool:
    match statement:
        case {"mangle": {"key": {"meta": {"key": "mark"}} | {"ct": {"key": "mark" | "zone" | "label"}}}}:
            return True
        case {"xt": {"name": "MARK" | "HMARK" | "CONNMARK"}}:
            return True
    return False


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
    lead: list[Json] = []
    whole = " ".join(show_statement(one) for one in as_list(statements))
    for statement in as_list(statements):
        try:
            limit = _limit(statement, table)
            branches = () if limit is not None else _branches(statement, table, where, whole)
        except Unreadable as why:
            limit, branches = None, (Branch(Unclear(str(why))),)
        if limit is not None:
            families &= _families_of(limit)
            if not _says_family_only(limit):
                matches.append(limit)
        if branches:
            break
        lead.append(statement)
    matches += (one for branch in branches for one in _implied(branch.action))
    families &= frozenset(family for one in branches for family in _families_named(statement, one))
    pieces = tuple(show_statement(one) for one in lead)
    if table.family == "inet" and len(families) == 1 and _CT_ADDRESS.search(" ".join(pieces)):
        # nft leaves the family out of its listing, and wants it back
        pieces = (f"meta nfproto {next(iter(families))}", *pieces)
    comment = rule.get("comment")
    return Entry(
        where,
        show_rule(statements),
        families,
        tuple(matches),
        branches,
        pieces,
        comment if isinstance(comment, str) else "",
    )


def _branches(statement: Json, table: _Table, where: Where, whole: str) -> tuple[Branch, ...]:
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
            return tuple(_vmap(body, table, where, whole))
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


def _vmap(body: Json, table: _Table, where: Where, whole: str) -> Iterator[Branch]:
    if not isinstance(body, dict) or not {"key", "data"} <= set(body):
        raise Unreadable("its vmap has no shape that nft prints")
    left, pairs = body["key"], pairs_of(body["data"], table.maps)
    chooser = chooser_of(left)
    others = [key for key, _ in pairs if key != "*"]
    for key, verdict in pairs:
        action = _verdict(verdict)
        if action is None:
            continue
        if chooser is not None and key != "*":
            numbers_of(key)
        op, values = ("!=", others) if key == "*" else ("==", [key])
        match = {
            "match": {"op": op, "left": left, "right": values[0] if len(values) == 1 else {"set": values}}
        }
        found = condition(left, op, values, match, table.family) if values else None
        if found is not None and chooser is not None:
            found = replace(found, chooser=chooser, origin=where, text=whole)
        yield Branch(action, found)


def _limit(statement: Json, table: _Table) -> Match | None:
    """The condition that a statement is, or None when it is none.

    Raises:
        Unreadable: it draws by a chooser that is not understood.
    """
    kind = next(iter(statement)) if isinstance(statement, dict) and len(statement) == 1 else ""
    if kind in {"snat", "masquerade", "vmap", "continue"} or kind in _EFFECTLESS:
        return None
    body = statement.get("xt") if isinstance(statement, dict) else None
    if kind == "xt" and not (isinstance(body, dict) and body.get("type") == "match"):
        return None
    if _verdict(statement) is not None:
        return None
    return statement_condition(statement, table.maps, table.family)


def _families_of(limit: Match) -> frozenset[Family]:
    """The families that a condition leaves."""
    if limit.options:
        ways = [[_families_of(one) for one in way] for way in limit.options]
        return frozenset(family for family in Family if any(all(family in m for m in way) for way in ways))
    word = limit.subject.split(" ", 1)[0]
    if word in {"ip", "ip6"}:  # a negated one too: nft asks for the family first
        return frozenset({_BY_WORD[word]})
    if limit.subject in {"meta nfproto", "meta protocol"} and limit.values:
        named = frozenset(_BY_WORD[one] for one in limit.values if one in _BY_WORD)
        return frozenset(Family) - named if limit.negated else named
    if limit.subject in SOURCE_FIELDS and limit.sources and not limit.negated:
        return frozenset(one.family for one in limit.sources)
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


def _rewrites(table: _Table) -> Iterator[NotUnderstood]:
    """Rules that overwrite the source address without conntrack: no flow to watch, so not understood."""
    reason = "it overwrites the source address without conntrack, so its flows cannot be watched"
    for chain, rules in table.rules.items():
        for number, rule in enumerate(rules, 1):
            for statement in as_list(rule.get("expr")):
                if statement == _SNPT:
                    where = _where(table, chain, number, rule)
                    yield NotUnderstood(where, show_rule(rule["expr"]), _PREFIXES, compat=True)
                mangled = statement.get("mangle") if isinstance(statement, dict) else None
                if isinstance(mangled, dict) and _is_source(mangled.get("key"), table.family):
                    where = _where(table, chain, number, rule)
                    yield NotUnderstood(where, show_rule(rule["expr"]), reason)


_SNPT = {"xt": {"type": "target", "name": "SNPT"}}
_PREFIXES = "it translates prefixes in iptables' words; give the output of ip6tables-save as well"


def _is_source(key: Json, family: str) -> bool:
    """Whether a field is, or overlaps, the source address."""
    match key:
        case {"payload": {"base": "nh", "offset": int(offset), "len": int(length)}}:
            spans = {"ip": ((96, 128),), "ip6": ((64, 192),)}.get(family, ((96, 128), (64, 192)))
            return any(offset < end and start < offset + length for start, end in spans)
    return show(key) in {"ip saddr", "ip6 saddr"}
