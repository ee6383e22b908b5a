# SPDX-License-Identifier: Apache-2.0
"""How often a peer gets its exit again, against how often chance would give it (docs/leak-modes.md §5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.analysis.columns import Columns, Mask
from detector.analysis.numerics import Floats, detectable_mean, log_mean_tail, sums

PRIOR = 1.0  # votes that the configured pool, all exits equal, counts for beside the population


@dataclass(frozen=True, slots=True)
class Population:
    """What the peers together do: the chance that everything is held against.

    Attributes:
        shares: shape (E,): sum over peers of the share of a peer's votes (of the group) that exit e has.
            Each peer counts once, however busy.
        voters: shape (G,): peers with votes in the group.
        effective: shape (G,): how many independent votes the shares are worth. Votes of one peer hang
            together as far as the peer is consistent (the design effect of cluster sampling, Kish 1965).
        smooth: shape (E,): exit shares within the group, smoothed towards the configured pool.
        same: shape (G,): c0, the chance that two votes in the group have the same exit.
        spread: shape (G,): variance of an exit's share as one vote sees it, sum q^3 - c0^2.
    """

    shares: Floats
    voters: Floats
    effective: Floats
    smooth: Floats
    same: Floats
    spread: Floats


@dataclass(frozen=True, slots=True)
class Contrast:
    """One contrast over the relay: the mean over peers, so no heavy peer decides.

    Attributes:
        observed: mean share of same exits.
        chance: what independence gives.
        peers: peers that were tried.
        trials: pairs of votes, or trials.
        variance: of one peer's share, under independence.
        uncertainty: variance of `chance` itself.
    """

    observed: float
    chance: float
    peers: int
    trials: int
    variance: float
    uncertainty: float = 0.0

    @property
    def kappa(self) -> float | None:
        """Chance-corrected k: 0 is independent, 1 is always the same; None without trials."""
        if not self.peers or self.chance >= 1:
            return None
        return (self.observed - self.chance) / (1 - self.chance)

    @property
    def log_p(self) -> float:
        """Bound on the log-probability of so much agreement under independence."""
        return log_mean_tail(self.peers, self.observed - self.chance, self._variance)

    @property
    def score(self) -> float:
        """By how many standard errors the peers agree more than chance; less strict than `log_p`."""
        if not self.peers:
            return 0.0
        return (self.observed - self.chance) / float(np.sqrt(max(self._variance, 1e-12) / self.peers))

    def detectable(self, log_level: float) -> float:
        """The smallest k that would have been significant: the power of this contrast."""
        if self.chance >= 1:
            return float("inf")
        return detectable_mean(self.peers, self._variance, log_level) / (1 - self.chance)

    @property
    def _variance(self) -> float:
        return self.variance + self.peers * self.uncertainty


def consistency_of(columns: Columns, counts: Floats, totals: Floats) -> Floats:
    """C of each peer, shape (P,): the unbiased sum of v (v - 1) / (V (V - 1)); nan below two.

    Args:
        columns: whose pairs these are.
        counts: v, shape (n,): votes, or first exits of sessions.
        totals: V, shape (P,): their sums.
    """
    pairs = columns.per_peer(counts * (counts - 1))
    total = totals * (totals - 1)
    consistency: Floats = np.divide(pairs, total, out=np.full(columns.peers, np.nan), where=total > 0)
    return consistency


def population_of(columns: Columns, consistency: Floats) -> Population:
    """The population's exit shares, with c0 from pairs of votes of different peers."""
    groups = columns.groups
    own = columns.cell_votes[columns.cell]
    share = np.divide(columns.votes, own, out=np.zeros_like(own), where=own > 0)
    shares = columns.per_exit(share)
    within = sums(columns.group[columns.exit], share * share, groups)
    voters = columns.over_groups((columns.cell_votes > 0).astype(np.float64))
    crossed = sums(columns.group, shares * shares, groups) - within
    pairs = voters * np.maximum(voters - 1, 0)
    cross = np.divide(crossed, pairs, out=np.zeros(groups), where=pairs > 0)
    others = np.maximum(voters - 1, 0)
    same = np.maximum(
        (others * cross + PRIOR / columns.group_sizes) / (others + PRIOR), 1 / columns.group_sizes
    )
    effective = _effective_votes(columns, voters, _agreement(columns, consistency, same))
    mean = shares / np.maximum(voters, 1)[columns.group]
    smooth = (effective[columns.group] * mean + PRIOR / columns.group_sizes[columns.group]) / (
        effective + PRIOR
    )[columns.group]
    cubes = sums(columns.group, smooth**3, groups)
    return Population(shares, voters, effective, smooth, same, np.maximum(cubes - same * same, 0.0))


def _agreement(columns: Columns, consistency: Floats, same: Floats) -> float:
    """How much the votes of one peer hang together, 0 to 1; 1 where nothing is known."""
    judged = columns.judged
    if not judged.any():
        return 1.0
    chance = float(_vote_chance(columns, judged, same).mean())
    return float(np.clip((consistency[judged].mean() - chance) / max(1 - chance, 1e-9), 0.0, 1.0))


def _effective_votes(columns: Columns, voters: Floats, agreement: float) -> Floats:
    votes = columns.cell_votes
    single = np.divide(1 + (votes - 1) * agreement, votes, out=np.zeros_like(votes), where=votes > 0)
    spread = columns.over_groups(single)
    worth: Floats = np.divide(voters * voters, spread, out=np.zeros_like(voters), where=spread > 0)
    return worth


def _vote_chance(columns: Columns, who: Mask, same: Floats) -> Floats:
    """The chance of agreement of each peer of `who`, given how many of its votes fell in which group."""
    votes = columns.cell_votes
    met = columns.over_cells(votes * (votes - 1) * same[columns.cell_group])[who]
    total = columns.peer_votes[who]
    chance: Floats = met / (total * (total - 1))
    return chance


def pair_contrast(
    columns: Columns, population: Population, consistency: Floats, totals: Floats, who: Mask
) -> Contrast:
    """A contrast over all pairs of votes (or of first exits) of a peer, for peers of `who` with at least two.

    Args:
        columns: the counts.
        population: the chance.
        consistency: shape (P,), from `consistency_of`.
        totals: shape (P,), how many there are of each peer.
        who: shape (P,).
    """
    who = who & (totals > 1) & (columns.peer_votes > 1)
    total = totals[who]
    if not total.size:
        return Contrast(0.0, 0.0, 0, 0, 0.0)
    chance = float(_vote_chance(columns, who, population.same).mean())
    spread, single = _mean_spread(columns, population, who)
    variance = np.minimum((4 * (total - 2) * spread + 2 * single) / (total * (total - 1)), single)
    return Contrast(
        observed=float(consistency[who].mean()),
        chance=chance,
        peers=total.size,
        trials=int((total * (total - 1)).sum()) // 2,
        variance=float(variance.mean()),
        uncertainty=float(4 * spread / max(population.effective.sum(), 1.0)),
    )


def trial_contrast(
    columns: Columns, population: Population, tried: Floats, true: Floats, who: Mask
) -> Contrast:
    """A contrast that was counted as trials, over peers of `who` that have any.

    A trial compares with the most recent exit, so neighbouring trials of a peer share one; their covariance
    is the spread of the population.
    """
    who = who & (tried > 0)
    count = tried[who]
    if not count.size:
        return Contrast(0.0, 0.0, 0, 0, 0.0)
    spread, single = _mean_spread(columns, population, who)
    variance = np.minimum((single + 2 * spread) / count, single)
    return Contrast(
        observed=float((true[who] / count).mean()),
        chance=float(np.nan_to_num(columns.by_flows(population.same)[who], nan=population.same[0]).mean()),
        peers=count.size,
        trials=int(count.sum()),
        variance=float(variance.mean()),
        uncertainty=float(4 * spread / max(population.effective.sum(), 1.0)),
    )


def _mean_spread(columns: Columns, population: Population, who: Mask) -> tuple[float, float]:
    """Covariance of two comparisons that share a vote, and the variance of one, for these peers' groups."""
    spread, single = (
        float(np.nan_to_num(columns.by_flows(per_group)[who], nan=per_group[0]).mean())
        for per_group in (population.spread, population.same * (1 - population.same))
    )
    return spread, single
