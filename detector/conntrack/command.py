# SPDX-License-Identifier: Apache-2.0
"""`exitprint analyze FILE...`: the verdict from what conntrack prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from detector.analysis.verdict import judge
from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import parse_pool
from detector.config.file import parse_duration
from detector.conntrack.lines import KEPT_NUMBERS, Lines, Reader, blocks
from detector.conntrack.peers import Peers, read_peers_file
from detector.conntrack.tally import Tally
from detector.nat.files import read_rules_file
from detector.nat.mapping import Mapping, mapping_of
from detector.nat.model import Masquerade, RuleSet
from detector.terminal import show_report

_STDIN = Path("-")


@click.command("analyze")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--rules", type=click.Path(path_type=Path), help="NAT rules: nft text or JSON, or iptables-save."
)
@click.option("--peers", type=click.Path(path_type=Path), help="What `wg show all allowed-ips` prints.")
@click.option(
    "--pool", "pools", multiple=True, help="Exit pool (A, A-B or A/len); wins over --rules. Repeatable."
)
@click.option("--session-gap", default="10m", show_default=True, help="Pause that ends a peer's session.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def analyze(
    files: tuple[Path, ...],
    rules: Path | None,
    peers: Path | None,
    pools: tuple[str, ...],
    session_gap: str,
    as_json: bool,
) -> None:
    """Judge a relay from a listing of its flows; needs no root.

    FILE is what `conntrack -E -e NEW -o timestamp` or `conntrack -L` printed; - is standard input. Several
    files are read as one, in the order given.

    A recording of events is better than a listing: only times tell sessions, and a listing is in no order,
    so which of several flows to one site (or from one source port) is the vote is left to chance, and a vote
    may have inherited the exit of a flow that began before it.

    Without --peers, each source address that was translated is a peer; with --rules or --pool only where
    the exit is in a pool (unless a rule masquerades). Give --peers where the relay translates for others too.
    Without --rules and --pool, exits that are neighbours are taken for a pool.

    Lines that are not understood are counted. What conntrack itself lost is not in FILE: see the warnings
    that `conntrack -E` prints.
    """
    rule_set = read_rules_file(rules) if rules else RuleSet()
    mapping = mapping_of(rule_set, [parse_pool(text) for text in pools]) if rules or pools else None
    tally = Tally(
        read_peers_file(peers) if peers else Peers(),
        mapping,
        _gap(session_gap),
        pools_only=_pools_only(rule_set, mapping),
    )
    lines = _read(files, tally)
    _check(files, lines)
    _say(lines, rule_set)
    report = judge(tally.observations()).as_dict() | _about(lines, rule_set, guessed=mapping is None)
    if as_json:
        click.echo(json.dumps(report))
    else:
        show_report(report)


def _gap(text: str) -> float:
    try:
        seconds = float(text) if text.replace(".", "", 1).isdecimal() else parse_duration(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"--session-gap {text!r} is no duration", "write 600, 600s or 10m")
    return seconds


def _pools_only(rules: RuleSet, mapping: Mapping | None) -> frozenset[Family]:
    """Families in which only an exit of a pool is a peer's: there are pools, and no rule masquerades."""
    anywhere = {
        family for rule in rules.rules if isinstance(rule.mapping, Masquerade) for family in rule.families
    }
    pooled = {pool.family for pool in mapping.pools} if mapping else set()
    return frozenset(pooled - anywhere)


def _read(files: Sequence[Path], tally: Tally) -> Lines:
    reader = Reader()
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("", total=_size(files))
        for path in files:
            with _opened(path) as file:
                for block in blocks(file, lambda count: progress.advance(task, count)):
                    flows = reader.read(block)
                    if flows is not None:
                        tally.add(flows)
    return reader.lines


def _size(files: Sequence[Path]) -> int | None:
    """Bytes to read, where that is known."""
    if not all(path.is_file() for path in files):
        return None
    return sum(path.stat().st_size for path in files)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path == _STDIN:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "check the name and its rights"
        ) from error


def _check(files: Sequence[Path], lines: Lines) -> None:
    """Raise UsageError where there was nothing to judge."""
    if lines.flows:
        return
    name = ", ".join("standard input" if path == _STDIN else str(path) for path in files)
    if lines.other_events:
        raise UsageError(f"{name} tells of no new flow, only of flows that change or end", _HINT)
    raise UsageError(f"{name} holds no line of conntrack ({lines.read:,} lines were looked at)", _HINT)


_HINT = "record one with `conntrack -E -e NEW -o timestamp > FILE`"


def _say(lines: Lines, rules: RuleSet) -> None:
    """Tell on standard error what was left out."""
    if lines.garbage:
        numbers = ", ".join(map(str, lines.garbage_numbers))
        more = ", ..." if lines.garbage > KEPT_NUMBERS else ""
        click.echo(
            f"{lines.garbage:,} of {lines.read:,} lines were not understood: line {numbers}{more}", err=True
        )
    if lines.flows and not lines.translated:
        click.echo("no flow was translated: was this recorded on the relay?", err=True)
    for one in rules.not_understood:
        click.echo(f"a rule is not understood: {one.where}: {one.reason}", err=True)


def _about(lines: Lines, rules: RuleSet, *, guessed: bool) -> dict[str, Any]:
    """What the report says of the listing."""
    return {
        "listing": {
            "lines": lines.read,
            "flows": lines.flows,
            "translated": lines.translated,
            "with_time": lines.timed,
            "other_events": lines.other_events,
            "garbage": lines.garbage,
            "garbage_lines": lines.garbage_numbers,
            "pools_guessed": guessed,
        },
        "rules_not_understood": len(rules.not_understood),
    }
