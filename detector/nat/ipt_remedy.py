# SPDX-License-Identifier: Apache-2.0
"""A remedy in iptables' own words: the rules keep every condition and jump to a chain that draws an exit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from detector.nat.model import NatRule, Netmap
from detector.nat.remedy_text import FRESH, Draw, Remedy

MAX_LADDER = 32
"""Exits in a chain of draws."""


def iptables_remedy(members: Sequence[NatRule], draw: Draw) -> Remedy | None:
    """A file for ``iptables-restore --noflush`` in the place of these rules; None where one has no number."""
    first = members[0]
    text = ladder(members, draw)
    if not text:
        return None
    tool = "ip6tables" if first.where.family == "ip6" else "iptables"
    how = f"load it with `{tool}-restore --noflush`, and put it where the rules are kept:"
    places = tuple(str(rule.where) for rule in members)
    return Remedy(text, FRESH, "", (), "iptables", places, how)


def ladder(members: Sequence[NatRule], draw: Draw) -> str:
    """The chain of draws and the jumps to it."""
    rules = [part for rule in members for part in (rule.parts or (rule,))]
    if any(rule.where.number is None for rule in rules):
        return ""
    if all(rule.where.table == "nat" for rule in rules):
        chain = _chain_name(rules[0])
        lines = ["*nat", f":{chain} - [0:0]", *_draws(chain, rules[0], draw)]
        lines += (f"-R {rule.where.chain} {rule.where.number} {_lead(rule)}-j {chain}" for rule in rules)
        return "\n".join([*lines, "COMMIT", ""])
    return _out_of_mangle(rules, draw)


def _out_of_mangle(rules: Sequence[NatRule], draw: Draw) -> str:
    """Prefix translation becomes a draw of table nat."""
    chain = _chain_name(rules[0])
    gone = sorted((rule for rule in rules), key=lambda rule: -(rule.where.number or 0))
    lines = ["*mangle", *(f"-D {rule.where.chain} {rule.where.number}" for rule in gone), "COMMIT"]
    lines += ["*nat", f":{chain} - [0:0]", *_draws(chain, rules[0], draw)]
    for rule in rules:
        sources = (
            [pair.source.network() for pair in rule.mapping.pairs if pair.source]
            if isinstance(rule.mapping, Netmap)
            else []
        )
        has_source = any(piece.startswith(("-s ", "! -s ")) for piece in rule.lead)
        for source in sources if not has_source else [None]:
            lines.append(f"-A POSTROUTING {f'-s {source} ' if source else ''}{_lead(rule)}-j {chain}")
    return "\n".join([*lines, "COMMIT", ""])


def _chain_name(rule: NatRule) -> str:
    return f"EXITS_{re.sub(r'[^A-Za-z0-9]', '_', rule.where.chain)[:14]}_{rule.where.number}"


def _lead(rule: NatRule) -> str:
    return f"{' '.join(rule.lead)} " if rule.lead else ""


def _draws(chain: str, rule: NatRule, draw: Draw) -> list[str]:
    """One rule for each exit: the first takes 1/n of the flows, the next 1/(n-1) of the rest."""
    exits = list(draw.exits)
    if len(exits) > MAX_LADDER:
        exits = [exits[number * len(exits) // MAX_LADDER] for number in range(MAX_LADDER)]
    protocol = next((f"{piece} " for piece in rule.lead if piece.startswith("-p ")), "")
    flags = "".join(
        f" --{'random-fully' if flag == 'fully-random' else flag}"
        for flag in sorted(draw.flags - {"persistent"})
    )
    made = []
    for at, (address, own_ports) in enumerate(exits):
        left = len(exits) - at
        chance = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
        ports = draw.ports or own_ports
        target = (
            f"[{address}]:{ports}" if ports and ":" in address else f"{address}:{ports}" if ports else address
        )
        made.append(f"-A {chain} {protocol if ports else ''}{chance}-j SNAT --to-source {target}{flags}")
    return made
