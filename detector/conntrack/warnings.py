# SPDX-License-Identifier: Apache-2.0
"""What a person has to know of a listing beside its verdict: what was left out, guessed, or does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from detector.analysis.observation import Observation
from detector.base.family import Family
from detector.conntrack.changes import Change
from detector.conntrack.reader import KEPT_NUMBERS
from detector.conntrack.reading import Found
from detector.conntrack.tally import Aside

ONLY_NETWORKS = (
    "The peers are networks, not single addresses, and several people may be behind one: they are counted "
    "and not judged, however many flows there are. Without --peers each tunnel address is judged by itself."
)
_NAMES = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing.

    Attributes:
        kind: a word for machines.
        text: a sentence or two for people; names no peer and no site.
    """

    kind: str
    text: str


def of_reading(found: Found) -> Iterator[Remark]:
    """What became of the lines."""
    lines = found.lines
    if lines.garbage:
        numbers = ", ".join(map(str, lines.garbage_numbers))
        more = ", ..." if lines.garbage > KEPT_NUMBERS else ""
        yield Remark(
            "garbage", f"{lines.garbage:,} of {lines.read:,} lines were not understood: line {numbers}{more}"
        )
    if lines.foreign:
        yield Remark("foreign", f"{lines.foreign:,} lines of other programs were passed over")
    if lines.losses:
        yield Remark(
            "events_lost",
            f"{lines.losses:,} warnings in it say that events were lost, nobody knows how many: a harmless "
            "verdict cannot be given; record with a larger --buffer-size",
        )
    for what in found.broken:
        yield Remark("broken", f"{what}: what comes before is judged")
    if found.by_ends:
        yield Remark("by_ends", "no line tells of a flow that begins, so each [DESTROY] stands for one flow")
    if found.newest_first:
        yield Remark("newest_first", "the lines are newest first, and were read in the order of time")
    if found.back or found.late:
        placed = (
            f"{found.late:,} flows could not be put in their places" if found.late else "it was put in order"
        )
        yield Remark("time_goes_back", f"time goes back {max(found.back, 1):,} times; {placed}")
    if lines.flows and not lines.translated:
        yield Remark("not_translated", "no flow was translated: was this recorded on the relay?")
    if found.interrupted:
        yield Remark("interrupted", "reading was ended; this is the report of what was read until then")


def of_counting(aside: Aside, translated: int, guessed: set[Family], given: bool) -> Iterator[Remark]:
    """What was left out of the counts."""
    if aside.strangers:
        yield Remark(
            "strangers",
            f"{aside.strangers:,} of {translated:,} translated flows belong to no peer of the file: is it of "
            "another day or relay? Make it anew with `wg show all allowed-ips`, or leave out --peers",
        )
    if aside.elsewhere:
        yield Remark(
            "elsewhere", f"{aside.elsewhere:,} of {translated:,} translated flows left by an exit of no pool"
        )
    if aside.inside:
        yield Remark(
            "inside",
            f"{aside.inside:,} of {translated:,} translated flows went into a private network, not to the "
            "internet; what they were translated to is no exit",
        )
    if aside.no_room:
        yield Remark("no_room", f"{aside.no_room:,} flows found the tables full and were not counted")
    if guessed and given:
        names = " and ".join(_NAMES[family] for family in sorted(guessed))
        yield Remark("guessed", f"what was given names no pool for {names}: guessed from the exits")


def of_change(change: Change, left_out: int) -> Remark:
    """Exits that were drawn anew."""
    return Remark(
        "drawn_anew",
        f"{change.moved:,} of {change.of:,} peers got another exit at one moment, as when rules are loaded "
        f"anew; {left_out:,} flows from before it are left out",
    )


def of_evidence(observations: Sequence[Observation], beyond: Collection[str]) -> Iterator[Remark]:
    """Predictors that hold though no rule that was given works so.

    Args:
        observations: what is judged.
        beyond: what the pools are called that the flows show and the rules do not have.
    """
    for observation in observations:
        for trials in observation.predictor_trials or ():
            if trials.rule in beyond and trials.flagged is not None:
                yield Remark(
                    "rules_do_not_fit",
                    f"{_NAMES[observation.family]} flows do not look like the rules that were given: "
                    f"{trials.hit:,} of {trials.tried:,} peers have the exit that {trials.predictor} names "
                    f"in {trials.rule}, and no rule does that. Are flows from before a change in it?",
                )
