# SPDX-License-Identifier: Apache-2.0
"""How often the analysis cries wolf, and how seldom it sleeps: `python -m tools.calibrate`.

Simulates relays with independent exits (false alarms) and relays where a part of the peers is pinned (power),
judges them, and writes the tables of docs/calibration.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.analysis.report import FamilyReport
from detector.analysis.verdict import judge_family
from detector.base.verdicts import VERDICTS, Verdict
from tools.simulated_relays import MAPPINGS, Chooser, Traffic, partly, relay, skewed, traffic

SEED = 20260501
# REUSE-IgnoreStart
LICENCE = "<!-- SPDX-License-Identifier: Apache-2.0 -->"
# REUSE-IgnoreEnd
HARMLESS = frozenset({Verdict.UNLINKABLE, Verdict.UNKNOWN})
POOLS = (8, 60, 250)
POPULARITY: dict[str, Chooser] = {"even": skewed(0.0), "skewed": skewed(0.5), "very skewed": skewed(1.0)}
PINNED_SHARE = 0.1

MakeTraffic = Callable[[np.random.Generator, int], Traffic]


def _few(rng: np.random.Generator, peers: int) -> Traffic:
    return traffic(rng, peers, rng.integers(1, 7, peers))


def _usual(rng: np.random.Generator, peers: int) -> Traffic:
    return traffic(rng, peers, rng.geometric(1 / 24, peers), destinations=50, sessions=4)


def _bursts(rng: np.random.Generator, peers: int) -> Traffic:
    return traffic(rng, peers, rng.integers(10, 60, peers), destinations=200, sessions=2, one_site=0.9)


def _ports(rng: np.random.Generator, peers: int) -> Traffic:
    return traffic(rng, peers, 24, destinations=40, ports=12)


TRAFFIC: dict[str, MakeTraffic] = {
    "few flows": _few,
    "usual": _usual,
    "bursts to one site": _bursts,
    "reused ports": _ports,
}


@dataclass(frozen=True, slots=True)
class Alarms:
    """What was made of relays with independent exits.

    Attributes:
        name: the scenario.
        relays: how many were simulated.
        judged: peers judged on them.
        flagged: peers called anything worse than unlinkable.
        called: relays called worse than unlinkable or unknown.
        unlinkable: relays called unlinkable.
    """

    name: str
    relays: int
    judged: int
    flagged: int
    called: int
    unlinkable: int


@dataclass(frozen=True, slots=True)
class Power:
    """What was found of peers that are pinned: how many there were, and how many relays got which verdict."""

    name: str
    relays: int
    pinned: int
    found: int
    called: int


def scenarios() -> Iterator[tuple[str, int, Chooser, MakeTraffic]]:
    """Every kind of relay with independent exits: name, pool size, mapping, traffic."""
    for how, make in TRAFFIC.items():
        for popularity, chooser in POPULARITY.items():
            for pool_size in POOLS:
                yield f"{how}, {popularity}, {pool_size} exits", pool_size, chooser, make
        yield f"{how}, round robin, 60 exits", 60, MAPPINGS["numgen-inc"], make


def false_alarms(relays: int, peers: int, seed: int = SEED) -> list[Alarms]:
    """At least `relays` relays of `peers` peers with independent exits, spread over the scenarios."""
    kinds = list(scenarios())
    each = -(-relays // len(kinds))
    rng = np.random.default_rng(seed)
    found = []
    for name, pool_size, chooser, make in kinds:
        reports = [judge_family(relay(rng, chooser, pool_size, make(rng, peers))) for _ in range(each)]
        found.append(
            Alarms(
                name,
                each,
                sum(report.judged for report in reports),
                sum(map(_worse_peers, reports)),
                sum(report.verdict not in HARMLESS for report in reports),
                sum(report.verdict is Verdict.UNLINKABLE for report in reports),
            )
        )
    return found


def _worse_peers(report: FamilyReport) -> int:
    worse = VERDICTS.index(Verdict.SINGLE_EXIT)
    return 0 if report.columns is None else int(np.count_nonzero(report.columns.verdict < worse))


def power(relays: int, peers: int, seed: int = SEED) -> list[Power]:
    """Relays where a tenth of the peers is pinned and the rest independent, by pool size and votes."""
    rng = np.random.default_rng(seed)
    chooser = partly(PINNED_SHARE, MAPPINGS["jhash"])
    found = []
    for pool_size in (8, 16, 60, 250):
        for votes in (4, 6, 12, 24):
            reports = [
                judge_family(
                    relay(rng, chooser, pool_size, traffic(rng, peers, votes, destinations=10**9, sessions=2))
                )
                for _ in range(relays)
            ]
            found.append(
                Power(
                    f"{votes} votes a peer, {pool_size} exits",
                    relays,
                    relays * round(PINNED_SHARE * peers),
                    sum(_found(report, round(PINNED_SHARE * peers)) for report in reports),
                    sum(report.verdict is Verdict.PINNED for report in reports),
                )
            )
    return found


def _found(report: FamilyReport, pinned: int) -> int:
    code = VERDICTS.index(Verdict.PINNED)
    return 0 if report.columns is None else int(np.count_nonzero(report.columns.verdict[:pinned] == code))


def page(alarms: Sequence[Alarms], powers: Sequence[Power], peers: int) -> str:
    """The document, in Markdown."""
    relays, judged = sum(one.relays for one in alarms), sum(one.judged for one in alarms)
    flagged, called = sum(one.flagged for one in alarms), sum(one.called for one in alarms)
    lines = [
        LICENCE,
        "# Calibration",
        "",
        "Made by `python -m tools.calibrate`; do not edit. Formulas: docs/leak-modes.md §5.",
        "",
        "## False alarms",
        "",
        f"{relays:,} simulated relays of {peers:,} peers whose exits have nothing to do with the peer.",
        f"Of {judged:,} judged peers {flagged:,} ({flagged / max(judged, 1):.4%}) were called something",
        f"worse than `unlinkable`, of the relays {called:,} ({called / max(relays, 1):.2%}). The rest was",
        "called `unlinkable`, or `unknown` where the evidence could not have shown a leak.",
        "",
        "| traffic, popularity of exits, pool | relays | judged | flagged | called worse | unlinkable |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {one.name} | {one.relays} | {one.judged:,} | {one.flagged} | {one.called} | {one.unlinkable} |"
        for one in alarms
    ]
    lines += [
        "",
        "## Power",
        "",
        f"Relays of {peers:,} peers, {PINNED_SHARE:.0%} of them pinned by a function that no predictor",
        "knows, the rest independent. Found: called `pinned` one by one.",
        "",
        "| votes, pool | relays | pinned peers | found | share found | relays called `pinned` |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {one.name} | {one.relays:,} | {one.pinned:,} | {one.found:,} | {one.found / one.pinned:.1%} "
        f"| {one.called:,} |"
        for one in powers
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.calibrate", description=__doc__)
    parser.add_argument("--relays", type=int, default=1000, help="relays with independent exits")
    parser.add_argument("--peers", type=int, default=1000, help="peers of each relay")
    parser.add_argument("--output", type=Path, default=Path("docs/calibration.md"))
    given = parser.parse_args()
    alarms = false_alarms(given.relays, given.peers)
    powers = power(max(1, given.relays // 50), given.peers)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(page(alarms, powers, given.peers), encoding="utf-8")


if __name__ == "__main__":
    main()
