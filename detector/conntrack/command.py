# SPDX-License-Identifier: Apache-2.0
"""`exitprint analyze FILE...`: the verdict from what conntrack prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from detector.analysis.report import Report
from detector.analysis.verdict import COVERAGE_FLOOR, judge
from detector.base.answers import ReportAnswer
from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import parse_pool
from detector.config.file import parse_duration
from detector.conntrack import warnings
from detector.conntrack.changes import Change, drawn_anew_once
from detector.conntrack.peers import Peers, read_peers_file
from detector.conntrack.reader import Flows
from detector.conntrack.reading import STDIN, Found, read
from detector.conntrack.tally import Tally, Told
from detector.conntrack.unusable import RECORD
from detector.nat.files import read_rules_file
from detector.nat.model import Masquerade, RuleSet
from detector.terminal import show_report

_REREAD = 1 << 17
"""Flows that are kept, to be counted again if it turns out that exits were drawn anew."""
_NO_COVERAGE = 2.0  # a floor that no coverage reaches: events were lost, nobody knows how many


@click.command("analyze")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--rules", type=click.Path(path_type=Path), help="NAT rules: nft text or JSON, or iptables-save."
)
@click.option(
    "--peers",
    type=click.Path(path_type=Path),
    help="What `wg show all allowed-ips` or `wg show all dump` prints.",
)
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

    FILE is what `conntrack -E -e NEW -o timestamp` or `conntrack -L` printed, in any of their forms, with
    what syslog, journald or grep put before it; /proc/net/nf_conntrack; or what ulogd2 wrote. It may be
    packed (gzip, bzip2, xz, zstd). - is standard input; Ctrl-C ends it with the report. Several files are
    read as one, in the order of their times.

    A recording of events is better than a listing: only times tell sessions, and a listing is in no order,
    so which of several flows to one site (or from one source port) is the vote is left to chance, and a vote
    may have inherited the exit of a flow that began before it.

    Without --peers, each source address that was translated is a peer; with --rules or --pool only where
    the exit is in a pool (unless a rule masquerades). Give --peers where the relay translates for others too.
    Where --rules and --pool name no pool, exits that are neighbours are taken for one.

    Lines that are not understood are counted. What conntrack itself lost is not in FILE, but for the warnings
    that `conntrack -E` prints: keep them (2>&1), and they are taken into account.
    """
    rule_set = read_rules_file(rules) if rules else RuleSet()
    told = Told(rule_set, [parse_pool(text) for text in pools], frozenset())
    told.pools_only = _pools_only(rule_set, {pool.family for pool in told.pools})
    whose = read_peers_file(peers) if peers else Peers()
    judged = _Judged(files, whose, told, _gap(session_gap))
    for one in judged.warnings:
        click.echo(one.text, err=True)
    for rule in rule_set.not_understood:
        click.echo(f"a rule is not understood: {rule.where}: {rule.reason}", err=True)
    if as_json:
        click.echo(json.dumps(judged.report))
    else:
        show_report(cast(ReportAnswer, judged.report), judged.footing)


class _Judged:
    """The report on some files, and what there is to say beside it.

    Raises:
        UsageError: there was nothing to judge.
    """

    def __init__(self, files: Sequence[Path], peers: Peers, told: Told, gap: float) -> None:
        self._files, self._peers, self._told, self._gap = files, peers, told, gap
        self._found = Found()
        self._kept: list[Flows] | None = []
        tally = self._counted(self._found, None)
        _check(files, self._found)
        changes = self._changes(tally)
        left_out = 0
        if changes:
            whole = self._found.lines.translated
            tally = self._counted(Found(), max(change.time for change in changes))
            left_out = whole - tally.counted
        mapping = tally.mapping()
        lost = self._found.lines.losses > 0
        observations = tally.observations(mapping)
        report = judge(observations, _NO_COVERAGE if lost else COVERAGE_FLOOR)
        self.warnings = [
            *warnings.of_reading(self._found),
            *warnings.of_counting(tally.aside, self._found.lines.translated, tally.guessed,
                                  bool(told.rules.rules or told.pools)),
            *(warnings.of_change(change, left_out) for change in changes),
            *warnings.of_evidence(observations, tally.beyond),
        ]  # fmt: skip
        self.report = self._with_networks(report, tally) | self._about(tally)
        if lost:
            self.report["coverage"] = None

    @property
    def footing(self) -> list[str]:
        """What people read below the report."""
        lines = self._found.lines
        footing = [f"{lines.read:,} lines: {self._found.form}"]
        if lines.losses:
            footing.append("events were lost, nobody knows how many")
        return footing

    def _counted(self, found: Found, since: float | None) -> Tally:
        """A tally of the flows, from a moment on if one is given."""
        tally = Tally(self._peers, self._told, self._gap)
        flows = iter(self._kept) if since is not None and self._kept is not None else self._read(found)
        total = 0
        for some in flows:
            if since is None and self._kept is not None:
                total += len(some)
                self._kept = [*self._kept, some] if total <= _REREAD else None
            tally.add(some if since is None else some.take(~(some.time < since)))
        return tally

    def _read(self, found: Found) -> Iterator[Flows]:
        with _progress(self._files) as told:
            yield from read(self._files, found, told)

    def _changes(self, tally: Tally) -> list[Change]:
        """Moments at which the exits of a family were drawn anew, where the flows can be read again."""
        votes = tally.votes()
        if votes is None or (self._kept is None and STDIN in self._files):
            return []
        found = (drawn_anew_once(votes.take(votes.four == four)) for four in (True, False))
        return [change for change in found if change is not None]

    def _with_networks(self, report: Report, tally: Tally) -> dict[str, Any]:
        """The report, with the reason where the only peers with flows are networks, which are not judged."""
        told: dict[str, Any] = report.as_dict()
        families: dict[str, dict[str, Any]] = told["families"]
        for name, family in families.items():
            if family["verdict"] == "unknown" and tally.only_networks(Family(name)):
                if told["why"] == family["why"]:
                    told["why"] = warnings.ONLY_NETWORKS
                family["why"] = warnings.ONLY_NETWORKS
        return told

    def _about(self, tally: Tally) -> dict[str, Any]:
        """What the report says of the listing."""
        lines, aside = self._found.lines, tally.aside
        return {
            "listing": {
                "form": self._found.form,
                "lines": lines.read,
                "flows": lines.flows,
                "translated": lines.translated,
                "with_time": lines.timed,
                "other_events": lines.other_events + lines.updates,
                "garbage": lines.garbage,
                "garbage_lines": lines.garbage_numbers,
                "events_lost": lines.losses > 0,
                "strangers": aside.strangers,
                "inside": aside.inside,
                "pools_guessed": bool(tally.guessed),
                "families_guessed": sorted(tally.guessed),
                "warnings": [{"kind": one.kind, "text": one.text} for one in self.warnings],
            },
            "rules_not_understood": len(self._told.rules.not_understood),
        }


def _gap(text: str) -> float:
    try:
        seconds = float(text) if text.replace(".", "", 1).isdecimal() else parse_duration(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"--session-gap {text!r} is no duration", "write 600, 600s or 10m")
    return seconds


def _pools_only(rules: RuleSet, pooled: set[Family]) -> frozenset[Family]:
    """Families in which only an exit of a pool is a peer's: there are pools, and no rule masquerades."""
    anywhere = {
        family for rule in rules.rules if isinstance(rule.mapping, Masquerade) for family in rule.families
    }
    return frozenset(pooled - anywhere)


class _Lines(ProgressColumn):
    """Lines so far: of a pipe nobody knows how many there will be."""

    def render(self, task: Any) -> str:
        """The text."""
        return f"{task.fields['lines']:,} lines"


@contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Any]:
    """A bar on a terminal; something to tell bytes and lines to."""
    console = Console(stderr=True)
    total = _size(files)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn()) if total else (_Lines(),)
    progress = Progress(
        TextColumn("reading"), *columns, console=console, transient=True, disable=not console.is_terminal
    )
    with progress:
        task = progress.add_task("", total=total, lines=0)
        yield lambda size, lines: progress.update(task, advance=size, lines=lines)


def _size(files: Sequence[Path]) -> int | None:
    """Bytes to read, where that is known."""
    if not all(path.is_file() for path in files):
        return None
    return sum(path.stat().st_size for path in files)


def _check(files: Sequence[Path], found: Found) -> None:
    """Raise UsageError where there was nothing to judge."""
    lines = found.lines
    if lines.flows:
        return
    name = ", ".join("standard input" if path == STDIN else str(path) for path in files)
    if lines.updates:
        raise UsageError(f"{name} tells of no new flow, only of flows that change", RECORD)
    raise UsageError(f"{name} holds no line of conntrack ({lines.read:,} lines were looked at)", RECORD)
