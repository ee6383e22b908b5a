# SPDX-License-Identifier: Apache-2.0
"""What to write instead of rules that leak (docs/leak-modes.md §7), in a form that can be pasted.

A rule of nft is replaced in its own chain: table, chain line, conditions, counters, comment and named sets
stay. A rule of iptables gets a chain of nft beside it, which is asked before iptables' own, under every
condition of the rule and of the jumps to it, behind everything that was exempt before it; where nft cannot
say one of these conditions, the rule keeps them and jumps to a chain of iptables that draws.

Rules that give peers exits of their own are mended together: the exits of one place (interface, site,
protocol) are shared by all whom they served there, and no exit of another place comes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised
from detector.nat.ipt_remedy import iptables_remedy
from detector.nat.model import (
    Base,
    Chosen,
    FieldMap,
    JHash,
    Match,
    NatRule,
    Netmap,
    RangeHash,
    RuleSet,
    SingleAddress,
)
from detector.nat.nft_remedy import Line, any_of, beside_iptables, elements, in_place, short, word_of
from detector.nat.remedy_text import (
    BY_SITE,
    DRAWN,
    FRESH,
    LARGEST_MAP,
    MAX_EXITS,
    STICKY,
    Draw,
    Remedy,
    spread,
)
from detector.nat.selection import Conditions
from detector.nat.splits import Cell, Split

Told = Mapping[int, Sequence[tuple[Cell, Split]]]


MAX_REST = 32
"""Rules for whoever comes that are looked at when a rule could simply go."""


@dataclass(slots=True)
class _Group:
    """Rules to one exit each that stand in one place, and are mended together."""

    rules: dict[int, NatRule] = field(default_factory=dict)
    leaks: bool = False


def remedies(
    rules: RuleSet, told: Told, leaking: Sequence[int], exclusive: Iterable[int]
) -> dict[int, Remedy]:
    """What to write instead, by the index of each rule that leaks; nothing where there are not two exits.

    Args:
        rules: all of them.
        told: their cells.
        leaking: the indexes of those that leak.
        exclusive: the indexes of those that give somebody an exit of its own.
    """
    wanted = set(leaking)
    rest = [rule for rule in rules.rules if _is_rest(rule)][:MAX_REST]
    made: dict[int, Remedy] = {}
    alone = set(exclusive)
    for group in _groups(rules, told, wanted):
        remedy = _for_group(rules, group)
        made |= {at: remedy for at in group.rules if at in wanted} if remedy is not None else {}
    for at in leaking:
        if at in alone and isinstance(rules.rules[at].mapping, Chosen):  # a pool of one's own
            gone = _without(rest, rules.rules[at])
            made |= {at: gone} if gone is not None else {}
        elif at not in made:
            remedy = _for_rule(rules, rules.rules[at]) or (
                _without(rest, rules.rules[at]) if at in alone else None
            )
            if remedy is not None:
                made[at] = remedy
    return made


def _groups(rules: RuleSet, told: Told, wanted: set[int]) -> list[_Group]:
    """Rules to one exit each, by the chain at the hook, the family and the place that they share."""
    found: dict[tuple[Base | None, Family, Conditions, frozenset[str]], _Group] = {}
    for at, rule in enumerate(rules.rules):
        cells = told.get(at, ())
        if not isinstance(rule.mapping, SingleAddress) or rule.choosers or not cells:
            continue
        places = {cell.selection.place for cell, _ in cells}
        closed = any(cell.own_network for cell, _ in cells)
        if len(places) == 1 and not closed and all(not _is_hidden(cell) for cell, _ in cells):
            key = rule.base, rule.pools[0].family, places.pop(), rule.flags
            group = found.setdefault(key, _Group())
            group.rules[at] = rule
            group.leaks = group.leaks or at in wanted
    return [group for group in found.values() if group.leaks]


def _is_hidden(cell: Cell) -> bool:
    return any(one.about.value in {"hidden", "named", "interface"} for one in cell.selection.sender)


def _for_group(rules: RuleSet, group: _Group) -> Remedy | None:
    """One pool for everybody whom these rules served."""
    members = list(group.rules.values())
    first = members[0]
    exits = _exits_with_ports(members)
    if len({address for address, _ in exits}) < 2 and len(exits) < 2 and not _had_ports(members):
        return None
    draw = Draw(word_of(first.pools[0].family), tuple(exits), first.flags, "sticky", _common_ports(exits))
    if first.where.reader == "iptables":
        return beside_iptables(rules, members, draw) or iptables_remedy(members, draw)
    return in_place(_lines(members, draw), draw, members)


def _had_ports(members: Sequence[NatRule]) -> bool:
    return len({rule.ports for rule in members}) > 1


def _exits_with_ports(members: Sequence[NatRule]) -> list[tuple[str, str]]:
    """The exits to choose from; blocks of ports that follow each other become one."""
    by_address: dict[AddressRange, list[tuple[int, int]]] = {}
    for rule in members:
        if rule.ports:
            first, _, last = rule.ports.partition("-")
            by_address.setdefault(rule.pools[0], []).append((int(first), int(last or first)))
        else:
            by_address.setdefault(rule.pools[0], [])
    exits: list[tuple[str, str]] = []
    for address in sorted(by_address, key=lambda one: int(one.first)):
        blocks = _joined(by_address[address])
        exits += [(str(address), f"{first}-{last}") for first, last in blocks] or [(str(address), "")]
    if len(exits) <= LARGEST_MAP:
        return exits
    return [exits[number * len(exits) // MAX_EXITS] for number in range(MAX_EXITS)]


def _joined(blocks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for first, last in sorted(blocks):
        if made and first <= made[-1][1] + 1:
            made[-1] = (made[-1][0], max(made[-1][1], last))
        else:
            made.append((first, last))
    return made


def _common_ports(exits: Sequence[tuple[str, str]]) -> str:
    """The ports that all exits have, where they are the same for all."""
    ports = {ports for _, ports in exits}
    return ports.pop() if len(ports) == 1 else ""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Rules that may become one: their chain, what they ask beside the sender, and by which field."""

    table: str
    chain: str
    lead: tuple[str, ...]
    field: str

    @property
    def chain_and_lead(self) -> tuple[str, str, tuple[str, ...]]:
        """Everything but the sender."""
        return self.table, self.chain, self.lead


def _lines(members: Sequence[NatRule], draw: Draw) -> list[Line]:
    """The rules of nft that stand for all members: one for each chain and kind of condition on the sender."""
    merged: dict[_Kind, list[NatRule]] = {}
    for rule in members:
        sender = _sender(rule)
        plain = sender is not None and bool(sender.sources) and not sender.negated
        lead = _lead_without(rule, sender if plain else None)
        subject = sender.subject if plain and sender is not None else ""
        merged.setdefault(_Kind(rule.where.table, rule.where.chain, lead, subject), []).append(rule)
    anybody = {kind.chain_and_lead for kind in merged if not kind.field and _takes_anybody(merged[kind])}
    lines: list[Line] = []
    for kind, its in merged.items():
        whole = kind.chain_and_lead in anybody
        if kind.field and whole:
            continue  # the line for anybody takes them too
        alike = [
            rule
            for other, more in merged.items()
            if other.chain_and_lead == kind.chain_and_lead
            for rule in more
        ]
        served = sorted(alike if whole else its, key=lambda rule: rule.number)
        lines.append(Line(served, (*_condition_of(its, kind.field), draw.target), kind.lead))
    return lines


def _takes_anybody(members: Sequence[NatRule]) -> bool:
    return any(_sender(rule) is None for rule in members)


def _sender(rule: NatRule) -> Match | None:
    """The one condition of the rule itself that says who sends."""
    return next((one for one in rule.own_matches if one.about_source), None)


def _lead_without(rule: NatRule, gone: Match | None) -> tuple[str, ...]:
    return tuple(one for one in rule.lead if gone is None or one != gone.text)


def _condition_of(its: Sequence[NatRule], subject: str) -> tuple[str, ...]:
    """The merged condition on the sender."""
    senders = [one for rule in its if (one := _sender(rule)) is not None]
    if not subject:
        return ()
    if len(senders) == 1 and "@" in senders[0].text:
        return (senders[0].text,)
    spans = normalised(source for one in senders for source in one.sources)
    return (f"{subject} {any_of([short(one) for one in spans])}",)


def _for_rule(rules: RuleSet, rule: NatRule) -> Remedy | None:
    """What to write instead of one rule."""
    mapping = rule.mapping
    if isinstance(mapping, FieldMap):
        return _for_map(rule, mapping)
    unseeded = _unseeded(rule)
    if unseeded is not None:
        return unseeded
    exits = _exits(rule)
    if len(exits) < 2:
        return None
    order = "site" if _is_by_site(rule) else "sticky"
    draw = Draw(
        word_of(_family(rule)),
        tuple((one, "") for one in exits),
        rule.flags - {"persistent"},
        order,
        rule.ports,
    )
    if rule.where.reader == "iptables":
        return beside_iptables(rules, [rule], draw, _mapped(rule)) or iptables_remedy([rule], draw)
    sources = _mapped(rule)
    more = (f"{draw.word} saddr {any_of([short(one) for one in sources])}",) if sources else ()
    gone = {match.text for part in rule.parts for match in part.own_matches if match.chooser is not None}
    lead = tuple(one for one in rule.lead if one not in gone)
    return in_place([Line(list(rule.parts) or [rule], (*more, draw.target), lead)], draw, [rule])


def _exits(rule: NatRule) -> list[str]:
    family = _family(rule)
    return spread([one for one in normalised(rule.pools) if one.family is family])


def _family(rule: NatRule) -> Family:
    return next((pool.family for pool in rule.pools), Family.IPV4)


def _mapped(rule: NatRule) -> tuple[AddressRange, ...] | None:
    """The condition that a prefix map of sources was: whom it took."""
    pairs = rule.mapping.pairs if isinstance(rule.mapping, Netmap) else ()
    return normalised(pair.source for pair in pairs if pair.source is not None) or None


def _is_by_site(rule: NatRule) -> bool:
    """Whether the exit follows the destination now: keep that, and do not make it one exit for all sites."""
    mapping = rule.mapping
    if isinstance(mapping, RangeHash):
        return not mapping.persistent
    if isinstance(mapping, Chosen) and isinstance(mapping.chooser, JHash):
        return any(one.is_destination for one in mapping.chooser.fields)
    ranges = isinstance(mapping, Chosen | FieldMap) and any(not pool.single for pool in mapping.pools)
    return ranges and "persistent" not in rule.flags


_SEED = re.compile(r" seed 0x[0-9a-f]+| seed \d+")


def _unseeded(rule: NatRule) -> Remedy | None:
    """The same rule without its seed, where that alone cures it: a map of single exits, or a verdict map."""
    drawn = next((one for one in rule.matches if isinstance(one.chooser, JHash)), None)
    parts = rule.parts or (rule,)
    origin = next((one for part in parts for one in part.matches if one.origin is not None), None)
    if origin is not None and origin.origin is not None and isinstance(origin.chooser, JHash):
        if origin.chooser.seed is None:
            return None
        found = re.search(r"jhash .*? mod \d+", _SEED.sub("", origin.text))
        draw = Draw("ip", (), frozenset(), "sticky", "", expression=found[0] if found else "")
        line = Line(
            [replace(rule, where=origin.origin, depth=_depth(origin, rule), lead=(), parts=())],
            (),
            (_SEED.sub("", origin.text),),
        )
        return in_place([line], draw, [rule], DRAWN)
    mapping = rule.mapping
    if drawn is not None or rule.parts or not isinstance(mapping, Chosen):
        return None
    chooser = mapping.chooser
    if (
        not isinstance(chooser, JHash)
        or chooser.seed is None
        or any(not one.exits.single for one in mapping.slots)
    ):
        return None
    target = _SEED.sub("", rule.text)
    target = target[target.index("snat") :] if "snat" in target else ""
    found = re.search(r"jhash .*? mod \d+", target)
    if not target or found is None:
        return None
    order = "site" if _is_by_site(rule) else "sticky"
    draw = Draw("ip", (), frozenset(), order, "", expression=found[0])
    return in_place([Line([rule], (target,), rule.lead)], draw, [rule], DRAWN)


def _depth(origin: Match, rule: NatRule) -> int:
    base = rule.base
    same = base is not None and origin.origin is not None and origin.origin.chain == base.chain
    return 0 if same else 1


def _for_map(rule: NatRule, mapping: FieldMap) -> Remedy | None:
    """A rule for each value of the other fields of the key, with the exits that stand beside it."""
    others: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for at, entry in enumerate(mapping.entries):
        keys = zip(mapping.fields, entry.key, strict=False) if not entry.catches_all else ()
        place = tuple((one.name, value) for one, value in keys if not one.is_source)
        others.setdefault(place, []).append(at)
    lines: list[Line] = []
    draws: list[Draw] = []
    for place, its in list(others.items())[:64]:
        entries = [mapping.entries[at] for at in its]
        family = _family(rule)
        exits = spread(normalised(one.exits for one in entries if one.exits.family is family))
        if len(exits) < 2 and len({one.ports for one in entries}) < 2 and len(others) == 1:
            return None
        order = "site" if _is_by_site(rule) else "sticky"
        flags = rule.flags - {"persistent"}
        ports = _entry_ports(entries) or rule.ports
        draw = Draw(word_of(family), tuple((one, "") for one in exits), flags, order, ports)
        sources = normalised(one.source for one in entries if one.source is not None)
        whole = any(one.catches_all for one in entries) or not sources
        who = () if whole else (f"{draw.word} saddr {any_of([short(one) for one in sources])}",)
        where = tuple(f"{name} {_quoted(name, value)}" for name, value in place)
        lines.append(Line([rule], (*where, *who, draw.target), rule.lead))
        draws.append(draw)
    if not draws or all(len(draw.exits) < 2 and not draw.ports for draw in draws):
        return None
    note = (
        f" The map {mapping.name} is asked no longer: what fills it has to change too."
        if mapping.name
        else ""
    )
    made = in_place(lines, max(draws, key=lambda one: len(one.exits)), [rule])
    return None if made is None else replace(made, effect=made.effect + note)


def _entry_ports(entries: Sequence[object]) -> str:
    """The ports of the elements as one block, where they follow each other."""
    blocks = [tuple(map(int, one.ports.split("-"))) for one in entries if one.ports]  # type: ignore[attr-defined]
    joined = _joined([(block[0], block[-1]) for block in blocks])
    return f"{joined[0][0]}-{joined[0][1]}" if len(joined) == 1 else ""


def _quoted(name: str, value: str) -> str:
    return f'"{value}"' if name in {"iif", "oif", "iifname", "oifname"} else value


def _is_rest(rule: NatRule) -> bool:
    """Whether it takes whoever comes, in a base chain."""
    return rule.depth == 0 and not any(match.about_source or match.chooser for match in rule.matches)


def _without(rest: Sequence[NatRule], rule: NatRule) -> Remedy | None:
    """Taking the rule away, where a later rule serves its peer like the others."""
    own = {(one.subject, one.values) for one in rule.matches if not one.about_source}
    serves = any(
        one.number > rule.number
        and one.base == rule.base
        and one.families & rule.families
        and {(match.subject, match.values) for match in one.matches} <= own
        for one in rest
    )
    if not serves:
        return None
    effect = "Without this rule its peer leaves as the others do, by the rule that comes later."
    places = [part.where for part in rule.parts] or [rule.where]
    named = tuple(map(str, places))
    if rule.where.reader == "iptables":
        ordered = sorted(places, key=lambda one: -(one.number or 0))
        gone = "".join(f"-D {one.chain} {one.number}\n" for one in ordered)
        how = "take it out, by `iptables-restore --noflush`, and from where the rules are kept:"
        return Remedy(f"*{rule.where.table}\n{gone}COMMIT\n", effect, "", (), "iptables", named, how)
    if any(one.handle is None for one in places):
        return None
    text = "".join(
        f"delete rule {one.family} {one.table} {one.chain} handle {one.handle}\n" for one in places
    )
    how = "take it out, by `nft -f`, and from where the rules are kept:"
    return Remedy(text, effect, "", (), "nft", named, how, commands=text)


__all__ = ["BY_SITE", "FRESH", "STICKY", "Remedy", "elements", "remedies"]
