# SPDX-License-Identifier: Apache-2.0
"""From an observation to a verdict (docs/leak-modes.md §4 and §5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from detector.analysis.anonymity import Alone, AnonymitySets, alone, anonymity_sets
from detector.analysis.columns import Columns, Mask, columns_of
from detector.analysis.consistency import (
    Contrast,
    Population,
    consistency_of,
    flow_shares,
    pair_contrast,
    population_of,
    trial_contrast,
)
from detector.analysis.evidence import (
    flag,
    log_threshold,
    pinned_evidence,
    pinned_evidence_at_most,
    trial_evidence,
)
from detector.analysis.explained import Explanation, explanations
from detector.analysis.numerics import Floats, log_mean_tail
from detector.analysis.observation import Loss, Observation, Trials
from detector.analysis.predictors import NAMES
from detector.analysis.report import (
    LEAKS,
    VERDICTS,
    AnonymityReport,
    ContrastReport,
    Explained,
    FamilyReport,
    PeerColumns,
    PoolReport,
    Reason,
    Report,
    Verdict,
)
from detector.analysis.sessions import Sessions, follow_sessions, sessions_of
from detector.analysis.why import because

COVERAGE_FLOOR = 0.95
LOG_LEVEL = float(np.log(0.002))  # of each test on the whole relay; there are five, so 1 % together
LEAST_EFFECT = 0.05  # k below this is no leak of the relay, however sure
LARGEST_MISSED = 0.25  # "unlinkable" needs evidence that would have shown a k of this
_POWER_SHARE = 0.1  # ... or that would have flagged the peers, if this share of them leaked
_MOST_PEERS = 0.75  # ... for this share of the peers
_FLOWS_FOR_ONE_EXIT = 10
_NEAR = 0.02  # predictors this close explain equally well; the order of the bank decides


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Everything that the findings are drawn from; masks and columns have shape (P,)."""

    columns: Columns
    population: Population
    consistency: Floats
    any: Contrast
    same_destination: Contrast
    same_port: Contrast
    log_e: Floats
    pinned: Mask
    linked: Mask
    linked_holds: bool
    sessions: Sessions
    explanations: list[Explanation]
    alone: Alone
    repeats: Floats
    log_repeats: Floats


def judge(observations: Iterable[Observation], coverage_floor: float = COVERAGE_FLOOR) -> Report:
    """The report on a relay from one observation for each family.

    A family that carried flows and could not be judged outweighs a harmless verdict on the other one:
    unknown is never safe. A family that carried nothing does not count.
    """
    observed = list(observations)
    families = {one.family: judge_family(one, coverage_floor) for one in observed}
    worst = min(families.values(), key=_rank, default=None)
    if worst is None:
        return Report(Verdict.UNKNOWN, None, 1.0, {}, "Nothing was observed.")
    coverage = _coverage([one.loss for one in observed])
    return Report(worst.verdict, worst.predictor, coverage, families, worst.why)


def judge_family(observation: Observation, coverage_floor: float = COVERAGE_FLOOR) -> FamilyReport:
    """The report on one family. Linear in the pairs; a pair may appear once only.

    Args:
        observation: the counts of one window.
        coverage_floor: below this share of flows counted, the verdict is `unknown`.
    """
    evidence = _weigh(observation)
    found = _findings(observation, evidence)
    coverage = _coverage([observation.loss])
    reasons: tuple[Reason, ...] = ()
    suspected: tuple[Verdict, ...] = ()
    if coverage < coverage_floor:
        found, suspected, reasons = (), found, (Reason.COVERAGE,)
    elif not found:
        reasons = _missing(evidence)
        found = () if reasons else (Verdict.UNLINKABLE,)
    report = _report(observation, evidence, found or (Verdict.UNKNOWN,), coverage)
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


def _weigh(observation: Observation) -> _Evidence:
    """The evidence in an observation."""
    columns = columns_of(observation)
    consistency = consistency_of(columns, columns.votes, columns.peer_votes)
    population = population_of(columns, consistency)
    log_e = pinned_evidence(columns, population)
    pinned = flag(log_e, int(np.count_nonzero(columns.judged)))
    tried, true = _counts(observation.same_destination, columns)
    chance = _repeat_chance(columns, population)
    log_repeats = trial_evidence(tried, true, chance)
    linked = flag(log_repeats, int(np.count_nonzero(tried))) & ~pinned
    together = pair_contrast(columns, population, consistency, columns.peer_votes, columns.judged)
    ports = _counts(observation.same_port, columns)
    repeats = np.divide(true, tried, out=np.full(columns.peers, np.nan), where=tried > 0)
    doubtful = pinned if pinned.any() else columns.judged
    return _Evidence(
        columns=columns,
        population=population,
        consistency=consistency,
        any=together,
        same_destination=trial_contrast(columns, population, tried, true, columns.narrow),
        same_port=trial_contrast(columns, population, *ports, columns.narrow),
        log_e=log_e,
        pinned=pinned,
        linked=linked,
        linked_holds=_destinations_link(columns, population, consistency, (tried, true), linked, pinned),
        sessions=sessions_of(columns, population, doubtful),
        explanations=explanations(observation, columns, pinned),
        alone=alone(columns, columns.judged & (pinned | (consistency == 1))),
        repeats=repeats,
        log_repeats=log_repeats,
    )


def _counts(trials: Trials, columns: Columns) -> tuple[Floats, Floats]:
    """Trials and hits as floats, those of networks left out."""
    tried = np.where(columns.narrow, trials.tried, 0).astype(np.float64)
    return tried, np.minimum(np.where(columns.narrow, trials.true, 0).astype(np.float64), tried)


def _repeat_chance(columns: Columns, population: Population) -> Floats:
    """Chance that a peer's next exit is its last one: the shares of the exits it used, c0 at least."""
    met = columns.per_peer(columns.flows * population.smooth[columns.exit])
    mean = np.divide(met, columns.peer_flows, out=np.zeros(columns.peers), where=columns.peer_flows > 0)
    return np.maximum(mean, flow_shares(columns) @ population.same)


def _destinations_link(
    columns: Columns,
    population: Population,
    consistency: Floats,
    trials: tuple[Floats, Floats],
    linked: Mask,
    pinned: Mask,
) -> bool:
    """Whether a site sees the same exit again, beyond what keeping an exit everywhere would explain."""
    tried, true = trials
    rest = columns.narrow & ~pinned & (tried > 0)
    again = trial_contrast(columns, population, tried, true, rest)
    sure = again.log_p <= LOG_LEVEL and (again.corrected or 0.0) >= LEAST_EFFECT
    if not (sure or linked.any()):
        return False
    other = pair_contrast(columns, population, consistency, columns.peer_votes, rest)
    if other.log_p > LOG_LEVEL:
        return True
    both = rest & (columns.peer_votes > 1)
    more = true[both] / tried[both] - consistency[both]
    excess = float(more.mean())
    tail = log_mean_tail(more.size, excess, float(more.var()) + 1 / more.size, reach=2.0)
    return excess >= 2 * LEAST_EFFECT and tail <= LOG_LEVEL


def _findings(observation: Observation, evidence: _Evidence) -> tuple[Verdict, ...]:
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


def _sticky(evidence: _Evidence) -> set[Verdict]:
    """Which of pinned, session_sticky and destination_linked hold."""
    found = set()
    keeps = bool(evidence.pinned.any()) or _relay_keeps(evidence)
    if keeps:
        redrawn = evidence.sessions.contradict(LOG_LEVEL)
        found.add(Verdict.SESSION_STICKY if redrawn else Verdict.PINNED)
        if not redrawn and _some_redrawn(evidence):
            found.add(Verdict.SESSION_STICKY)
    if evidence.linked_holds:
        within = follow_sessions(evidence.columns, evidence.population, _linked_peers(evidence))
        found.add(Verdict.SESSION_STICKY if within else Verdict.DESTINATION_LINKED)
    return found


def _relay_keeps(evidence: _Evidence) -> bool:
    """Whether the peers together agree with themselves more than chance has it, though none stands out."""
    return evidence.any.log_p <= LOG_LEVEL and (evidence.any.corrected or 0.0) >= LEAST_EFFECT


def _some_redrawn(evidence: _Evidence) -> bool:
    """Whether, beside peers that keep their exit, a part gets a new one with each session."""
    moved = evidence.sessions.moved
    enough = np.count_nonzero(moved) >= max(3, evidence.sessions.asked / 10)
    return bool(enough) and follow_sessions(evidence.columns, evidence.population, moved)


def _linked_peers(evidence: _Evidence) -> Mask:
    return evidence.linked if evidence.linked.any() else evidence.columns.narrow & ~evidence.pinned


def _missing(evidence: _Evidence) -> tuple[Reason, ...]:
    """What is missing for `unlinkable`: each contrast that matters must have been able to show a leak."""
    columns = evidence.columns
    if not columns.occupants.any():
        return (Reason.NO_FLOWS,)
    if columns.exits_used == 1:
        return (Reason.ONE_EXIT_UNSETTLED,)
    if not columns.judged.any():
        return (Reason.TOO_FEW_VOTES,)
    reasons = []
    judged = int(np.count_nonzero(columns.judged))
    possible = pinned_evidence_at_most(columns, evidence.population)[columns.judged]
    if not _able(evidence.any, possible, judged):
        reasons.append(Reason.TOO_FEW_PEERS)
    if not _able(evidence.same_destination, *_repeats_possible(evidence)):
        reasons.append(Reason.DESTINATIONS_NOT_REPEATED)
    return tuple(reasons)


def _repeats_possible(evidence: _Evidence) -> tuple[Floats, int]:
    """``log E`` of each peer with repeated destinations, had each found the same exit; and how many peers."""
    return evidence.log_repeats[np.isfinite(evidence.log_repeats)], evidence.same_destination.peers


def _able(contrast: Contrast, possible: Floats, among: int) -> bool:
    """Whether a leak would have been seen: by the relay's mean, or by flagging its peers one by one."""
    if contrast.detectable(LOG_LEVEL) <= LARGEST_MISSED:
        return True
    needed = log_threshold(among, _POWER_SHARE)
    return among >= 3 and float(np.mean(possible >= needed)) >= _MOST_PEERS


def _report(
    observation: Observation, evidence: _Evidence, findings: tuple[Verdict, ...], coverage: float
) -> FamilyReport:
    columns = evidence.columns
    masks = _masks(evidence, findings)
    peer_columns = _peer_columns(evidence, findings, masks)
    counts = np.bincount(peer_columns.verdict[peer_columns.flows > 0], minlength=len(VERDICTS))
    contrasts = {
        "any": evidence.any,
        "same_destination": evidence.same_destination,
        "same_port": evidence.same_port,
    }
    loss = observation.loss
    return FamilyReport(
        family=observation.family,
        verdict=findings[0],
        predictor=_predictor(evidence) if Verdict.PREDICTABLE in findings else None,
        findings=findings,
        suspected=(),
        reasons=(),
        peers=len(np.unique(np.asarray(observation.peer)[np.asarray(observation.flows) > 0])),
        judged=int(np.count_nonzero(columns.judged)),
        exits=columns.exits_used,
        pool_size=columns.pool_size,
        flows=int(np.asarray(observation.flows).sum(dtype=np.int64)),
        coverage=coverage,
        in_use=bool(columns.occupants.any()) or loss.seen + loss.lost + loss.unattributed > 0,
        consistency={name: one.corrected for name, one in contrasts.items()},
        contrasts={name: _contrast_report(one) for name, one in contrasts.items()},
        explained={
            one.name: Explained(one.ratio, one.chance, round(one.trials), one.holds(LOG_LEVEL))
            for one in evidence.explanations
        },
        peers_flagged={name: int(np.count_nonzero(mask)) for name, mask in masks.items()},
        peers_by_verdict={verdict: int(counts[i]) for i, verdict in enumerate(VERDICTS) if counts[i]},
        leaking_share=_leaking_share(evidence, findings, masks),
        anonymity_set=_anonymity_report(anonymity_sets(columns)),
        leak_bits=_leak_bits(evidence, findings),
        pools=_pools(columns, evidence.pinned),
        columns=peer_columns,
    )


def _contrast_report(contrast: Contrast) -> ContrastReport:
    detectable = contrast.detectable(LOG_LEVEL)
    return ContrastReport(
        contrast.observed,
        contrast.chance,
        contrast.corrected,
        contrast.peers,
        contrast.trials,
        detectable if detectable <= 1 else None,
    )


def _anonymity_report(sets: AnonymitySets | None) -> AnonymityReport | None:
    if sets is None:
        return None
    return AnonymityReport(sets.least, sets.median, sets.effective_least, sets.effective_median)


def _predictor(evidence: _Evidence) -> str:
    """The predictor that explains most; among equals the first of the bank."""
    holding = [one for one in evidence.explanations if one.holds(LOG_LEVEL)]
    most = max(one.ratio for one in holding)
    near = [one.name for one in holding if one.ratio >= most - _NEAR]
    return min(near, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))


def _masks(evidence: _Evidence, findings: tuple[Verdict, ...]) -> dict[Verdict, Mask]:
    """Per finding that is about single peers, which of them show it."""
    keeps = evidence.pinned | (evidence.columns.judged & (evidence.consistency == 1))
    followed = np.zeros(evidence.columns.peers, bool)
    for one in evidence.explanations:
        if one.holds(LOG_LEVEL):
            followed |= one.peers & (keeps | (one.name == "kernel_destination"))
    moved = evidence.sessions.moved
    within = Verdict.SESSION_STICKY in findings and Verdict.PINNED not in findings
    if within:
        moved = (evidence.pinned | _linked_peers(evidence)) if evidence.linked_holds else evidence.pinned
    masks = {
        Verdict.PREDICTABLE: followed,
        Verdict.EXCLUSIVE: evidence.alone.peers,
        Verdict.PINNED: evidence.pinned & ~moved,
        Verdict.DESTINATION_LINKED: evidence.linked,
        Verdict.SESSION_STICKY: moved,
    }
    return {verdict: mask for verdict, mask in masks.items() if verdict in findings}


def _peer_columns(
    evidence: _Evidence, findings: tuple[Verdict, ...], masks: dict[Verdict, Mask]
) -> PeerColumns:
    columns = evidence.columns
    codes = np.full(columns.peers, VERDICTS.index(Verdict.UNKNOWN), np.int8)
    if findings[0] is Verdict.SINGLE_EXIT:
        codes[columns.peer_flows > 0] = VERDICTS.index(Verdict.SINGLE_EXIT)
    elif findings[0] is not Verdict.UNKNOWN:
        codes[columns.judged] = VERDICTS.index(Verdict.UNLINKABLE)
    for verdict in reversed(VERDICTS):
        if verdict in masks:
            codes[masks[verdict]] = VERDICTS.index(verdict)
    exits = _busiest(columns)
    return PeerColumns(
        verdict=codes,
        flows=columns.peer_flows,
        votes=columns.peer_votes,
        consistency=evidence.consistency,
        same_destination=evidence.repeats,
        log_e=evidence.log_e,
        exit=exits,
        anonymity=np.where(exits >= 0, columns.occupants[exits], 0)
        if columns.exits
        else np.zeros(len(exits)),
    )


def _busiest(columns: Columns) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The exit with most flows of each peer, shape (P,), -1 for none."""
    most = np.zeros(columns.peers)
    np.maximum.at(most, columns.peer, columns.flows)
    rows = columns.flows == most[columns.peer]
    exits = np.full(columns.peers, -1, np.intp)
    exits[columns.peer[rows]] = columns.exit[rows]
    return exits


def _leaking_share(evidence: _Evidence, findings: tuple[Verdict, ...], masks: dict[Verdict, Mask]) -> float:
    """Share of the judged peers that leaks: those that stand out, or what the relay's mean amounts to."""
    judged = int(np.count_nonzero(evidence.columns.judged))
    leaks = [verdict for verdict in findings if verdict in LEAKS]
    if not leaks or not judged:
        return 0.0
    shown = np.zeros(evidence.columns.peers, bool)
    for verdict in leaks:
        shown |= masks[verdict]
    share = float(np.count_nonzero(shown & evidence.columns.judged)) / judged
    if Verdict.PINNED in findings:
        share = max(share, evidence.any.corrected or 0.0)
    if Verdict.DESTINATION_LINKED in findings:
        share = max(share, evidence.same_destination.corrected or 0.0)
    return min(share, 1.0)


def _leak_bits(evidence: _Evidence, findings: tuple[Verdict, ...]) -> float:
    """log2(mean C / c0), at most log2 N; for a leak to single sites, as such a site sees it."""
    if evidence.columns.exits_used <= 1:
        return 0.0
    contrasts = [evidence.any]
    if Verdict.DESTINATION_LINKED in findings:
        contrasts.append(evidence.same_destination)
    ratios = [one.observed / one.chance for one in contrasts if one.peers and one.chance > 0]
    best = float(np.log2(max([1.0, *ratios])))
    return min(best, float(np.log2(float(max(evidence.columns.pool_size, 1)))))


def _pools(columns: Columns, pinned: Mask) -> tuple[PoolReport, ...]:
    """Per configured pool the peers that use it most; pools of one and the rest are not listed apart."""
    group = np.where(columns.peer_flows > 0, columns.group_flows.argmax(axis=1), -1)
    found = []
    for number, size in enumerate(columns.pool_sizes):
        exits = np.flatnonzero(columns.pool == number)
        if size < 2 or not exits.size:
            continue
        inside = group == columns.group[exits[0]]
        found.append(
            PoolReport(
                number,
                size,
                int(np.count_nonzero(inside)),
                int(np.count_nonzero(inside & columns.judged)),
                int(np.count_nonzero(inside & pinned)),
            )
        )
    return tuple(found)
