# SPDX-License-Identifier: Apache-2.0
"""How well the rules name linkable relays, into docs/fleet-figures.md: `python -m tools.fleet_simulation`.

The many fleets are judged by the twin of the rules (`tools.linked_relays`); some of each kind are judged by
the rules themselves on a real Prometheus, and the two have to agree on every relay.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from detector.lab.monitoring import Monitoring, monitoring
from detector.lab.pages import served
from detector.lab.timescale import Target
from tools.linked_relays import LINKED, NOT, STUDY, UNTOLD, Fleet, Ints, fleet, told, truth

_PAGE = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
# How well linkable relays are named

Made by `python -m tools.fleet_simulation`. Pools are those of the study of May 2026 where nothing else is
said; a fixed relay follows a secret of its own, the others one that they share.

{table}
The fleets were judged by a twin of the rules in NumPy. The rules themselves, on a real Prometheus, judged
{judged:,} relays of {fleets} fleets of these kinds; {differ} of them differently.
"""
PAGE = Path(__file__).parents[1] / "docs" / "fleet-figures.md"
_RULED = "relay_family:exitprint_canary_linked:bool"
_ROUNDS = 3  # evaluations after which every rule has seen every relay
_BATCH = 1600  # relays that one Prometheus judges at once


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fleet.

    Attributes:
        name: how the table calls it.
        trials: fleets that the twin judges.
    """

    name: str
    relays: int
    canaries: int
    fixed: float
    trials: int
    pools: Sequence[int] = STUDY
    secrets: int = 1
    by_place: bool = False

    def make(self, rng: np.random.Generator) -> Fleet:
        """One of them."""
        return fleet(
            rng,
            self.relays,
            self.canaries,
            self.fixed,
            pools=self.pools,
            secrets=self.secrets,
            by_place=self.by_place,
        )


@dataclass(slots=True)
class Score:
    """What was said of relays, counted."""

    fleets: int = 0
    pages: int = 0
    said: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, true: Ints, said: Ints) -> None:
        """Count one fleet."""
        self.fleets += 1
        self.pages += bool((said == LINKED).any())
        for pair in zip(true.tolist(), said.tolist(), strict=True):
            self.said[pair] = self.said.get(pair, 0) + 1

    def share(self, true: int, said: int) -> float | None:
        """Of the relays that are `true`, how many were called `said`."""
        of = sum(count for (one, _), count in self.said.items() if one == true)
        return self.said.get((true, said), 0) / of if of else None


SMALL, SAME = (60, 91, 66), (64,)
KINDS = (
    *(
        Kind(f"500 relays, 8 canaries, {fixed:.0%} fixed", 500, 8, fixed, 100)
        for fixed in (0, 0.2, 0.54, 0.9)
    ),
    Kind("500 relays, 8 canaries, 97% fixed", 500, 8, 0.97, 100),
    Kind("500 relays, 8 canaries, 98% fixed", 500, 8, 0.98, 100),
    Kind("500 relays, 8 canaries, all fixed", 500, 8, 1.0, 10_000),
    Kind("500 relays, 8 canaries, 54% fixed, two secrets", 500, 8, 0.54, 100, secrets=2),
    Kind("500 relays, 8 canaries, 54% fixed, three secrets", 500, 8, 0.54, 100, secrets=3),
    Kind("500 relays, 8 canaries, 54% fixed, equal places in equal pools", 500, 8, 0.54, 100, by_place=True),
    Kind("500 relays, 8 canaries, 54% fixed, pools of 64", 500, 8, 0.54, 100, SAME),
    Kind("500 relays, 4 canaries, 54% fixed", 500, 4, 0.54, 100),
    Kind("500 relays, 2 canaries, 54% fixed", 500, 2, 0.54, 100),
    Kind("20 relays, 8 canaries, 80% fixed", 20, 8, 0.8, 1_000),
    Kind("20 relays, 8 canaries, all fixed", 20, 8, 1.0, 20_000),
    Kind("3 relays of 60, 91 and 66, 2 canaries, none fixed", 3, 2, 0.0, 1_000, SMALL),
    Kind("3 relays of 60, 91 and 66, 2 canaries, one fixed", 3, 2, 0.34, 1_000, SMALL),
    Kind("3 relays of 60, 91 and 66, 2 canaries, all fixed", 3, 2, 1.0, 50_000, SMALL),
    Kind("3 relays of 60, 91 and 66, 8 canaries, one fixed", 3, 8, 0.34, 1_000, SMALL),
)


def scored(kind: Kind, trials: int, seed: int) -> Score:
    """The twin's word on so many fleets of a kind."""
    rng, score = np.random.default_rng(seed), Score()
    for _ in range(trials):
        made = kind.make(rng)
        score.add(truth(made, by_place=kind.by_place), told(made))
    return score


def lines(fleets: Iterable[tuple[str, Fleet]], now: float) -> str:
    """A page of metrics with all relays of these fleets."""
    found = []
    for name, made in fleets:
        for relay, (size, places) in enumerate(zip(made.pools.tolist(), made.places.tolist(), strict=True)):
            of = f'fleet="{name}",relay="r{relay}"'
            found.append(f"exitprint_coverage_ratio{{{of}}} 1")
            found.append(f"exitprint_last_good_cycle_timestamp_seconds{{{of}}} {now:.0f}")
            for canary, place in enumerate(places):
                labels = f'{{{of},canary="c{canary}",family="ipv4"}}'
                found.append(f"exitprint_canary_position_low_ratio{labels} {place / size!r}")
                found.append(f"exitprint_canary_position_high_ratio{labels} {(place + 1) / size!r}")
                found.append(f"exitprint_canary_votes{labels} 6")
    return "\n".join(found) + "\n"


def ruled(fleets: Sequence[Fleet], interval: float = 1.0) -> list[Ints]:
    """The word of the rules themselves on each of these fleets, by a real Prometheus.

    Raises:
        HostError: Prometheus is not here or takes too long.
    """
    named = [(f"f{number}", made) for number, made in enumerate(fleets)]
    text = lines(named, time.time() + 600)
    with (
        served(lambda: text) as page,
        monitoring([Target(page.address, relay="")], 1.0, interval=f"{interval:g}s") as watch,
    ):
        for _ in range(_ROUNDS):
            _next_round(watch)
        known = watch.query(_RULED)
    words = _words(known)
    return [
        np.array([words.get((name, f"r{relay}"), UNTOLD) for relay in range(len(made.pools))])
        for name, made in named
    ]


def _next_round(watch: Monitoring) -> None:
    """Return when the rules were evaluated once more than now."""
    when = f"max(timestamp({_RULED}))"
    before = watch.query(when)
    watch.wait("a round of the rules", lambda: watch.query(when) != before, patience=180)


def _words(samples: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    return {(one["metric"]["fleet"], one["metric"]["relay"]): int(float(one["value"][1])) for one in samples}


def disagreements(kinds: Sequence[Kind], seed: int) -> tuple[int, int]:
    """How many relays the rules and their twin judge differently, of how many, with a fleet of each kind."""
    rng = np.random.default_rng(seed)
    fleets = [kind.make(rng) for kind in kinds]
    batches: list[list[Fleet]] = [[]]
    for one in fleets:
        if sum(len(other.pools) for other in batches[-1]) + len(one.pools) > _BATCH:
            batches.append([])
        batches[-1].append(one)
    said = [words for batch in batches for words in ruled(batch)]
    pairs = list(zip(map(told, fleets), said, strict=True))
    return sum(int((twin != rules).sum()) for twin, rules in pairs), sum(len(one.pools) for one in fleets)


def table(scores: Sequence[tuple[Kind, Score]]) -> str:
    """The figures."""
    head = (
        "| fleet | fleets | named of the linked | untold of the linked | named of the others "
        "| untold of the others | fleets with a page |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    return head + "".join(_row(kind, score) for kind, score in scores)


def _row(kind: Kind, score: Score) -> str:
    cells = [
        _percent(score.share(true, said))
        for true, said in ((1, LINKED), (1, UNTOLD), (NOT, LINKED), (NOT, UNTOLD))
    ]
    return f"| {kind.name} | {score.fleets:,} | {' | '.join(cells)} | {score.pages:,} |\n"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


@click.command()
@click.option("--scale", default=1.0, show_default=True, help="Of the number of fleets.")
@click.option("--seed", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Fleets of each kind on a real Prometheus.")
def main(scale: float, seed: int, rounds: int) -> None:
    """Measure, and write docs/fleet-figures.md."""
    scores = []
    for number, kind in enumerate(KINDS):
        score = scored(kind, max(round(kind.trials * scale), 1), seed * 1000 + number)
        scores.append((kind, score))
        click.echo(_row(kind, score).strip())
    differ = judged = 0
    for number in range(rounds):
        more = disagreements(KINDS, seed * 7919 + number)
        differ, judged = differ + more[0], judged + more[1]
        click.echo(f"on Prometheus: {differ} of {judged} relays judged differently")
    PAGE.write_text(
        _PAGE.format(table=table(scores), judged=judged, fleets=rounds * len(KINDS), differ=differ)
    )


if __name__ == "__main__":
    main()
