# SPDX-License-Identifier: Apache-2.0
"""How often the analysis cries wolf, how seldom it sleeps, how long it takes: `python -m tools.calibrate`.

Judges relays of `tools.realistic_relays`, whose truth is known, at several looks of a day, and writes the
tables of docs/calibration.md. The same seed gives the same page.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.analysis.report import FamilyReport
from detector.analysis.verdict import judge_family
from detector.base.verdicts import LEAKS, VERDICTS, Verdict
from detector.predictors.fit import Fitter
from tools.realistic_relays import (
    BRIEF,
    EVERYBODYS,
    INDEPENDENT,
    Exits,
    by,
    counted,
    day,
    independent,
    part,
    peer,
    persistent,
    session,
)
from tools.realistic_relays import LEAKS as LEAKING

SEED = 20260501
SIZES = (8, 59)
POPULATIONS: Mapping[str, Mapping[str, float]] = {
    "web": {},
    "light": {"median": 6.0, "most": 200},
    "lookups": {"dns": 0.55, "one_address": 0.25},
}
HOURS = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 18.0, 24.0)  # when a relay is looked at


@dataclass(frozen=True, slots=True)
class Row:
    """What was made of relays of one kind.

    Attributes:
        name: the kind.
        relays: how many.
        called: how many were called a leak at the end of the day.
        ever: at any look.
        verdicts: how many got which at the end.
        peers, named: judged peers, and those called a leak by themselves.
    """

    name: str
    relays: int
    called: int
    ever: int
    verdicts: Mapping[Verdict, int]
    peers: int
    named: int


def looked_at(
    rng: np.random.Generator, exits: Exits, peers: int, size: int, hours: Iterable[float], **given: float
) -> dict[float, FamilyReport]:
    """One relay, judged at these hours of its day."""
    of, chosen = day(rng, exits, peers, size, **given)
    fitter = Fitter()
    found = {}
    for hour in hours:
        so_far = of.traffic.times < hour * 3600
        found[hour] = judge_family(counted(rng, of.where(so_far), chosen[so_far], size, fitter))
    return found


def row(name: str, reports: Sequence[dict[float, FamilyReport]]) -> Row:
    """The sums of some relays."""
    last = [one[max(one)] for one in reports]
    ends = [one.verdict for one in last]
    return Row(
        name,
        len(reports),
        sum(one in LEAKS for one in ends),
        sum(any(report.verdict in LEAKS for report in one.values()) for one in reports),
        {verdict: ends.count(verdict) for verdict in VERDICTS if verdict in ends},
        sum(one.judged for one in last),
        sum(_named(one) for one in last),
    )


def _named(report: FamilyReport) -> int:
    if report.columns is None:
        return 0
    return int(np.count_nonzero(report.columns.verdict < len(LEAKS)))


def innocent(kinds: Mapping[str, Exits], relays: int, hours: Sequence[float], seed: int) -> list[Row]:
    """Relays that leak nothing, spread over sizes, numbers of peers and populations."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, exits in kinds.items():
        reports = []
        for number in range(relays):
            size, peers = SIZES[number % 2], (50, 200)[number // 2 % 2]
            given = list(POPULATIONS.values())[number % len(POPULATIONS)]
            reports.append(looked_at(rng, exits, peers, size, hours, **given))
        rows.append(row(name, reports))
    return rows


@dataclass(frozen=True, slots=True)
class Power:
    """Leaks of one kind: how many there were, how many were found, and how many peers of them by name."""

    name: str
    relays: int
    found: int
    leaking: int
    named: int
    innocents_named: int


def power(relays: int, seed: int) -> list[Power]:
    """Relays of 200 peers that leak, after a day."""
    rng = np.random.default_rng(seed)
    found = []
    for name, (exits, wanted) in LEAKING.items():
        for size in SIZES:
            reports = [looked_at(rng, exits, 200, size, (24.0,))[24.0] for _ in range(relays)]
            hits = sum(one.verdict in wanted for one in reports)
            found.append(Power(f"{name}, {size} exits", relays, hits, 0, 0, 0))
    return found


def by_name(relays: int, peers: int, seed: int) -> list[Power]:
    """A tenth of the peers pinned: how many of them are named."""
    rng = np.random.default_rng(seed)
    found = []
    for size in (8, 16, 59):
        for people, given in POPULATIONS.items():
            leaking = round(0.1 * peers)
            named = wrongly = hits = 0
            for _ in range(relays):
                report = looked_at(rng, part(0.1, by(peer)), peers, size, (24.0,), **given)[24.0]
                hits += report.verdict is Verdict.PINNED
                if report.columns is not None:
                    worse = report.columns.verdict < len(LEAKS)
                    named += int(np.count_nonzero(worse[:leaking]))
                    wrongly += int(np.count_nonzero(worse[leaking:]))
            found.append(Power(f"{people}, {size} exits", relays, hits, relays * leaking, named, wrongly))
    return found


@dataclass(frozen=True, slots=True)
class Time:
    """Minutes until a verdict, over some relays: the median, the slowest, how many never did; and flows."""

    name: str
    relays: int
    median: float
    slowest: float
    never: int
    leaks: int
    flows: float


def times(relays: int, seed: int) -> list[Time]:
    """Fifty quiet peers on 59 exits, looked at again and again from the start on."""
    rng = np.random.default_rng(seed)
    minutes = (2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120, 240, 480)
    quiet = {"span": 4 * 3600.0, "median": 60.0, "most": 300, "phones": 0.0}
    found = []
    for name, exits, wanted in (
        ("predictable: the kernel's hash", persistent, Verdict.PREDICTABLE),
        ("unlinkable: a draw for each flow", independent, Verdict.UNLINKABLE),
        ("session_sticky: a draw for each session", by(session), Verdict.SESSION_STICKY),
        ("pinned: a secret", by(peer), Verdict.PINNED),
    ):
        firsts, flows, leaks = [], [], 0
        for _ in range(relays):
            reports = looked_at(rng, exits, 50, 59, [one / 60 for one in minutes], **quiet)
            said = {hour: report.verdict for hour, report in reports.items()}
            first = next((hour for hour, verdict in said.items() if verdict is wanted), None)
            firsts.append(np.inf if first is None else 60 * first)
            flows += [] if first is None else [reports[first].flows]
            leaks += wanted not in LEAKS and any(verdict in LEAKS for verdict in said.values())
        known = [one for one in firsts if np.isfinite(one)]
        found.append(
            Time(
                name,
                relays,
                float(np.median(known)) if known else np.inf,
                max(known, default=np.inf),
                len(firsts) - len(known),
                leaks,
                float(np.median(flows)) if flows else np.inf,
            )
        )
    return found


def page(
    fair: Sequence[Row], shared: Sequence[Row], brief: Sequence[Row], found: Sequence[Power],
    named: Sequence[Power], waits: Sequence[Time],
) -> str:  # fmt: skip
    """The document, in Markdown."""
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "# Calibration",
        "",
        "Made by `make calibrate`; do not edit. Relays of `tools/realistic_relays.py`: heavy tails,",
        "favourite sites, one address with a third of the flows, one resolver, BitTorrent, phones;",
        "8 or 59 exits, 50 or 200 peers.",
        f"Each is judged {len(HOURS)} times in its day. Formulas: docs/leak-modes.md §5.",
        "",
    ]
    for title, rows in (
        ("Exits that have nothing to do with anything", fair),
        ("Exits that follow clock, site or page, for everybody alike", shared),
        ("Exits that are kept for a short time, or for a session", brief),
    ):
        lines += _alarms(title, rows)
    lines += [
        "## Leaks that are found",
        "",
        "After a day, 200 peers.",
        "",
        "| what leaks | relays | called what they are |",
        "| --- | ---: | ---: |",
        *(f"| {one.name} | {one.relays} | {one.found} |" for one in found),
        "",
        "## A tenth of the peers is pinned: who is named",
        "",
        "| traffic, exits | relays | called `pinned` | pinned peers | named | others named |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {one.name} | {one.relays} | {one.found} | {one.leaking:,} | {one.named / one.leaking:.1%} "
            f"| {one.innocents_named} |"
            for one in named
        ),
        "",
        "## Time to the verdict",
        "",
        "50 quiet peers, 59 exits, from the start on. A leak that is none counts at any look.",
        "",
        "| verdict and truth | relays | median | flows then | slowest | not in 8 hours | a leak on the way |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {one.name} | {one.relays} | {one.median:.0f} min | {one.flows:.0f} "
            f"| {one.slowest:.0f} min | {one.never} | {one.leaks} |"
            for one in waits
        ),
    ]
    return "\n".join(lines) + "\n"


def _alarms(title: str, rows: Sequence[Row]) -> list[str]:
    relays, called = sum(one.relays for one in rows), sum(one.called for one in rows)
    ever, peers = sum(one.ever for one in rows), sum(one.peers for one in rows)
    named = sum(one.named for one in rows)
    return [
        f"## {title}",
        "",
        f"{relays:,} relays: {called} ({called / max(relays, 1):.2%}) called a leak at the end of the day,",
        f"{ever} ({ever / max(relays, 1):.2%}) at some look; of {peers:,} judged peers {named} were named.",
        "",
        "| what the exit follows | relays | a leak at the end | at some look | said at the end |",
        "| --- | ---: | ---: | ---: | --- |",
        *(
            f"| {one.name} | {one.relays} | {one.called} | {one.ever} | "
            + ", ".join(f"{verdict.value} {count}" for verdict, count in one.verdicts.items())
            + " |"
            for one in rows
        ),
        "",
    ]


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.calibrate", description=__doc__)
    parser.add_argument("--relays", type=int, default=12, help="relays of each kind that leaks nothing")
    parser.add_argument("--output", type=Path, default=Path("docs/calibration.md"))
    given = parser.parse_args()
    some = max(1, given.relays // 4)
    text = page(
        innocent(INDEPENDENT, 6 * given.relays, HOURS, SEED),
        innocent(EVERYBODYS, given.relays, HOURS, SEED + 1),
        innocent(BRIEF, given.relays, HOURS, SEED + 2),
        power(some, SEED + 3),
        by_name(max(1, some // 3), 1000, SEED + 4),
        times(some, SEED + 5),
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
