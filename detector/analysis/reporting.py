# SPDX-License-Identifier: Apache-2.0
"""From weighed evidence and settled findings to the report."""

from __future__ import annotations

import numpy as np

from detector.analysis.anonymity import AnonymitySets, anonymity_sets
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
    observation: Observation, evidence: Evidence, findings: tuple[Verdict, ...], coverage: float
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
    return FamilyReport(
        family=observation.family,
        verdict=findings[0],
        predictor=_predictor(evidence) if Verdict.PREDICTABLE in findings else None,
        findings=findings,
        suspected=(),
        reasons=(),
        peers=columns.present,
        judged=int(np.count_nonzero(columns.judged)),
        exits=columns.exits_used,
        pool_size=columns.pool_size,
        flows=int(np.asarray(observation.flows).sum(dtype=np.int64)),
        coverage=coverage,
        in_use=bool(columns.occupants.any()) or loss.seen + loss.lost + loss.unattributed > 0,
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
        leak_bits=_leak_bits(evidence, findings),
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
    moved = evidence.sessions.moved
    within = Verdict.SESSION_STICKY in findings and Verdict.PINNED not in findings
    if within:
        moved = (evidence.pinned | linked_peers(evidence)) if evidence.linked_holds else evidence.pinned
    masks = {
        Verdict.PREDICTABLE: followed,
        Verdict.EXCLUSIVE: evidence.alone.peers,
        Verdict.PINNED: evidence.pinned & ~moved,
        Verdict.DESTINATION_LINKED: evidence.linked,
        Verdict.SESSION_STICKY: moved,
    }
    return {verdict: mask for verdict, mask in masks.items() if verdict in findings}


def _peer_columns(
    evidence: Evidence, findings: tuple[Verdict, ...], masks: dict[Verdict, Mask]
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


def _leak_bits(evidence: Evidence, findings: tuple[Verdict, ...]) -> float:
    """log2(mean C / c0), at most log2 N; for a leak to single sites, as such a site sees it."""
    if evidence.columns.exits_used <= 1:
        return 0.0
    contrasts = [evidence.any]
    if Verdict.DESTINATION_LINKED in findings:
        contrasts.append(evidence.same_destination)
    ratios = [one.observed / one.chance for one in contrasts if one.peers and one.chance > 0]
    best = float(np.log2(max([1.0, *ratios])))
    return min(best, float(np.log2(float(max(evidence.columns.pool_size, 1)))))


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
