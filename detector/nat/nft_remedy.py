# SPDX-License-Identifier: Apache-2.0
"""A remedy in nft's words: in the place of nft's rules, or as a chain of its own before those of iptables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised
from detector.nat.ipt_remedy import MAX_LADDER, ladder
from detector.nat.model import About, Base, Exemption, Match, NatRule, Numgen, NumgenMode, RuleSet, Where
from detector.nat.remedy_text import Draw, Remedy, elements
from detector.nat.selection import Selection, intersected, places_meet, selections

MAX_EXEMPTIONS = 64
"""Earlier rules that a chain beside iptables repeats; where there are more, the remedy is iptables' own."""

_QUOTED = frozenset({"iif", "oif", "iifname", "oifname"})
_IN_PLACE = "write instead, in the place of that rule:"
_IN_PLACES = "write instead, in the place of those rules:"
_BESIDE = (
    "load it beside the rules of iptables as it is: its chain has a priority before theirs, so it is asked "
    "first whatever is loaded first, and they keep the rest:"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One new rule: the rules that it stands for, its last words, and what stands before those."""

    replaces: list[NatRule]
    words: tuple[str, ...]
    lead: tuple[str, ...]

    @property
    def text(self) -> str:
        """The rule."""
        comments = dict.fromkeys(rule.comment for rule in self.replaces if rule.comment)
        comment = "".join(
            char for char in " / ".join(comments)[:100] if char.isprintable() and char not in '"\\'
        )
        return " ".join([*self.lead, *self.words, *([f'comment "{comment}"'] if comment else [])])


def word_of(family: Family) -> str:
    """``ip`` or ``ip6``."""
    return "ip6" if family is Family.IPV6 else "ip"


def any_of(values: Sequence[str]) -> str:
    """One value as it is, more as a set."""
    return values[0] if len(values) == 1 else "{ " + ", ".join(values) + " }"


def short(span: AddressRange) -> str:
    """A range as a prefix where it is one."""
    network = None if span.single else span.network()
    return str(network or span)


def in_place(lines: Sequence[Line], draw: Draw, told: Sequence[NatRule], effect: str = "") -> Remedy | None:
    """The new rules in their tables and chains; None where a condition cannot be written."""
    if any('{"' in one for line in lines for one in line.lead):
        return None
    tables: dict[tuple[str, str], dict[str, list[Line]]] = {}
    for line in lines:
        where = line.replaces[0].where
        tables.setdefault((where.family, where.table), {}).setdefault(where.chain, []).append(line)
    text = "".join(
        f"table {family} {table} {{\n{''.join(_chain(name, its) for name, its in chains.items())}}}\n"
        for (family, table), chains in tables.items()
    )
    many = len({rule.where for line in lines for rule in line.replaces}) > 1
    first, *others = draw.choices
    return Remedy(
        text,
        effect or first[1],
        first[0],
        tuple(others),
        "nft",
        tuple(dict.fromkeys(str(rule.where) for rule in told)),
        _IN_PLACES if many else _IN_PLACE,
        _commands(lines),
    )


def _chain(name: str, lines: Sequence[Line]) -> str:
    rule = lines[0].replaces[0]
    head = f"\t\t{hook_line(rule.base)}\n" if rule.depth == 0 and rule.base is not None else ""
    body = "".join(f"\t\t{line.text}\n" for line in lines)
    return f"\tchain {name} {{\n{head}{body}\t}}\n"


def hook_line(base: Base) -> str:
    """The line that hangs a base chain into the hook, as nft lists it."""
    return f"type nat hook postrouting priority {priority_word(base.priority)}; policy {base.policy};"


def priority_word(priority: int) -> str:
    """A priority near srcnat by that name."""
    away = priority - 100
    if away == 0:
        return "srcnat"
    return f"srcnat {'+' if away > 0 else '-'} {abs(away)}" if abs(away) <= 10 else str(priority)


def _commands(lines: Sequence[Line]) -> str:
    """What replaces the rules on a relay, by their handles; empty where one has none."""
    made: list[str] = []
    gone: dict[Where, None] = {}
    for line in lines:
        wheres = list(dict.fromkeys(rule.where for rule in line.replaces))
        if any(where.handle is None for where in wheres):
            return ""
        first, *others = wheres
        place = f"rule {first.family} {first.table} {first.chain} handle {first.handle}"
        made.append(f"add {place} {line.text}")
        gone |= dict.fromkeys((first, *others))
    # not `replace`: nft 1.0.6 ends with a bug there on sets of ranges
    made += (f"delete rule {one.family} {one.table} {one.chain} handle {one.handle}" for one in gone)
    return "\n".join(made) + "\n"


def beside_iptables(
    rules: RuleSet, members: Sequence[NatRule], draw: Draw, mapped: tuple[AddressRange, ...] | None = None
) -> Remedy | None:
    """A chain of nft that is asked before iptables' own; None where nft cannot say a condition.

    Args:
        rules: all of them, with what is exempt.
        members: the rules of one place that it stands for.
        draw: how it chooses.
        mapped: the senders that a map of the one member names.
    """
    first = members[0]
    draws = any(one.chooser is not None for one in first.matches) and not first.parts
    if first.where.table != "nat" or first.base is None or draws:
        return None  # of a draw, the rule that stays would take its share of the rest
    family = first.pools[0].family
    leads = [_conditions(rule, draw.word) for rule in members]
    before = _before(rules, members, family)
    exempt = [_exempt(one, draw.word) for one in before or ()]
    if before is None or any(one is None for one in (*exempt, *leads)):
        return None
    who = (f"{draw.word} saddr {any_of([short(one) for one in mapped])}",) if mapped else ()
    lines = [
        Line(its, (*who, draw.target), lead)
        for lead, its in _merged(members, [one or () for one in leads], draw.word)
    ]
    text = _table(draw.word, first, [one for one in exempt if one], lines)
    choice, *others = draw.choices
    places = tuple(str(rule.where) for rule in members)
    own = ladder(members, draw) if len(draw.exits) <= MAX_LADDER and len(members) <= MAX_LADDER else ""
    return Remedy(text, choice[1], choice[0], tuple(others), "nft", places, _BESIDE, "", own)


def _conditions(rule: NatRule, word: str) -> tuple[str, ...] | None:
    """Everything that a rule and the jumps to it ask, in nft's words; None where nft cannot say it."""
    shown = [match for match in rule.matches if not (rule.parts and match.chooser is not None)]
    conditions = [_in_nft(match, word) for match in shown]
    return None if any(one is None for one in conditions) else tuple(_ordered(conditions))


def _merged(
    members: Sequence[NatRule], leads: Sequence[tuple[str, ...]], word: str
) -> list[tuple[tuple[str, ...], list[NatRule]]]:
    """One rule for all that differ in the source address alone; one for anybody stands for all."""
    named: dict[tuple[str, ...], list[NatRule]] = {}
    other: list[tuple[tuple[str, ...], list[NatRule]]] = []
    anybody: dict[tuple[str, ...], list[NatRule]] = {}
    for rule, lead in zip(members, leads, strict=True):
        senders = [match for match in rule.matches if match.about_source]
        if not senders:
            anybody.setdefault(lead, []).append(rule)
        elif len(members) > 1 and len(senders) == 1 and senders[0].sources and not senders[0].negated:
            rest = tuple(one for one in lead if one != _in_nft(senders[0], word))
            named.setdefault(rest, []).append(rule)
        else:
            other.append((lead, [rule]))
    made = [
        (lead, sorted([*rules, *named.pop(lead, [])], key=lambda one: one.number))
        for lead, rules in anybody.items()
    ]
    for lead, rules in named.items():
        spans = normalised(source for rule in rules for source in rule.sources or ())
        who = f"{word} saddr {any_of([short(one) for one in spans])}"
        made.append((tuple(_ordered([who, *lead])), rules))
    return sorted([*made, *other], key=lambda one: one[1][0].number)


def _ordered(conditions: Iterable[str | None]) -> list[str]:
    """The protocol before the ports that need it; each once."""
    known = list(dict.fromkeys(one for one in conditions if one))
    return sorted(known, key=lambda one: one.startswith("th "))


def _table(word: str, rule: NatRule, exempt: Sequence[str], lines: Sequence[Line]) -> str:
    own = "".join(f"\t\t{line.text}\n" for line in lines)
    hook = "type nat hook postrouting priority srcnat - 1; policy accept;"
    if not exempt:
        return f"table {word} exits {{\n\tchain postrouting {{\n\t\t{hook}\n{own}\t}}\n}}\n"
    name = re.sub(r"[^a-z0-9_]", "_", f"{rule.where.chain.lower()}_{rule.where.number}")
    kept = "".join(f"\t\t{one} return\n" for one in exempt)
    inner = f"\tchain {name} {{\n{kept}{own}\t}}\n"
    outer = f"\tchain postrouting {{\n\t\t{hook}\n\t\tjump {name}\n\t}}\n"
    return f"table {word} exits {{\n{inner}{outer}}}\n"


def _before(rules: RuleSet, members: Sequence[NatRule], family: Family) -> list[tuple[Match, ...]] | None:
    """What takes packets away before these rules in the same place; None where it is too much."""
    first, last = members[0], members[-1]
    ours = {rule.number for rule in members} | {part.number for rule in members for part in rule.parts}
    mine = [one for rule in members[:8] for one in selections(rule.matches, family)]
    found = [one.matches for one in _exemptions(rules, first) if family in one.families]
    for rule in rules.rules[: last.number]:
        own = rule.base == first.base and rule.number not in ours and family in rule.families
        if own and rule.number < first.number:
            found.append(rule.matches)
    near = [
        matches
        for matches in dict.fromkeys(found)
        if any(_meet(one, other) for one in selections(matches, family) for other in mine)
    ]
    return near if len(near) <= MAX_EXEMPTIONS else None


def _exemptions(rules: RuleSet, first: NatRule) -> Iterable[Exemption]:
    return (
        one
        for one in rules.exemptions
        if one.since <= first.number < one.until and one.where.reader == "iptables"
    )


def _meet(left: Selection, right: Selection) -> bool:
    """Whether a packet could be taken by both."""
    if (
        left.sources is not None
        and right.sources is not None
        and not intersected(left.sources, right.sources)
    ):
        return False
    return places_meet(left.conditions, right.conditions)


def _exempt(matches: Sequence[Match], word: str) -> str | None:
    """The conditions of an exemption; None where nft cannot say one, an empty one takes everything."""
    conditions = [_in_nft(match, word) for match in matches]
    return None if any(one is None for one in conditions) else " ".join(_ordered(conditions))


def _in_nft(match: Match, word: str) -> str | None:
    """A condition of iptables in nft's words; None for one that iptables alone can say."""
    sign = "!= " if match.negated else ""
    subject, values = match.subject, list(match.values)
    if match.chooser is not None:
        return _draw_in_nft(match)
    if subject.startswith("ct original "):
        return f"ct original {word} saddr {sign}{any_of(values)}"
    if subject in {f"{word} saddr", f"{word} daddr"}:
        if values in (["0.0.0.0/0"], ["::/0"]):
            return ""
        return f"{subject} {sign}{any_of(values)}"
    if subject in _QUOTED:
        return f"{subject} {sign}{any_of([_interface(one) for one in values])}"
    if subject == "meta l4proto":
        return f"meta l4proto {sign}{any_of([_PROTOCOLS.get(one, one) for one in values])}"
    if subject in {"dport", "sport"}:
        return f"th {subject} {sign}{any_of([one.replace(':', '-') for one in values])}"
    if subject == "ct state" and not set(values) - _STATES:
        return f"ct state {sign}{any_of(values)}"
    if subject == "addrtype --dst-type" and not set(values) - _TYPES:
        return f"fib daddr type {sign}{any_of([one.lower() for one in values])}"
    return _masked_in_nft(match)


_STATES = frozenset({"new", "established", "related", "invalid", "untracked"})
_TYPES = frozenset({"LOCAL", "UNICAST", "BROADCAST", "MULTICAST", "ANYCAST", "BLACKHOLE", "UNREACHABLE"})
_PROTOCOLS = {"ipv6-icmp": "icmpv6", "icmp6": "icmpv6"}


def _masked_in_nft(match: Match) -> str | None:
    """Bits of the address, and marks."""
    if match.about is About.BITS and " & " in match.subject:
        subject, _, mask = match.subject.partition(" & ")
        kind = IPv6Address if subject.startswith("ip6") else IPv4Address
        return f"{subject} & {kind(int(mask, 16))} {'!=' if match.negated else '=='} {match.values[0]}"
    found = re.fullmatch(r"-m (mark|connmark) (! )?--mark (\w+)(?:/(\w+))?", match.text)
    if found:
        key = "meta mark" if found[1] == "mark" else "ct mark"
        sign = "!=" if found[2] else "=="
        return f"{key} & {found[4]} {sign} {found[3]}" if found[4] else f"{key} {sign} {found[3]}"
    return None


def _draw_in_nft(match: Match) -> str | None:
    """``-m statistic`` as the number generator that it is."""
    chooser = match.chooser
    if not isinstance(chooser, Numgen) or not match.values:
        return None
    first, _, last = match.values[0].partition("-")
    if chooser.mode is NumgenMode.RANDOM:
        return f"numgen random mod {chooser.modulus} {'>' if match.negated else '<='} {last or first}"
    return f"numgen inc mod {chooser.modulus} {'!= ' if match.negated else ''}{first}"


def _interface(name: str) -> str:
    """An interface's name; iptables' wildcard is +, nft's is *."""
    return f'"{name[:-1]}*"' if name.endswith("+") else f'"{name}"'


__all__ = ["Line", "any_of", "beside_iptables", "elements", "in_place", "replace", "short", "word_of"]
