# SPDX-License-Identifier: Apache-2.0
"""From an observation to a verdict (docs/leak-modes.md §4 and §5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from detector.analysis.bounds import LARGEST_MISSED, Bounds, bounds_of
from detector.analysis.columns import Columns
from detector.analysis.consistency import Contrast
from detector.analysis.controls import LOG_NEEDED, Lasts, sign_evidence
from detector.analysis.evidence import LOG_LEVEL, SIGMAS, Evidence, linked_peers, weigh
from detector.analysis.exclusive import ANONYMITY_FLOOR
from detector.analysis.observation import Loss, Observation
from detector.analysis.report import FamilyReport, Report
from detector.analysis.reporting import report_of
from detector.analysis.sessions import follow_sessions
from detector.analysis.why import because, beside_it
from detector.base.flows import LAGS
from detector.base.verdicts import LEAKS, RANKED, VERDICTS, Reason, Verdict

COVERAGE_FLOOR = 0.95
SMALL_FAMILY_FLOWS, SMALL_FAMILY_PEERS = 0.01, 5  # below both, a family is named beside the verdict
_FEWEST_PEERS = 2
_FLOWS_FOR_ONE_EXIT = 10
_SHARED_TRIALS, _SHARED = 50, 0.97  # sandwiches, and share of them, in which everybody has the same exit
_LEANS = 0.05  # of k from which a lean that is no finding yet takes a harmless verdict away


def judge(
    observations: Iterable[Observation],
    coverage_floor: float = COVERAGE_FLOOR,
    *,
    watching: bool = True,
    anonymity_floor: int = ANONYMITY_FLOOR,
) -> Report:
    """The report on a relay from one observation for each family.

    A family that carried flows and could not be judged outweighs a harmless verdict on the other one:
    unknown is never safe. A family that carried nothing does not count, and one that carried next to nothing,
    for a handful of peers, is named beside the verdict unless it leaks. While the relay is not watched, what
    was counted before says nothing of now.
    """
    observed = list(observations)
    families = {
        one.family: judge_family(one, coverage_floor, watching=watching, anonymity_floor=anonymity_floor)
        for one in observed
    }
    flows = sum(one.flows for one in families.values())
    small = {family for family, one in families.items() if _is_small(one, flows)}
    worst = min(families.values(), key=lambda one: _rank(one, one.family in small), default=None)
    if worst is None:
        return Report(Verdict.UNKNOWN, None, 1.0, {}, "Nothing was observed.")
    coverage = _coverage([one.loss for one in observed])
    beside = [families[family] for family in families if family in small and family is not worst.family]
    why = " ".join([worst.why, *map(beside_it, beside)])
    return Report(worst.verdict, worst.predictor, coverage, families, why)


def _is_small(report: FamilyReport, flows: int) -> bool:
    return (
        report.in_use
        and report.flows < SMALL_FAMILY_FLOWS * flows
        and report.peers < SMALL_FAMILY_PEERS
        and report.verdict not in LEAKS
    )


def judge_family(
    observation: Observation,
    coverage_floor: float = COVERAGE_FLOOR,
    *,
    watching: bool = True,
    anonymity_floor: int = ANONYMITY_FLOOR,
) -> FamilyReport:
    """The report on one family. Linear in the pairs; a pair may appear once only.

    Loss can hide a leak and cannot make one: a leak that was shown stands whatever the coverage, a harmless
    verdict does not.

    Args:
        observation: the counts of one window.
        coverage_floor: below this share of flows counted, no harmless verdict is given.
        watching: whether flows are being counted; else the verdict is `unknown`.
        anonymity_floor: persons that are to share what one of them uses.
    """
    evidence = weigh(observation, anonymity_floor)
    found, open_ = _findings(evidence)
    coverage = _coverage([observation.loss])
    bounds = bounds_of(evidence)
    reasons: tuple[Reason, ...] = ()
    suspected: tuple[Verdict, ...] = ()
    doubts = _doubts(observation, evidence, coverage < coverage_floor)
    if not watching:
        found, suspected, reasons = (), found, (Reason.NOT_WATCHED,)
    elif _is_over(found, evidence):
        found, suspected, reasons = (), found, (Reason.SILENT_CHANGE,)
    elif not any(verdict in LEAKS for verdict in found):
        missing = () if found else _missing(evidence, bounds)
        reasons = (*doubts, *open_, *missing)
        if reasons:
            found, suspected = (), found
        found = found if found or reasons else (Verdict.UNLINKABLE,)
    report = report_of(observation, evidence, found or (Verdict.UNKNOWN,), coverage, bounds)
    report = replace(report, suspected=suspected, reasons=reasons)
    return replace(report, why=because(report))


def _rank(report: FamilyReport, small: bool) -> tuple[bool, bool, int]:
    """Sorts families, the one that decides first."""
    return not report.in_use, small, RANKED.index(report.verdict)


def _coverage(losses: list[Loss]) -> float:
    """Share of the flows that was counted; 1.0 where there were none."""
    seen = sum(loss.seen for loss in losses)
    total = seen + sum(loss.lost + loss.unattributed for loss in losses)
    return seen / total if total else 1.0


def _doubts(observation: Observation, evidence: Evidence, low: bool) -> tuple[Reason, ...]:
    """What takes a harmless verdict away, whatever the evidence."""
    flows = float(np.asarray(observation.flows).sum(dtype=np.float64))
    reasons = [Reason.COVERAGE] if low else []
    for counts, reason in (
        (observation.untracked, Reason.UNTRACKED),
        (observation.untranslated_private, Reason.UNTRANSLATED),
    ):
        left = 0.0 if counts is None else float(np.asarray(counts).sum(dtype=np.float64))
        if left > (1 - COVERAGE_FLOOR) * (flows + left):
            reasons.append(reason)
    if evidence.jump is not None:
        reasons.append(Reason.SILENT_CHANGE)
    return tuple(reasons)


def _is_over(found: tuple[Verdict, ...], evidence: Evidence) -> bool:
    """Whether what was found has ended without a word: the last panes show it no more."""
    ended = evidence.jump is not None and evidence.jump < 0
    return ended and bool(found) and found[0] in {Verdict.PINNED, Verdict.DESTINATION_LINKED}


def _findings(evidence: Evidence) -> tuple[tuple[Verdict, ...], tuple[Reason, ...]]:
    """All that hold, worst first, and why more cannot be told; `unlinkable` is for the caller to tell."""
    columns = evidence.columns
    found: set[Verdict] = set()
    if evidence.exclusive.peers:
        found.add(Verdict.EXCLUSIVE)
    if columns.exits_used == 1:
        if not found and _one_exit_for_all(columns):
            found.add(Verdict.SINGLE_EXIT)
        return tuple(verdict for verdict in VERDICTS if verdict in found), ()
    if any(one.holds(LOG_LEVEL) for one in evidence.explanations):
        found.add(Verdict.PREDICTABLE)
    sticky, open_ = _sticky(evidence)
    found |= sticky
    if not found and not open_ and _one_exit_at_a_time(evidence):
        found.add(Verdict.SINGLE_EXIT)
    return tuple(verdict for verdict in VERDICTS if verdict in found), open_


def _one_exit_for_all(columns: Columns) -> bool:
    """Whether one exit in use means one exit for everybody, and not few peers that met by chance."""
    present = int(np.count_nonzero(columns.peer_flows))
    if not present or columns.peer_flows.sum() < _FLOWS_FOR_ONE_EXIT:
        return False
    if columns.pool_size <= 1:
        return present > 1 or sum(columns.pool_sizes) == 1
    return (present - 1) * math.log(columns.pool_size) >= -LOG_LEVEL


def _one_exit_at_a_time(evidence: Evidence) -> bool:
    """Whether everybody has the exit that somebody else just had: one exit, now and then another one."""
    if evidence.controls.votes is None:
        return False
    tried, both, _, other = evidence.controls.votes.sum(axis=(1, 2, 3))
    persons = np.count_nonzero(evidence.controls.votes[0].sum(axis=(1, 2)))
    shared = float(both + other) >= _SHARED * float(tried)
    return bool(tried >= _SHARED_TRIALS and persons >= evidence.enough and shared)


def _sticky(evidence: Evidence) -> tuple[set[Verdict], tuple[Reason, ...]]:
    """Which of pinned, session_sticky and destination_linked hold; and whether it is too early to tell."""
    found: set[Verdict] = set()
    if evidence.controls.votes is None or (not evidence.has_panes and evidence.votes_last is Lasts.OPEN):
        return _sticky_without_controls(evidence), ()
    early = False
    if np.count_nonzero(evidence.pinned) >= evidence.enough or evidence.relay_keeps:
        found |= _lasting(evidence.votes_last, Verdict.PINNED)
        early |= evidence.votes_last is Lasts.OPEN
    elif evidence.units is not None:
        found.add(Verdict.PINNED)
    if evidence.linked_holds:
        found |= _lasting(evidence.returns_last, Verdict.DESTINATION_LINKED)
        early |= evidence.returns_last is Lasts.OPEN
    return found, (Reason.STICKY_SO_FAR,) if early else ()


def _lasting(lasts: Lasts, leak: Verdict) -> set[Verdict]:
    return {
        Lasts.LONG: {leak},
        Lasts.PARTLY: {leak, Verdict.SESSION_STICKY},
        Lasts.SHORT: {Verdict.SESSION_STICKY},
        Lasts.OPEN: set(),
    }[lasts]


def _sticky_without_controls(evidence: Evidence) -> set[Verdict]:
    """The same where nobody counts sandwiches: the first exits of sessions are all there is."""
    found = set()
    keeps = np.count_nonzero(evidence.pinned) >= evidence.enough or evidence.relay_keeps
    if keeps:
        redrawn = evidence.sessions.contradict(evidence.any.kappa or 0.0, LOG_LEVEL)
        found.add(Verdict.SESSION_STICKY if redrawn else Verdict.PINNED)
        if not redrawn and _some_redrawn(evidence):
            found.add(Verdict.SESSION_STICKY)
    elif evidence.units is not None:
        found.add(Verdict.PINNED)
    if evidence.linked_holds:
        within = follow_sessions(evidence.columns, evidence.population, linked_peers(evidence))
        found.add(Verdict.SESSION_STICKY if within else Verdict.DESTINATION_LINKED)
    return found


def _some_redrawn(evidence: Evidence) -> bool:
    """Whether, beside peers that keep their exit, a part gets a new one with each session."""
    moved = evidence.sessions.moved
    enough = np.count_nonzero(moved) >= max(3, evidence.sessions.asked / 10)
    return bool(enough) and follow_sessions(evidence.columns, evidence.population, moved)


def _missing(evidence: Evidence, bounds: Bounds) -> tuple[Reason, ...]:
    """What is missing for `unlinkable`: each contrast must have been able to show a small leak."""
    columns = evidence.columns
    if not columns.occupants.any():
        return (Reason.NO_FLOWS,)
    if not columns.judged.any():
        return (Reason.TOO_FEW_VOTES,)
    if columns.exits_used == 1:
        return (Reason.ONE_EXIT_UNSETTLED,)
    reasons = []
    judged = int(np.count_nonzero(columns.judged))
    if judged < _FEWEST_PEERS:
        reasons.append(Reason.TOO_FEW_PEERS)
    elif bounds.votes > LARGEST_MISSED:
        reasons.append(Reason.TOO_FEW_PEERS if judged < 5 else Reason.SMALL_SAMPLE)
    if _leans(evidence):
        reasons.append(Reason.DOUBTFUL)
    standing = np.count_nonzero(evidence.pinned | evidence.linked)
    if standing > LARGEST_MISSED * judged:
        reasons.append(Reason.FEW_STAND_OUT)
    if bounds.returns > LARGEST_MISSED:
        reasons.append(Reason.DESTINATIONS_NOT_REPEATED)
    return tuple(reasons)


def _leans(evidence: Evidence) -> bool:
    """Whether there is more agreement than chance likely gives, though not enough to call it a leak.

    With controls it is the peers' own excess that counts, not what site or clock give everybody.
    """
    if evidence.controls.votes is None:
        return _contrast_leans(evidence.any) or _contrast_leans(evidence.same_destination)
    if evidence.trimmed.log_p <= LOG_LEVEL and not evidence.drift:
        return True
    if any(one.contrast.log_p <= LOG_LEVEL and not evidence.drift for one in evidence.classes):
        return True
    everybody = evidence.columns.narrow
    votes = evidence.controls.vote_excess(everybody, LAGS)
    returns = evidence.controls.return_excess(everybody) if evidence.controls.returns is not None else votes
    even = evidence.controls.even
    usual = float(evidence.any.chance)  # where exits are taken in turn, the other's never matches
    return any(
        one.share > SIGMAS * one.error
        and one.share >= _LEANS
        and one.same - usual > SIGMAS * one.error
        and float(sign_evidence(one.mine, one.other, even)) >= LOG_NEEDED / 2
        for one in (votes, returns)
    )


def _contrast_leans(contrast: Contrast) -> bool:
    return contrast.score > SIGMAS and (contrast.kappa or 0.0) >= _LEANS
