# SPDX-License-Identifier: Apache-2.0
"""What to write instead of a rule that leaks: nftables text with its addresses (docs/leak-modes.md §7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detector.base.family import Family
from detector.base.ranges import AddressRange, normalised
from detector.nat.model import (
    Chosen,
    FieldMap,
    JHash,
    MapEntry,
    Match,
    NatRule,
    Netmap,
    NetmapPair,
    RangeHash,
)

LARGEST_MAP = 1024
"""Exits up to which all of a pool are written."""

MAX_EXITS = 256
"""Exits in the map of a remedy for a pool of more than `LARGEST_MAP`, evenly spread over it."""

_QUOTED = frozenset({"iif", "oif", "iifname", "oifname"})


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to write instead of one rule.

    Attributes:
        text: an nftables file that `nft -c -f` accepts: table, chain and the one rule, which goes in the
            place of the old one.
        effect: what it changes, and what it costs.
        expression: the part of `text` that chooses, which an alternative replaces.
        alternatives: other expressions for the same place, each with its effect.
    """

    text: str
    effect: str
    expression: str
    alternatives: tuple[tuple[str, str], ...]


_STICKY = (
    "Each peer keeps one exit on this relay, chosen by a secret that the kernel draws when the rules are "
    "loaded; other relays draw others. Loading the rules again re-draws everybody's exit. Sites can still "
    "recognise the exit on this relay."
)
_BY_SITE = (
    "Each peer keeps one exit for each site, chosen by a secret that the kernel draws when the rules are "
    "loaded; other relays draw others, other sites see other exits. Loading the rules again re-draws "
    "everybody's exits."
)
_FRESH = "Each flow draws its exit: nothing to recognise. Sites that tie a login to an address may ask again."


def remedy_for(rule: NatRule, exits: Sequence[AddressRange]) -> Remedy | None:
    """What to write instead of a rule.

    Args:
        rule: one that leaks.
        exits: what the new rule may choose from; disjoint.

    Returns:
        None where there are not two exits of the rule's family to choose from.
    """
    family = Family.IPV6 if any(pool.family is Family.IPV6 for pool in exits) else Family.IPV4
    chosen = _spread([pool for pool in exits if pool.family is family])
    if len(chosen) < 2:
        return None
    word, count = ("ip6" if family is Family.IPV6 else "ip"), len(chosen)
    sticky = (f"jhash {word} saddr mod {count}", _STICKY)
    by_site = (f"jhash {word} saddr . {word} daddr mod {count}", _BY_SITE)
    fresh = (f"numgen random mod {count}", _FRESH)
    first, *others = (by_site, fresh) if _is_by_site(rule) else (sticky, by_site, fresh)
    target = f"snat {word} to {first[0]} map {{{_elements(chosen)}}}"
    return Remedy(_file(rule, word, target), first[1], first[0], tuple(others))


def _elements(addresses: Sequence[str]) -> str:
    """The elements of a map from 0 on, some to a line."""
    named = [f"{number} : {address}" for number, address in enumerate(addresses)]
    lines = [", ".join(named[at : at + 4]) for at in range(0, len(named), 4)]
    return f" {lines[0]} " if len(lines) == 1 else "\n\t\t\t" + ",\n\t\t\t".join(lines) + "\n\t\t"


def _is_by_site(rule: NatRule) -> bool:
    """Whether the exit follows the destination now: keep that, and do not make it one exit for all sites."""
    mapping = rule.mapping
    if isinstance(mapping, RangeHash):
        return not mapping.persistent
    if isinstance(mapping, Chosen) and isinstance(mapping.chooser, JHash):
        return any(field.is_destination for field in mapping.chooser.fields)
    ranges = isinstance(mapping, Chosen | FieldMap) and any(not pool.single for pool in mapping.pools)
    return ranges and "persistent" not in rule.flags


def _spread(pools: Sequence[AddressRange]) -> list[str]:
    """The addresses of the pools, or `MAX_EXITS` of too many, evenly spread."""
    size = sum(pool.size for pool in pools)
    wanted = size if size <= LARGEST_MAP else MAX_EXITS
    positions = (number * size // wanted for number in range(wanted))
    made: list[str] = []
    base, left = 0, list(pools)
    for position in positions:
        while position - base >= left[0].size:
            base += left.pop(0).size
        made.append(str(left[0].at(position - base)))
    return made


def _file(rule: NatRule, word: str, target: str) -> str:
    """The rule's table and chain with one rule, under the conditions that are written in the old one."""
    matches = [match for match in rule.own_matches if match.chooser is None]
    shown = [(match, _condition(match, word)) for match in matches]
    notes = "".join(f"\t\t# and under: {match}\n" for match, text in shown if text is None)
    conditions = [text for _, text in shown if text is not None]
    line = " ".join([*conditions, *_mapped_sources(rule, word), target])
    native = rule.where.reader == "nftables"
    table, chain = (rule.where.table, rule.where.chain) if native else ("exits", rule.where.chain.lower())
    hook = "" if rule.depth else "\t\ttype nat hook postrouting priority srcnat; policy accept;\n"
    return f"table {rule.where.family} {table} {{\n\tchain {chain} {{\n{hook}{notes}\t\t{line}\n\t}}\n}}\n"


def _mapped_sources(rule: NatRule, word: str) -> list[str]:
    """The condition that a map of sources was: whom it took."""
    mapping = rule.mapping
    entries: Sequence[MapEntry | NetmapPair] = ()
    if isinstance(mapping, FieldMap) and not any(field.mask for field in mapping.fields):
        entries = mapping.entries
    elif isinstance(mapping, Netmap):
        entries = mapping.pairs
    sources = normalised(entry.source for entry in entries if entry.source is not None)
    return [f"{word} saddr {_any_of([_short(source) for source in sources])}"] if sources else []


def _condition(match: Match, word: str) -> str | None:
    """A condition in nft's syntax; None for one that iptables alone can say, or that packets decide."""
    if match.sources and match.subject.startswith("-m iprange"):
        return f"{word} saddr {_any_of([_short(source) for source in match.sources])}"
    if match.subject.startswith(("-m ", "xt ", "{")) or any(value.startswith("@") for value in match.values):
        return None
    if not match.values:
        return match.subject
    values = [_quoted(value) for value in match.values] if match.subject in _QUOTED else match.values
    return f"{match.subject} {'!= ' if match.negated else ''}{_any_of(values)}"


def _quoted(name: str) -> str:
    """An interface's name; iptables' wildcard is +, nft's is *."""
    return f'"{name[:-1]}*"' if name.endswith("+") else f'"{name}"'


def _any_of(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else "{ " + ", ".join(values) + " }"


def _short(pool: AddressRange) -> str:
    """A pool as a prefix where it is one."""
    network = None if pool.single else pool.network()
    return str(network or pool)
