# SPDX-License-Identifier: Apache-2.0
"""`exitprint audit [FILE]`: which source-NAT rules leak, why, and what to write instead."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import EXIT_FINDING, EXIT_USAGE, ExitprintError
from detector.base.family import Family
from detector.base.verdicts import Severity
from detector.nat.audit import Form, Judgement, audit
from detector.nat.files import read_rules_file
from detector.nat.model import RuleSet
from detector.nat.place import read_where_the_service_looks
from detector.nat.remedy_text import Remedy

EXIT_NOTHING = 4
"""No source-NAT rule is there, or none that translates anything: not a leak, and not clean."""


MAX_ALIKE = 6
"""Findings of one kind in one chain that are told one by one; more are told together."""

_SHOWN = 3
"""Rules of such a group whose text is shown."""

_STYLES = {
    Severity.CRITICAL: "bold red",
    Severity.WARNING: "yellow",
    Severity.OK: "green",
    Severity.UNKNOWN: "bold magenta",
}
_WORDS = {
    Severity.CRITICAL: "LEAKS",
    Severity.WARNING: "warning",
    Severity.OK: "ok",
    Severity.UNKNOWN: "not understood",
}
_RESULTS = {0: "clean", EXIT_FINDING: "leaks", EXIT_USAGE: "not understood", EXIT_NOTHING: "no source NAT"}


@click.command("audit")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--strict", is_flag=True, help="Call a rule a leak already when it is linkable on this relay alone."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The service's configuration: without FILE, look in the network namespace that it names.",
)
def audit_command(file: Path | None, as_json: bool, strict: bool, config: Path | None) -> None:
    """Say which source-NAT rules leak who the peer is, and what to write instead.

    FILE holds nftables text, nftables JSON, iptables-save, iptables -S, iptables -L -v -n or a wg-quick file;
    - is standard input. Without FILE, the rules that the service looks at: in the network namespace of
    --config, else in that of the service that runs here, else in this one; it says where.

    Exit status 0: clean. 1: leaks. 2: something could not be read or is not understood, so it may leak.
    4: nothing translates source addresses here, which proves nothing.
    """
    try:
        rules, where = _read(file, config)
    except ExitprintError as error:
        click.echo(f"exitprint audit: {error}", err=True)
        sys.exit(EXIT_USAGE)
    found = Findings(audit(rules), rules, where)
    if as_json:
        click.echo(to_json(found, strict))
    else:
        show(found, Console(highlight=False), strict)
    sys.exit(status_of(found.judged, strict))


def _read(file: Path | None, config: Path | None) -> tuple[RuleSet, str]:
    """The rules, and where they are from, for people."""
    if file is not None:
        return read_rules_file(file), "standard input" if str(file) == "-" else str(file)
    return read_where_the_service_looks(config)


@dataclass(frozen=True, slots=True)
class Findings:
    """What was judged, and of what."""

    judged: Sequence[Judgement]
    rules: RuleSet
    where: str


def status_of(judged: Sequence[Judgement], strict: bool = False) -> int:
    """0 clean, 1 leaks, 2 no leak is known, but not everything is understood, 4 nothing translates."""
    bad = {Severity.CRITICAL, Severity.WARNING} if strict else {Severity.CRITICAL}
    if any(one.severity in bad for one in judged):
        return EXIT_FINDING
    if any(one.severity is Severity.UNKNOWN for one in judged):
        return EXIT_USAGE
    return 0 if any(one.acts for one in judged) else EXIT_NOTHING


@dataclass(frozen=True, slots=True)
class _Group:
    """Findings that are told together: the first stands for all."""

    members: tuple[Judgement, ...]

    @property
    def first(self) -> Judgement:
        return self.members[0]

    @property
    def where(self) -> str:
        """The places, the last of many by its number alone."""
        if len(self.members) == 1:
            return self.first.where
        last = self.members[-1].where.rpartition(" ")[2]
        return f"{self.first.where} to {last}, {len(self.members):,} rules"


def grouped(judged: Iterable[Judgement]) -> list[_Group]:
    """The findings, where many of one kind in one chain have become one."""
    alike: dict[tuple[Any, ...], list[Judgement]] = {}
    for one in judged:
        alike.setdefault(_kind(one), []).append(one)
    made: list[_Group] = []
    for members in alike.values():
        if len(members) > MAX_ALIKE:
            made.append(_Group(tuple(members)))
        else:
            made += (_Group((one,)) for one in members)
    order = {id(one): at for at, one in enumerate(judged)}
    return sorted(made, key=lambda group: order[id(group.first)])


def _kind(one: Judgement) -> tuple[Any, ...]:
    chain = one.where.rpartition(" handle ")[0] or one.where.rpartition(" rule ")[0]
    remedy = id(one.remedy) if one.remedy is not None else 0
    return chain, one.form, one.severity, one.bits, one.exits, one.why, one.note, remedy


def to_json(found: Findings, strict: bool = False) -> str:
    """The judgements as one object, for machines: docs/audit.md says what each key means."""
    groups = grouped(found.judged)
    rules = [_as_json(group) for group in groups]
    seen: dict[int, str] = {}
    for group, rule in zip(groups, rules, strict=True):
        remedy = group.first.remedy
        if remedy is not None and id(remedy) in seen:
            rule["remedy"], rule["remedy_at"] = None, seen[id(remedy)]
        elif remedy is not None:
            seen[id(remedy)] = group.first.where
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "result": _RESULTS[status_of(found.judged, strict)],
            "source": found.where,
            "families": sorted(_translated(found)),
            "rules": rules,
        },
        ensure_ascii=True,
    )


def _as_json(group: _Group) -> dict[str, Any]:
    one = group.first
    made = {**asdict(one), "leaks": one.leaks, "count": len(group.members)}
    made["text"] = _shortened(one.text, 4000)
    if len(group.members) > 1:
        made["last"] = group.members[-1].where
    return made


def _translated(found: Findings) -> frozenset[Family]:
    return frozenset(family for rule in found.rules.rules for family in rule.families)


def show(found: Findings, console: Console, strict: bool = False) -> None:
    """Print the judgements for people."""
    judged = found.judged
    _line(console, Text(f"source NAT of {_plain(found.where)}", "dim"))
    if not judged:
        _line(console, Text("There is no source-NAT rule.", "bold yellow"))
        _line(console, Text(_NOTHING))
        return
    shown: set[int] = set()
    for group in grouped(judged):
        _show(group, console, shown)
    if status_of(judged, strict) == EXIT_NOTHING:
        _line(console, Text(f"No rule translates anything now. {_NOTHING}", "bold yellow"))
    lacking = [family.value for family in Family if family not in _translated(found)]
    if len(lacking) == 1 and any(one.acts for one in judged):
        name = {"ipv4": "IPv4", "ipv6": "IPv6"}[lacking[0]]
        _line(
            console,
            Text(f"No rule translates {name}: a global address of that family leaves as it is.", "dim"),
        )
    counts = {severity: sum(one.severity is severity for one in judged) for severity in Severity}
    told = ", ".join(f"{count:,} {_WORDS[severity]}" for severity, count in counts.items() if count)
    style = "bold red" if status_of(judged, strict) else "green"
    rules = "1 source-NAT rule" if len(judged) == 1 else f"{len(judged):,} source-NAT rules"
    _line(console, Text(f"{rules}: {told}.", style))


_NOTHING = (
    "That is not clean, and proves nothing: traffic that leaves untranslated shows its own address to every "
    "site, and rules in another network namespace, in eBPF or on the next box are not seen here."
)


def _show(group: _Group, console: Console, shown: set[int]) -> None:
    one = group.first
    style = _STYLES[one.severity]
    _line(console, Text.assemble((f"{_WORDS[one.severity]}  ", style), (_plain(group.where), "bold")))
    if one.comment:
        _paragraph(console, Text(f'"{_plain(one.comment)}"', "italic"))
    for member in group.members[:_SHOWN]:
        _paragraph(console, Text(_shortened(_plain(member.text)), "dim"))
    if len(group.members) > _SHOWN:
        _paragraph(console, Text(f"... and {len(group.members) - _SHOWN:,} more like these", "dim"))
    if one.severity is not Severity.UNKNOWN:
        _paragraph(console, Text(_summary(one), style))
    for text in (one.why, one.note):
        if text:
            _paragraph(console, Text(_plain(text)))
    if one.remedy is not None:
        _remedy(one.remedy, console, shown)
    console.print()


def _summary(one: Judgement) -> str:
    verdict = one.verdict + (f" by {one.predictor}" if one.predictor else "")
    bits = "" if one.bits is None else f", {one.bits:g} {'bit' if one.bits == 1 else 'bits'}"
    exits = "" if one.form is Form.NOTHING else f", {_exits(one.exits)}"
    return f"{verdict}: {one.reach}{bits}{exits}"


def _exits(count: int) -> str:
    if count == 0:
        return "the interface's own address"
    if count >= 1 << 32:
        return f"about 2^{count.bit_length() - 1} exits"
    return "1 exit" if count == 1 else f"{count:,} exits"


def _remedy(remedy: Remedy, console: Console, shown: set[int]) -> None:
    """A remedy, once; its text stands at the margin and is never wrapped, so that it can be copied."""
    if id(remedy) in shown:
        _paragraph(console, Text(f"its remedy is the one above, for {_places(remedy)}", "bold"))
        return
    shown.add(id(remedy))
    if len(remedy.replaces) > 1:
        _paragraph(console, Text(f"one remedy for {_places(remedy)}", "bold"))
    _paragraph(console, Text(remedy.how or "write instead, in the place of that rule:", "bold"))
    console.print(Text(_plain(remedy.text.rstrip(), keep="\n\t"), "cyan"), soft_wrap=True)
    _paragraph(console, Text(remedy.effect))
    for expression, effect in remedy.alternatives:
        _paragraph(console, Text.assemble(("or with ", "bold"), (expression, "cyan"), f": {effect}"))
    if remedy.iptables:
        _paragraph(console, Text("or in iptables alone, by `iptables-restore --noflush`:", "bold"))
        console.print(Text(_plain(remedy.iptables.rstrip(), keep="\n\t"), "cyan"), soft_wrap=True)


def _places(remedy: Remedy) -> str:
    named = list(remedy.replaces)
    more = f" and {len(named) - 3:,} more" if len(named) > 3 else ""
    return ", ".join(_plain(one) for one in named[:3]) + more


def _line(console: Console, text: Text) -> None:
    """A line at the margin, wrapped on a terminal only."""
    console.print(text, soft_wrap=not console.is_terminal)


def _paragraph(console: Console, text: Text) -> None:
    """An indented paragraph, wrapped on a terminal only."""
    if not console.is_terminal:
        console.print(Text("    ") + text, soft_wrap=True)
        return
    for line in text.wrap(console, max(console.width - 4, 20)):
        console.print(Text("    ") + line, soft_wrap=True)


def _plain(text: str, keep: str = "\n") -> str:
    """A text whose control characters are written out: what a rule says never moves a terminal's cursor."""
    return "".join(
        char if char in keep or (char.isprintable() and char not in _BIDI) else f"\\x{ord(char):02x}"
        for char in text
    )


_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _shortened(text: str, most: int = 400) -> str:
    """A rule's text, its middle left out where a map makes it long."""
    return text if len(text) <= most else f"{text[: most - 60]} … {text[-50:]}"
