# SPDX-License-Identifier: Apache-2.0
"""The evidence in an observation, weighed once; findings and report are drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.analysis.anonymity import Alone, alone
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
from detector.analysis.evalues import flag, pinned_evidence, trial_evidence
from detector.analysis.numerics import Floats, log_mean_tail
from detector.analysis.observation import Observation, Trials
from detector.analysis.predictor_fit import Explanation, explanations
from detector.analysis.sessions import Sessions, sessions_of

LOG_LEVEL = float(np.log(0.002))  # of each test on the whole relay; there are five, so 1 % together
LEAST_EFFECT = 0.05  # k below this is no leak of the relay, however sure
SIGMAS = 3.0


@dataclass(frozen=True, slots=True)
class Evidence:
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
    log_repeats_possible: Floats


def weigh(observation: Observation) -> Evidence:
    """The evidence in an observation."""
    columns = columns_of(observation)
    consistency = consistency_of(columns, columns.votes, columns.peer_votes)
    population = population_of(columns, consistency)
    log_e = pinned_evidence(columns, population)
    pinned = flag(log_e, int(np.count_nonzero(columns.judged)))
    tried, true = _counts(observation.same_destination, columns)
    chance = _repeat_chance(columns, population)
    linked = flag(trial_evidence(tried, true, chance), int(np.count_nonzero(tried))) & ~pinned
    together = pair_contrast(columns, population, consistency, columns.peer_votes, columns.judged)
    ports = _counts(observation.same_port, columns)
    repeats = np.divide(true, tried, out=np.full(columns.peers, np.nan), where=tried > 0)
    doubtful = pinned if pinned.any() else columns.judged
    return Evidence(
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
        log_repeats_possible=trial_evidence(tried, tried, chance),
    )


def _counts(trials: Trials, columns: Columns) -> tuple[Floats, Floats]:
    """Trials and hits as floats, those of networks left out."""
    tried = np.where(columns.narrow, trials.tried, 0).astype(np.float64)
    return tried, np.minimum(np.where(columns.narrow, trials.true, 0).astype(np.float64), tried)


def _repeat_chance(columns: Columns, population: Population) -> Floats:
    """Chance that a peer's next exit is its last one: the shares of the exits it used, c0 at least.

    Some standard errors are added, because trials can be many where the votes that tell the shares are few.
    """
    met = columns.per_peer(columns.flows * population.smooth[columns.exit])
    mean = np.divide(met, columns.peer_flows, out=np.zeros(columns.peers), where=columns.peer_flows > 0)
    chance: Floats = np.clip(np.maximum(mean, flow_shares(columns) @ population.same), 0.0, 1.0)
    doubt = SIGMAS * np.sqrt(chance * (1 - chance) / max(population.effective.sum(), 1.0))
    result: Floats = np.minimum(chance + doubt, 1.0)
    return result


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
    sure = again.log_p <= LOG_LEVEL and (again.kappa or 0.0) >= LEAST_EFFECT
    if not (sure or linked.any()):
        return False
    other = pair_contrast(columns, population, consistency, columns.peer_votes, rest)
    if not other.peers:
        return not pinned.any()
    if other.log_p > LOG_LEVEL and 2 * (other.kappa or 0.0) < (again.kappa or 0.0):
        return True
    both = rest & (columns.peer_votes > 1)
    more = true[both] / tried[both] - consistency[both]
    excess = float(more.mean())
    tail = log_mean_tail(more.size, excess, float(more.var()) + 1 / more.size, reach=2.0)
    return excess >= 2 * LEAST_EFFECT and tail <= LOG_LEVEL


def linked_peers(evidence: Evidence) -> Mask:
    """The peers whose destinations are linked: those that stand out, or all in question."""
    return evidence.linked if evidence.linked.any() else evidence.columns.narrow & ~evidence.pinned
