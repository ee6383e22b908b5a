# SPDX-License-Identifier: Apache-2.0
"""`exitprint audit [FILE]`: which source-NAT rules leak, why, and what to write instead."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import EXIT_FINDING, EXIT_USAGE, ExitprintError
from detector.nat.audit import Judgement, Severity, audit
from detector.nat.files import read_rules_file
from detector.nat.live import read_live
from detector.nat.remedy import Remedy

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


@click.command("audit")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--strict", is_flag=True, help="Call a rule a leak already when it is linkable on this relay alone."
)
def audit_command(file: Path | None, as_json: bool, strict: bool) -> None:
    """Say which source-NAT rules leak who the peer is, and what to write instead.

    FILE holds nftables text, nftables JSON or iptables-save; - is standard input. Without FILE, the
    rules that this host has now. Exit status 0: clean, 1: leaks, 2: something could not be read.
    """
    try:
        judged = audit(read_live() if file is None else read_rules_file(file))
    except ExitprintError as error:
        click.echo(f"exitprint audit: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if as_json:
        click.echo(to_json(judged, strict))
    else:
        show(judged, Console(highlight=False), strict)
    sys.exit(status_of(judged, strict))


def status_of(judged: Sequence[Judgement], strict: bool = False) -> int:
    """0 clean, 1 leaks, 2 no leak is known, but not everything is understood."""
    bad = {Severity.CRITICAL, Severity.WARNING} if strict else {Severity.CRITICAL}
    if any(one.severity in bad for one in judged):
        return EXIT_FINDING
    return EXIT_USAGE if any(one.severity is Severity.UNKNOWN for one in judged) else 0


def to_json(judged: Sequence[Judgement], strict: bool = False) -> str:
    """The judgements as one object."""
    result = {0: "clean", EXIT_FINDING: "leaks", EXIT_USAGE: "not understood"}[status_of(judged, strict)]
    rules = [{**asdict(one), "leaks": one.leaks} for one in judged]
    return json.dumps(
        {"schema_version": SCHEMA_VERSION, "result": result, "rules": rules}, ensure_ascii=False
    )


def show(judged: Sequence[Judgement], console: Console, strict: bool = False) -> None:
    """Print the judgements for people."""
    for one in judged:
        _show_rule(one, console)
    counts = {severity: sum(one.severity is severity for one in judged) for severity in Severity}
    if not judged:
        console.print("There is no source-NAT rule.")
        return
    told = ", ".join(f"{count} {_WORDS[severity]}" for severity, count in counts.items() if count)
    style = "bold red" if status_of(judged, strict) else "green"
    rules = "1 source-NAT rule" if len(judged) == 1 else f"{len(judged)} source-NAT rules"
    console.print(Text(f"{rules}: {told}.", style))


def _show_rule(one: Judgement, console: Console) -> None:
    style = _STYLES[one.severity]
    console.print(Text.assemble((f"{_WORDS[one.severity]}  ", style), (one.where, "bold")))
    _paragraph(console, Text(_shortened(one.text), "dim"))
    if one.severity is not Severity.UNKNOWN:
        _paragraph(console, Text(_summary(one), style))
    _paragraph(console, Text(one.why))
    if one.remedy is not None:
        _show_remedy(one.remedy, console)
    console.print()


def _summary(one: Judgement) -> str:
    verdict = one.verdict + (f" by {one.predictor}" if one.predictor else "")
    bits = "" if one.bits is None else f", {one.bits:g} bits"
    return f"{verdict}: {one.reach}{bits}, {_exits(one.exits)}"


def _exits(count: int) -> str:
    if count == 0:
        return "the interface's own address"
    if count >= 1 << 32:
        return f"about 2^{count.bit_length() - 1} exits"
    return "1 exit" if count == 1 else f"{count:,} exits"


def _show_remedy(remedy: Remedy, console: Console) -> None:
    """The remedy's text stands at the margin and is never wrapped, so that it can be copied."""
    _paragraph(console, Text("write instead, in the place of that rule:", "bold"))
    console.print(Text(remedy.text.rstrip(), "cyan"), soft_wrap=True)
    _paragraph(console, Text(remedy.effect))
    for expression, effect in remedy.alternatives:
        _paragraph(console, Text.assemble(("or with ", "bold"), (expression, "cyan"), f": {effect}"))


def _paragraph(console: Console, text: Text) -> None:
    """An indented paragraph, wrapped on a terminal only."""
    if not console.is_terminal:
        console.print(Text("    ") + text, soft_wrap=True)
        return
    for line in text.wrap(console, max(console.width - 4, 20)):
        console.print(Text("    ") + line, soft_wrap=True)


def _shortened(text: str, most: int = 400) -> str:
    """A rule's text, its middle left out where a map makes it long."""
    return text if len(text) <= most else f"{text[: most - 60]} … {text[-50:]}"
