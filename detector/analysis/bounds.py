# SPDX-License-Identifier: Apache-2.0
"""How large a leak the evidence could have missed, and how much more of it would leave a small one only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detector.analysis.columns import VOTES_TO_JUDGE
from detector.analysis.evalues import FALSE_DISCOVERIES, pinned_evidence_at_most
from detector.analysis.evidence import LOG_LEVEL, Evidence
from detector.analysis.numerics import Floats, detectable_mean

LARGEST_MISSED = 0.05  # of the peers: "unlinkable" says that a larger leak would have shown
_SURELY = 0.05  # chance that it would not have shown, all the same
_GROWTHS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 24.0, 48.0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest share of the peers that may leak unseen, 0 to 1.

    Attributes:
        votes: of a leak to any destination.
        returns: of a leak to the same destination.
        growth: by which factor the evidence has to grow until both are small; None where that is far off.
    """

    votes: float
    returns: float
    growth: float | None

    @property
    def largest(self) -> float:
        """Of both."""
        return max(self.votes, self.returns)


def bounds_of(evidence: Evidence) -> Bounds:
    """The bounds of an observation's evidence."""
    votes, returns = _votes(evidence, 1.0), _returns(evidence, 1.0)
    growth: float | None = 1.0
    if max(votes, returns) > LARGEST_MISSED:
        growth = next(
            (
                more
                for more in _GROWTHS
                if max(_votes(evidence, more), _returns(evidence, more)) <= LARGEST_MISSED
            ),
            None,
        )
    return Bounds(votes, returns, growth)


def _votes(evidence: Evidence, growth: float) -> float:
    columns, population = evidence.columns, evidence.population
    present = int(np.count_nonzero((columns.peer_flows > 0) & columns.narrow))
    if growth > 1:
        columns = columns.with_votes(np.floor(columns.votes * growth))
    possible = pinned_evidence_at_most(columns, population)
    if evidence.drift and evidence.controls.votes is not None:
        return _against_controls(evidence, growth)
    by_peer = _missed(possible[columns.peer_votes >= VOTES_TO_JUDGE], present)
    together = evidence.trimmed
    by_mean = detectable_mean(together.peers, together.variance / growth, LOG_LEVEL) / max(
        1 - together.chance, 1e-9
    )
    return min(by_peer, by_mean if together.peers else 1.0, 1.0)


def _against_controls(evidence: Evidence, growth: float) -> float:
    """Where everybody's exits move together: in trials where the other's exit was another one."""
    assert evidence.controls.votes is not None  # noqa: S101
    tried, both, _, other = evidence.controls.votes.sum(axis=(2, 3))
    free = np.minimum(tried - both - other, 8.0).sum() * growth
    chance = float(np.clip(evidence.any.chance, 0.0, 0.999))
    return float(min(detectable_mean(free, chance * (1 - chance), LOG_LEVEL) / (1 - chance), 1.0))


def _returns(evidence: Evidence, growth: float) -> float:
    again = evidence.same_destination
    if not again.peers:
        return 1.0
    possible = evidence.log_repeats_possible
    if growth > 1:
        finite = np.isfinite(possible)
        possible = np.where(finite, possible, 0.0) * growth
        possible[~finite] = -np.inf
    by_peer = _missed(possible[evidence.repeats >= 0], int(np.count_nonzero(evidence.repeats >= 0)))
    if again.chance >= 1:
        return 0.0  # one exit for everybody at each site
    variance = again.variance / growth + again.peers * again.uncertainty
    return min(by_peer, detectable_mean(again.peers, variance, LOG_LEVEL) / (1 - again.chance), 1.0)


def _missed(possible: Floats, among: int) -> float:
    """The largest share of `among` peers that could leak without one of them being named."""
    if not among:
        return 1.0
    able = float(np.count_nonzero(possible >= math.log(among / FALSE_DISCOVERIES))) / among
    if able <= 0:
        return 1.0
    needed = 1 if able >= 1 - _SURELY else math.ceil(math.log(_SURELY) / math.log1p(-able))
    return min((needed - 1) / among, 1.0)
