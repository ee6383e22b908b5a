# SPDX-License-Identifier: Apache-2.0
"""From an observation to a verdict (docs/leak-modes.md §4 and §5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from detector.analysis.columns import Columns
from detector.analysis.consistency import Contrast
from detector.analysis.evalues import log_threshold, pinned_evidence_at_most
from detector.analysis.evidence import LEAST_EFFECT, LOG_LEVEL, SIGMAS, Evidence, linked_peers, weigh
from detector.analysis.numerics import Floats
from detector.analysis.observation import Loss, Observation
from detector.analysis.report import FamilyReport, Report
from detector.analysis.reporting import report_of
from detector.analysis.sessions import follow_sessions
from detector.analysis.why import because
from detector.base.verdicts import LEAKS, VERDICTS, Reason, Verdict

COVERAGE_FLOOR = 0.95
LARGEST_MISSED = 0.25  # "unlinkable" needs evidence that would have shown a k of this
_POWER_SHARE = 0.1  # ... or that would have flagged the peers, if this share of them leaked
_MOST_PEERS = 0.75  # ... for this share of the peers
_FEWEST_PEERS = 5  # for "unlinkable", a word about the relay
_FLOWS_FOR_ONE_EXIT = 10


def judge(
    observations: Iterable[Observation], coverage_floor: float = COVERAGE_FLOOR, *, watching: bool = True
) -> Report:
    """The report on a relay from one observation for each family.

    A family that carried flows and could not be judged outweighs a harmless verdict on the other one:
    unknown is never safe. A family that carried nothing does not count. While the relay is not watched, what
    was counted before says nothing of now.
    """
    observed = list(observations)
    families = {one.family: judge_family(one, coverage_floor, watching=watching) for one in observed}
    worst = min(families.values(), key=_rank, default=None)
    if worst is None:
        return Report(Verdict.UNKNOWN, None, 1.0, {}, "Nothing was observed.")
    coverage = _coverage([one.loss for one in observed])
    return Report(worst.verdict, worst.predictor, coverage, families, worst.why)


def judge_family(
    observation: Observation, coverage_floor: float = COVERAGE_FLOOR, *, watching: bool = True
) -> FamilyReport:
    """The report on one family. Linear in the pairs; a pair may appear once only.

    Args:
        observation: the counts of one window.
        coverage_floor: below this share of flows counted, the verdict is `unknown`.
        watching: whether flows are being counted; else the verdict is `unknown`.
    """
    evidence = weigh(observation)
    found = _findings(observation, evidence)
    coverage = _coverage([observation.loss])
    reasons: tuple[Reason, ...] = ()
    suspected: tuple[Verdict, ...] = ()
    if not watching:
        found, suspected, reasons = (), found, (Reason.NOT_WATCHED,)
    elif coverage < coverage_floor:
        found, suspected, reasons = (), found, (Reason.COVERAGE,)
    elif not found:
        reasons = _missing(evidence)
        found = () if reasons else (Verdict.UNLINKABLE,)
    report = report_of(observation, evidence, found or (Verdict.UNKNOWN,), coverage)
    report = replace(report, suspected=suspected, reasons=reasons)
    return replace(report, why=because(report))


def _rank(report: FamilyReport) -> tuple[bool, float]:
    """Sorts families, the one that decides first."""
    order = float(VERDICTS.index(report.verdict))
    if report.verdict is Verdict.UNKNOWN:
        order = len(LEAKS) - 0.5
    return not report.in_use, order


def _coverage(losses: list[Loss]) -> float:
    """Share of the flows that was counted; 1.0 where there were none."""
    seen = sum(loss.seen for loss in losses)
    total = seen + sum(loss.lost + loss.unattributed for loss in losses)
    return seen / total if total else 1.0


def _findings(observation: Observation, evidence: Evidence) -> tuple[Verdict, ...]:
    """All that hold, worst first; `unlinkable` and `unknown` are for the caller to tell."""
    columns = evidence.columns
    if columns.exits_used == 1:
        return (Verdict.SINGLE_EXIT,) if _one_exit_for_all(columns) else ()
    found = set()
    if any(one.holds(LOG_LEVEL) for one in evidence.explanations):
        found.add(Verdict.PREDICTABLE)
    if evidence.alone.log_p <= LOG_LEVEL or (observation.exclusive_map and evidence.alone.count):
        found.add(Verdict.EXCLUSIVE)
    found |= _sticky(evidence)
    return tuple(verdict for verdict in VERDICTS if verdict in found)


def _one_exit_for_all(columns: Columns) -> bool:
    """Whether one exit in use means one exit for everybody, and not few peers that met by chance."""
    present = int(np.count_nonzero(columns.peer_flows))
    if not present or columns.peer_flows.sum() < _FLOWS_FOR_ONE_EXIT:
        return False
    if columns.pool_size <= 1:
        return present > 1 or sum(columns.pool_sizes) == 1
    return (present - 1) * math.log(columns.pool_size) >= -LOG_LEVEL


def _sticky(evidence: Evidence) -> set[Verdict]:
    """Which of pinned, session_sticky and destination_linked hold."""
    found = set()
    keeps = bool(evidence.pinned.any()) or _relay_keeps(evidence)
    if keeps:
        redrawn = evidence.sessions.contradict(evidence.any.kappa or 0.0, LOG_LEVEL)
        found.add(Verdict.SESSION_STICKY if redrawn else Verdict.PINNED)
        if not redrawn and _some_redrawn(evidence):
            found.add(Verdict.SESSION_STICKY)
    if evidence.linked_holds:
        within = follow_sessions(evidence.columns, evidence.population, linked_peers(evidence))
        found.add(Verdict.SESSION_STICKY if within else Verdict.DESTINATION_LINKED)
    return found


def _relay_keeps(evidence: Evidence) -> bool:
    """Whether the peers together agree with themselves more than chance has it, though none stands out."""
    return evidence.any.log_p <= LOG_LEVEL and (evidence.any.kappa or 0.0) >= LEAST_EFFECT


def _some_redrawn(evidence: Evidence) -> bool:
    """Whether, beside peers that keep their exit, a part gets a new one with each session."""
    moved = evidence.sessions.moved
    enough = np.count_nonzero(moved) >= max(3, evidence.sessions.asked / 10)
    return bool(enough) and follow_sessions(evidence.columns, evidence.population, moved)


def _missing(evidence: Evidence) -> tuple[Reason, ...]:
    """What is missing for `unlinkable`: each contrast that matters must have been able to show a leak."""
    columns = evidence.columns
    if not columns.occupants.any():
        return (Reason.NO_FLOWS,)
    if not columns.judged.any():
        return (Reason.TOO_FEW_VOTES,)
    if columns.exits_used == 1:
        return (Reason.ONE_EXIT_UNSETTLED,)
    reasons = []
    judged = int(np.count_nonzero(columns.judged))
    possible = pinned_evidence_at_most(columns, evidence.population)[columns.judged]
    if not _able(evidence.any, possible, judged):
        reasons.append(Reason.TOO_FEW_PEERS)
    if _leans(evidence.any) or _leans(evidence.same_destination):
        reasons.append(Reason.DOUBTFUL)
    repeats = evidence.log_repeats_possible[evidence.repeats >= 0]
    if not _able(evidence.same_destination, repeats, repeats.size):
        reasons.append(Reason.DESTINATIONS_NOT_REPEATED)
    return tuple(reasons)


def _able(contrast: Contrast, possible: Floats, among: int) -> bool:
    """Whether a leak would have been seen: by the relay's mean, or by flagging its peers one by one."""
    if among < _FEWEST_PEERS:
        return False
    if contrast.detectable(LOG_LEVEL) <= LARGEST_MISSED:
        return True
    return float(np.mean(possible >= log_threshold(among, _POWER_SHARE))) >= _MOST_PEERS


def _leans(contrast: Contrast) -> bool:
    """Whether there is more agreement than chance likely gives, though not enough to call it a leak."""
    return contrast.score > SIGMAS and (contrast.kappa or 0.0) >= LEAST_EFFECT
