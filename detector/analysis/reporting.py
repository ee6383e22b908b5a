# SPDX-License-Identifier: Apache-2.0
"""From weighed evidence and settled findings to the report."""

from __future__ import annotations

import numpy as np

from detector.analysis.anonymity import AnonymitySets, anonymity_sets
from detector.analysis.bits import mutual_information
from detector.analysis.bounds import Bounds
from detector.analysis.columns import Columns, Index, Mask
from detector.analysis.consistency import Contrast
from detector.analysis.evidence import LOG_LEVEL, Evidence, linked_peers
from detector.analysis.observation import Observation
from detector.analysis.report import (
    AnonymityReport,
    ContrastReport,
    Explained,
    FamilyReport,
    PeerColumns,
    PoolReport,
)
from detector.base.verdicts import LEAKS, VERDICTS, Verdict
from detector.predictors import KERNEL_DESTINATION, NAMES

_NEAR = 0.02  # predictors this close explain equally well; the order of the bank decides


def report_of(
    observation: Observation,
    evidence: Evidence,
    findings: tuple[Verdict, ...],
    coverage: float,
    bounds: Bounds,
) -> FamilyReport:
    """The report on a family whose findings are settled, still without its reasons and its paragraph."""
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
    untranslated = _untranslated(observation)
    return FamilyReport(
        family=observation.family,
        verdict=findings[0],
        predictor=_predictor(evidence) if Verdict.PREDICTABLE in findings else None,
        findings=findings,
        suspected=(),
        reasons=(),
        peers=columns.present,
        persons=evidence.exclusive.persons,
        judged=int(np.count_nonzero(columns.judged)),
        exits=columns.exits_used,
        pool_size=columns.pool_size,
        flows=int(np.asarray(observation.flows).sum(dtype=np.int64)),
        coverage=coverage,
        in_use=bool(columns.occupants.any())
        or loss.seen + loss.lost + loss.unattributed > 0
        or any(flows for flows, _ in untranslated.values()),
        consistency={name: one.kappa for name, one in contrasts.items()},
        contrasts={name: _contrast_report(one) for name, one in contrasts.items()},
        explained={
            one.name: Explained(one.ratio, one.chance, round(one.trials), one.holds(LOG_LEVEL))
            for one in evidence.explanations
        },
        peers_flagged={name: int(np.count_nonzero(mask)) for name, mask in masks.items()},
        peers_by_verdict={verdict: int(counts[i]) for i, verdict in enumerate(VERDICTS) if counts[i]},
        leaking_share=_leaking_share(evidence, findings, _leaking(columns, masks)),
        anonymity_set=_anonymity_report(anonymity_sets(columns)),
        leak_bits=_leak_bits(evidence, findings, masks),
        largest_missed=bounds.largest,
        seconds_to_go=_seconds_to_go(observation, bounds),
        stand_out=_standing_out(evidence, findings),
        exclusive_kinds={
            kind: int(np.count_nonzero(mask)) for kind, mask in evidence.exclusive.peers.items()
        },
        flow_class=_flow_class(evidence),
        prefix=None if evidence.units is None or LEAKS[0] in findings else evidence.units.prefix,
        untranslated=untranslated,
        seconds=observation.seconds,
        exits_drift=evidence.drift,
        pools=_pools(columns, peer_columns, _leaking(columns, masks), observation.pool_origins),
        columns=peer_columns,
    )


def _contrast_report(contrast: Contrast) -> ContrastReport:
    detectable = contrast.detectable(LOG_LEVEL)
    return ContrastReport(
        contrast.observed,
        contrast.chance,
        contrast.kappa,
        contrast.peers,
        contrast.trials,
        detectable if detectable <= 1 else None,
    )


def _anonymity_report(sets: AnonymitySets | None) -> AnonymityReport | None:
    if sets is None:
        return None
    return AnonymityReport(sets.least, sets.median, sets.effective_least, sets.effective_median)


def _predictor(evidence: Evidence) -> str:
    """The predictor that explains most; among equals the first of the bank."""
    holding = [one for one in evidence.explanations if one.holds(LOG_LEVEL)]
    most = max(one.ratio for one in holding)
    near = [one.name for one in holding if one.ratio >= most - _NEAR]
    return min(near, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))


def _masks(evidence: Evidence, findings: tuple[Verdict, ...]) -> dict[Verdict, Mask]:
    """Per finding that is about single peers, which of them show it."""
    keeps = evidence.pinned | (evidence.columns.judged & (evidence.consistency == 1))
    followed = np.zeros(evidence.columns.peers, bool)
    for one in evidence.explanations:
        if one.holds(LOG_LEVEL):
            followed |= one.peers & (keeps | (one.name == KERNEL_DESTINATION.name))
    pinned = evidence.pinned
    if evidence.units is not None and not pinned.any():
        pinned = evidence.units.pinned
    moved = evidence.sessions.moved
    within = Verdict.SESSION_STICKY in findings and Verdict.PINNED not in findings
    if within:
        moved = (pinned | linked_peers(evidence)) if evidence.linked_holds else pinned
    owners = evidence.exclusive.any
    masks = {
        Verdict.PREDICTABLE: followed,
        Verdict.EXCLUSIVE: np.zeros_like(followed) if owners is None else owners,
        Verdict.PINNED: pinned & ~moved,
        Verdict.DESTINATION_LINKED: evidence.linked,
        Verdict.SESSION_STICKY: moved,
    }
    return {verdict: mask for verdict, mask in masks.items() if verdict in findings}


def _standing_out(evidence: Evidence, findings: tuple[Verdict, ...]) -> dict[Verdict, int]:
    """Peers that show a leak of which the relay is not accused."""
    shown = {Verdict.PINNED: evidence.pinned, Verdict.DESTINATION_LINKED: evidence.linked}
    if any(verdict in LEAKS for verdict in findings) or Verdict.SESSION_STICKY in findings:
        return {}
    return {verdict: int(np.count_nonzero(mask)) for verdict, mask in shown.items() if mask.any()}


def _flow_class(evidence: Evidence) -> str | None:
    """The class of flows that leaks, where others do not."""
    keeps = [one.flow_class.name.lower() for one in evidence.classes if one.keeps]
    return keeps[0] if len(keeps) == 1 and len(evidence.classes) > 1 else None


def _untranslated(observation: Observation) -> dict[str, tuple[int, int]]:
    """Flows that left as they came, and how many peers sent them."""
    found = {}
    for name, counts in (
        ("global", observation.untranslated_global),
        ("private", observation.untranslated_private),
        ("untracked", observation.untracked),
    ):
        if counts is not None and np.asarray(counts).any():
            column = np.asarray(counts)
            found[name] = int(column.sum(dtype=np.int64)), int(np.count_nonzero(column))
    return found


def _seconds_to_go(observation: Observation, bounds: Bounds) -> float | None:
    """Until the evidence is enough for `unlinkable`, were it to grow as it did so far."""
    if observation.seconds is None or bounds.growth is None:
        return None
    return observation.seconds * (bounds.growth - 1)


def _peer_columns(
    evidence: Evidence, findings: tuple[Verdict, ...], masks: dict[Verdict, Mask]
) -> PeerColumns:
    columns = evidence.columns
    codes = np.full(columns.peers, VERDICTS.index(Verdict.UNKNOWN), np.int8)
    if findings[0] is Verdict.SINGLE_EXIT:
        codes[columns.peer_flows > 0] = VERDICTS.index(Verdict.SINGLE_EXIT)
    elif findings[0] is not Verdict.UNKNOWN:
        codes[columns.judged] = VERDICTS.index(Verdict.UNLINKABLE)
    standing = _standing_out(evidence, findings)
    shown = {Verdict.PINNED: evidence.pinned, Verdict.DESTINATION_LINKED: evidence.linked}
    for verdict in reversed(VERDICTS):
        mask = masks.get(verdict, shown[verdict] if verdict in standing else None)
        if mask is not None:
            codes[mask] = VERDICTS.index(verdict)
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


def _busiest(columns: Columns) -> Index:
    """The exit with most flows of each peer, shape (P,), -1 for none."""
    most = np.zeros(columns.peers)
    np.maximum.at(most, columns.peer, columns.flows)
    rows = columns.flows == most[columns.peer]
    exits = np.full(columns.peers, -1, np.intp)
    exits[columns.peer[rows]] = columns.exit[rows]
    return exits


def _leaking(columns: Columns, masks: dict[Verdict, Mask]) -> Mask:
    """Peers that show a leak, shape (P,)."""
    shown = np.zeros(columns.peers, bool)
    for verdict, mask in masks.items():
        if verdict in LEAKS:
            shown |= mask
    return shown


def _leaking_share(evidence: Evidence, findings: tuple[Verdict, ...], leaking: Mask) -> float:
    """Share of the judged peers that leaks: those that stand out, or what the relay's mean amounts to."""
    judged = int(np.count_nonzero(evidence.columns.judged))
    if findings[0] not in LEAKS or not judged:
        return 0.0
    share = float(np.count_nonzero(leaking & evidence.columns.judged)) / judged
    if Verdict.PINNED in findings:
        share = max(share, evidence.any.kappa or 0.0)
    if Verdict.DESTINATION_LINKED in findings:
        share = max(share, evidence.same_destination.kappa or 0.0)
    return min(share, 1.0)


def _leak_bits(evidence: Evidence, findings: tuple[Verdict, ...], masks: dict[Verdict, Mask]) -> float:
    """What one exit tells about the next of the same peer; for a leak to sites, as one of them sees it.

    Averaged over the peers; what identifies a peer by itself (an exit, a pool, a prefix of its own) tells
    which of the persons it is. Agreement that may be chance tells nothing.
    """
    columns = evidence.columns
    persons = max(evidence.exclusive.persons, 1)
    most = float(np.log2(persons)) if persons > 1 else 0.0
    told = 0.0
    if columns.exits_used > 1 and not {Verdict.UNLINKABLE, Verdict.SINGLE_EXIT} & set(findings):
        share = 0.0
        if evidence.any.log_p <= LOG_LEVEL or evidence.pinned.any():
            share = evidence.any.kappa or 0.0
        if Verdict.DESTINATION_LINKED in findings:
            share = max(share, evidence.same_destination.kappa or 0.0)
        for one in evidence.explanations:
            if one.holds(LOG_LEVEL):
                share = max(share, one.excess)
        told = _within_groups(evidence, share)
        if evidence.units is not None and Verdict.PINNED in findings:
            units = evidence.units
            share = units.contrast.kappa or 0.0
            told = max(told, mutual_information(share, np.full(units.units, 1 / units.units)))
    if Verdict.EXCLUSIVE in masks:
        told = max(told, most * float(np.count_nonzero(masks[Verdict.EXCLUSIVE])) / persons)
    return min(told, most)


def _within_groups(evidence: Evidence, share: float) -> float:
    """The information within each group of exits, averaged by the flows that each carries."""
    columns, population = evidence.columns, evidence.population
    weights = columns.over_groups(columns.cell_flows)
    total = float(weights.sum())
    used = np.flatnonzero(weights)
    return sum(
        float(weights[group]) / total * mutual_information(share, population.smooth[columns.group == group])
        for group in used
    )


def _pools(
    columns: Columns, peers: PeerColumns, leaking: Mask, origins: tuple[str, ...]
) -> tuple[PoolReport, ...]:
    """Per configured pool the peers whose busiest exit it has."""
    pools = len(columns.pool_sizes)
    pool = np.full(columns.peers, -1, np.intp)
    known = peers.exit >= 0
    pool[known] = columns.pool[peers.exit[known]]
    served, judged, flagged = (
        np.bincount(pool[who & (pool >= 0)], minlength=pools) for who in (known, columns.judged, leaking)
    )
    who = columns.judged & (pool >= 0)
    cells = np.bincount(pool[who] * len(VERDICTS) + peers.verdict[who], minlength=pools * len(VERDICTS))
    verdicts = cells.reshape(pools, len(VERDICTS))
    named = origins or ("",) * pools
    return tuple(
        PoolReport(
            number,
            size,
            int(served[number]),
            int(judged[number]),
            int(flagged[number]),
            named[number],
            {verdict: int(verdicts[number, i]) for i, verdict in enumerate(VERDICTS) if verdicts[number, i]},
        )
        for number, size in enumerate(columns.pool_sizes)
        if served[number]
    )
