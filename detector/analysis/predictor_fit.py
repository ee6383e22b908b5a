# SPDX-License-Identifier: Apache-2.0
"""Whether a predictor explains the exits: hits against its own chance (docs/leak-modes.md §5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.analysis.columns import Columns, Index, Mask
from detector.analysis.evalues import flag, trial_evidence
from detector.analysis.numerics import Floats, log_binomial_tail, sums
from detector.analysis.observation import Observation, PredictorTrials
from detector.predictors import KERNEL_DESTINATION
from detector.predictors.fit import LEAST_EXCESS, LEAST_PERSONS

_PRIOR_PEERS = 4.0  # for which even chance counts, beside what dealing gives: few peers meet by accident
_LEAST_CHANCE = 1e-12  # of a hit, where a pool is so large that the kernel program counts nothing for it
_LOG_LEVEL = float(np.log(0.002))


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of one predictor.

    Attributes:
        name: the predictor.
        hits, trials: peers by their most voted exit, or votes for `kernel_destination`; ties count in part.
        chance: share of hits expected from exits that have nothing to do with it.
        log_p: bound on the log-probability of its best pool under chance, times the tries of all predictors.
        excess: share of hits beyond chance there, 0 to 1.
        peers: shape (P,): peers that follow it.
        persons: how many of them there are; of a predictor that does not hold perhaps more than `peers`.
        among: peers that it was tried on.
        rule: where the rule stands that it explains, empty where nobody knows.
    """

    name: str
    hits: float
    trials: float
    chance: float
    log_p: float
    excess: float
    peers: Mask = field(repr=False)
    persons: int = 0
    among: int = 0
    rule: str = ""

    @property
    def ratio(self) -> float:
        """Share of trials that it explains."""
        return self.hits / self.trials if self.trials else 0.0

    def holds(self, log_level: float) -> bool:
        """Whether the exits follow it: significant, more than a trifle, and for more than two persons."""
        enough = self.persons >= min(LEAST_PERSONS, max(self.among, 2))
        return enough and self.log_p <= log_level and self.excess >= LEAST_EXCESS


@dataclass(frozen=True, slots=True)
class _Modal:
    """The exit with most votes of each judged peer that repeated any: m rows, more than one for a tie."""

    peer: Index
    exit: Index
    pool: Index
    weight: Floats


def explanations(observation: Observation, columns: Columns, pinned: Mask) -> list[Explanation]:
    """Every predictor that was tried, in the order of the observation, `kernel_destination` last."""
    pools = len(columns.pool_sizes) + 1
    if observation.predictor_trials is not None:
        tests = 1 + len(observation.predictor_trials)
        said = _fitted(observation.predictor_trials, columns, tests)
    else:
        modal = _modal(columns)
        tests = 1 + 2 * max(pools - 1, 1) * len(observation.predicted)
        said = [
            _address_explanation(name, predicted, columns, modal, pinned, tests)
            for name, predicted in observation.predicted.items()
        ]
    destination = _destination_explanation(observation, columns, tests)
    return [one for one in (*said, destination) if one is not None and one.trials]


def _fitted(trials: Sequence[PredictorTrials], columns: Columns, tests: int) -> list[Explanation]:
    """What was tried where tunnel addresses are known: the rule that each predictor explains best."""
    found: dict[str, Explanation] = {}
    known = columns.judged.any()  # where nobody can be judged, a busiest exit is any exit
    for one in trials:
        log_p = log_binomial_tail(one.tried, one.hit, one.chance) + math.log(max(one.hypotheses, 1) * tests)
        peers = np.zeros(columns.peers, bool) if one.flagged is None else one.flagged & columns.narrow
        share = one.hit / one.tried if one.tried else 0.0
        said = Explanation(
            name=one.predictor,
            hits=float(one.hit),
            trials=float(one.tried),
            chance=one.chance,
            log_p=min(log_p, 0.0) if known else 0.0,
            excess=(share - one.chance) / (1 - one.chance) if one.chance < 1 else 0.0,
            peers=peers,
            persons=one.hit,
            among=one.tried,
            rule=one.rule,
        )
        before = found.get(one.predictor)
        if before is None or (said.log_p, -said.ratio) < (before.log_p, -before.ratio):
            found[one.predictor] = said
    return list(found.values())


def _modal(columns: Columns) -> _Modal:
    most = np.zeros(columns.peers)
    repeated = np.flatnonzero((columns.votes > 1) & columns.judged[columns.peer])
    np.maximum.at(most, columns.peer[repeated], columns.votes[repeated])
    rows = repeated[columns.votes[repeated] == most[columns.peer[repeated]]]
    peer, exit_ = columns.peer[rows], columns.exit[rows]
    pool = columns.pool[exit_]
    weight = 1 / np.bincount(peer, minlength=columns.peers)[peer]
    return _Modal(peer, exit_, np.where(pool < 0, len(columns.pool_sizes), pool), weight)


def _address_explanation(
    name: str, predicted: NDArray[np.int32], columns: Columns, modal: _Modal, pinned: Mask, tests: int
) -> Explanation:
    """A predictor of the tunnel address alone: one trial a peer, its most voted exit.

    A judged peer that never repeated an exit is a trial without a hit. The test is made for each pool, over
    the peers that repeated one, and again over the peers flagged as pinned.
    """
    said = _said(predicted, modal)
    hit = said == modal.exit
    usable = said >= 0
    tries = [_pool_tries(columns, modal, said, hit, rows) for rows in (usable, usable & pinned[modal.peer])]
    trials, _, chance = tries[0]
    best, excess = _best(tries)
    has = (predicted if predicted.ndim == 1 else predicted.max(axis=1, initial=-1)) >= 0
    follows = np.zeros(columns.peers, bool)
    follows[modal.peer[hit & (modal.weight == 1)]] = True
    return Explanation(
        name=name,
        hits=float(modal.weight[hit].sum()),
        trials=float(np.count_nonzero(has & columns.judged)),
        chance=float(trials @ chance / trials.sum()) if trials.sum() else 1 / max(columns.pool_size, 1),
        log_p=min(best + float(np.log(tests)), 0.0),
        excess=excess,
        peers=follows,
        persons=int(np.count_nonzero(follows)),
        among=int(np.count_nonzero(has & columns.judged)),
    )


def _said(predicted: NDArray[np.int32], modal: _Modal) -> NDArray[np.int32]:
    """The prediction for the pool of each modal exit, shape (m,), -1 for none."""
    if predicted.ndim == 1:
        return predicted[modal.peer]
    if not predicted.shape[1]:
        return np.full(modal.peer.size, -1, np.int32)
    inside = modal.pool < predicted.shape[1]
    pool = np.where(inside, modal.pool, 0)
    return np.where(inside, predicted[modal.peer, pool], np.int32(-1))


def _pool_tries(
    columns: Columns, modal: _Modal, said: NDArray[np.int32], hit: Mask, rows: Mask
) -> tuple[Floats, Floats, Floats]:
    """Trials, hits and chance of each pool (the last entry: exits of no pool), shapes (K + 1,).

    The chance is 1/N, or, where exits or predictions are uneven, what the predictions would hit if they were
    dealt to other peers.
    """
    pools = len(columns.pool_sizes) + 1
    pool, weight, hit = modal.pool[rows], modal.weight[rows], hit[rows]
    trials, hits = sums(pool, weight, pools), sums(pool, weight * hit, pools)
    foretold = sums(said[rows].astype(np.intp), weight, columns.exits)
    taken = sums(modal.exit[rows], weight, columns.exits)
    exit_pool = np.where(columns.pool < 0, pools - 1, columns.pool)
    crossed = sums(exit_pool, foretold * taken, pools) - sums(pool, weight * weight * hit, pools)
    pairs = trials * trials - sums(pool, weight * weight, pools)
    dealt = np.divide(crossed, pairs, out=np.zeros(pools), where=pairs > 1e-9)
    sizes = np.array([*map(float, columns.pool_sizes), float(max(columns.exits_used, 1))])
    even = 1 / np.maximum(sizes, 1.0)
    dealt = (trials * dealt + _PRIOR_PEERS * even) / (trials + _PRIOR_PEERS)
    return trials, hits, np.clip(dealt, even, 1.0)


def _best(tries: list[tuple[Floats, Floats, Floats]]) -> tuple[float, float]:
    """The smallest log p over pools and populations, and the excess that goes with it."""
    found = [(0.0, 0.0)]
    for trials, hits, chance in tries:
        for tried, came, luck in zip(trials, hits, chance, strict=True):
            if tried > 0 and luck < 1:
                found.append((log_binomial_tail(tried, came, luck), (came / tried - luck) / (1 - luck)))
    log_p, excess = min(found, key=lambda one: (one[0] if one[1] >= LEAST_EXCESS else 0.0, -one[1]))
    return float(log_p), float(excess)


def _destination_explanation(observation: Observation, columns: Columns, tests: int) -> Explanation | None:
    """`kernel_destination`: one trial a vote, counted in the kernel, where the destination is."""
    trials = observation.destination_predictor
    tried = np.where(columns.narrow, trials.tried, 0).astype(np.float64)
    total = float(tried.sum())
    if not total:
        return None
    hits = np.minimum(np.where(columns.narrow, trials.true, 0), tried)
    expected = tried / float(max(columns.pool_size, 1))  # an IPv6 pool may be beyond 64 bits
    if trials.expected is not None:
        expected = np.where(columns.narrow, trials.expected, 0.0).astype(np.float64)
    chance = min(max(float(expected.sum()) / total, _LEAST_CHANCE), 1.0)
    each = np.divide(expected, tried, out=np.ones_like(tried), where=tried > 0)
    log_e = trial_evidence(tried, hits, each)
    followed = flag(log_e, int(np.count_nonzero(tried)))
    rest = _without_best(log_e)
    # Two peers may have chosen their flows so that they fit: what is shown has to be shown without them.
    left, came, luck = float(tried[rest].sum()), float(hits[rest].sum()), float(expected[rest].sum())
    log_p = log_binomial_tail(left, came, min(max(luck / left, _LEAST_CHANCE), 1.0)) if left else 0.0
    persons = int(np.count_nonzero(followed))
    if persons >= LEAST_PERSONS or not left:
        log_p = min(log_p, log_binomial_tail(total, float(hits.sum()), chance))
    return Explanation(
        name=KERNEL_DESTINATION.name,
        hits=float(hits.sum()),
        trials=total,
        chance=chance,
        log_p=min(log_p + float(np.log(tests)), 0.0),
        excess=(float(hits.sum()) / total - chance) / (1 - chance) if chance < 1 else 0.0,
        peers=followed,
        persons=max(persons, LEAST_PERSONS if log_p + np.log(tests) <= _LOG_LEVEL and left else 0),
        among=int(np.count_nonzero(tried)),
    )


def _without_best(log_e: Floats) -> Index:
    """All but the two with most evidence."""
    order: Index = np.argsort(-log_e, kind="stable")[2:]
    return order
