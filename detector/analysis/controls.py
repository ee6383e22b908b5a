# SPDX-License-Identifier: Apache-2.0
"""What the sandwiches say: is it the peer that keeps its exit, or the site, the clock, the page?

In a sandwich another peer's flow lies between two of the peer's own, in the same place. Where the peer has
nothing to do with it, the other's exit matches at least as often as its own. So trials in which the own one
alone matches (b), against those in which the other's alone does (c), are a sign test that needs no assumption
on the exits; where peers are of several groups of exits, its chance is what the groups give.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from detector.analysis.columns import Columns, Mask
from detector.analysis.consistency import Population
from detector.analysis.numerics import Floats
from detector.analysis.observation import Observation, Sandwiches
from detector.analysis.panes import Far, far_agreement
from detector.base.flows import LAGS, FlowClass, Lag

LOG_NEEDED = float(np.log(500))  # of an e-value on the whole relay
SIGMAS = 3.5
ENOUGH_PERSONS = 3
_BETTER = np.array([0.1, 0.3, 0.6, 0.9])
_KEEPS_OVER_SESSIONS = 0.8  # of the agreement at short lags: less, and it may be kept for a time only
_KEEPS_OVER_PANES = 0.5
_LEAST_TRIALS = 8.0


def sign_evidence(mine: Floats | float, other: Floats | float, even: float = 0.5) -> Floats:
    """Log of an e-value that `mine` wins more often than chance, elementwise.

    A mixture of likelihood ratios against probabilities above `even`; under "at most `even`" its mean is at
    most one, at whatever moment one looks.
    """
    better = even + (1 - even) * _BETTER
    ratios = np.asarray(mine)[..., None] * np.log(better / even)
    ratios = ratios + np.asarray(other)[..., None] * np.log((1 - better) / (1 - even))
    log_e: Floats = np.logaddexp.reduce(ratios, axis=-1) - np.log(len(_BETTER))
    return log_e


@dataclass(frozen=True, slots=True)
class Excess:
    """How much oftener the own exit matches than the other's, over some peers and lags.

    Attributes:
        share: (mine - other) / tried, less what the groups of exits give.
        error: its standard error, peers being the units.
        trials: how many.
        mine, other: of one alone.
        same: share of trials in which the own exit matched.
    """

    share: float
    error: float
    trials: float
    mine: float
    other: float
    same: float


class Lasts(Enum):
    """Whether exits that are kept are kept for long."""

    LONG = "long"
    PARTLY = "partly"  # some for long, some for a session
    SHORT = "short"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Controls:
    """The sandwiches of one family, those of networks left out.

    Attributes:
        votes: tried, both, mine, other, shape (4, P, classes, lags); None where nobody counts them.
        returns: likewise, shape (4, P, lags).
        even_votes, even_returns: chance that a trial where one alone matches is for the peer itself.
        between: by how much the own exit matches oftener, only because peers are of several groups.
    """

    votes: Floats | None
    returns: Floats | None
    even: float
    between: float

    def vote_evidence(self, who: Mask, flow_class: FlowClass | None = None) -> bool:
        """Whether the votes of these peers agree with their own ones and not with everybody's."""
        if self.votes is None:
            return True
        chosen = self.votes if flow_class is None else self.votes[:, :, flow_class : flow_class + 1]
        return self._shown(chosen.sum(axis=(2, 3)), who)

    def return_evidence(self, who: Mask) -> bool:
        """Whether these peers meet their own exit again where others meet another."""
        if self.returns is None:
            return True
        return self._shown(self.returns.sum(axis=2), who)

    def _shown(self, counts: Floats, who: Mask) -> bool:
        _, _, mine, other = counts[:, who]
        gain = mine - other
        persons = int(np.count_nonzero(gain > 0))
        if persons < min(ENOUGH_PERSONS, max(int(np.count_nonzero(who)), 2)):
            return False
        # Two peers may have chosen their flows: what is shown has to be shown without the best two.
        rest = np.argsort(-gain, kind="stable")[2 if persons > ENOUGH_PERSONS else 0 :]
        return float(sign_evidence(mine[rest].sum(), other[rest].sum(), self.even)) >= LOG_NEEDED

    def vote_excess(self, who: Mask, lags: tuple[Lag, ...], flow_class: FlowClass | None = None) -> Excess:
        """The excess of votes at these lags."""
        assert self.votes is not None  # noqa: S101
        chosen = self.votes if flow_class is None else self.votes[:, :, flow_class : flow_class + 1]
        return self._excess(chosen[:, who][..., list(lags)].sum(axis=(2, 3)))

    def return_excess(self, who: Mask, lags: tuple[Lag, ...] = LAGS) -> Excess:
        """The excess of returns at these lags."""
        assert self.returns is not None  # noqa: S101
        return self._excess(self.returns[:, who][..., list(lags)].sum(axis=2))

    def _excess(self, counts: Floats) -> Excess:
        tried, both, mine, other = counts
        total = float(tried.sum())
        if not total:
            return Excess(0.0, np.inf, 0.0, 0.0, 0.0, 0.0)
        share = float((mine - other).sum()) / total
        left = mine - other - share * tried
        error = float(np.sqrt((left * left).sum() + 1.0)) / total
        same = float((both + mine).sum()) / total
        return Excess(share - self.between, error, total, float(mine.sum()), float(other.sum()), same)

    def drift(self) -> bool:
        """Whether everybody's exits hang together in time, so that neighbours in time agree by themselves."""
        if self.votes is None:
            return False
        tried, _, mine, other = self.votes.sum(axis=(1, 2, 3))
        return bool(other > mine and float(sign_evidence(other, mine, 0.5)) >= LOG_NEEDED and tried > 0)


def controls_of(observation: Observation, columns: Columns, population: Population) -> Controls:
    """The controls in an observation."""
    same = np.nan_to_num(columns.by_flows(population.same), nan=1.0)
    active = columns.peer_flows > 0
    within = float(same[active].mean()) if active.any() else 1.0
    crossed = _crossed(columns, population)
    even = 0.5
    if crossed < within:
        mine, other = within * (1 - crossed), crossed * (1 - within)
        even = mine / (mine + other) if mine + other > 0 else 0.5
    return Controls(
        _counts(observation.vote_sandwiches, columns.narrow),
        _counts(observation.return_sandwiches, columns.narrow),
        min(even, 0.999),
        max(within - crossed, 0.0),
    )


def _crossed(columns: Columns, population: Population) -> float:
    """How often votes of two peers meet, whatever groups they are of; infinite where there is one group."""
    weight = columns.over_groups(columns.cell_flows)
    total = float(weight.sum())
    if not total or np.count_nonzero(weight) <= 1:
        return float("inf")
    share = weight / total
    return float((share * share * population.same).sum())


def _counts(sandwiches: Sandwiches | None, narrow: Mask) -> Floats | None:
    if sandwiches is None:
        return None
    counts = np.stack([sandwiches.tried, sandwiches.both, sandwiches.mine, sandwiches.other])
    counted: Floats = counts.astype(np.float64)
    counted[:, ~narrow] = 0
    return counted


SHORT_LAGS = (Lag.DRAIN, Lag.PANE)


def votes_last(
    controls: Controls, observation: Observation, who: Mask, flow_class: FlowClass | None
) -> tuple[Lasts, Far | None]:
    """Whether these peers, who agree with themselves, do so over long lags; and what lies far apart says."""
    far = None
    if observation.panes is not None and flow_class is None:
        far = far_agreement(observation.panes, who)
    if controls.votes is None:
        return Lasts.OPEN, far
    short = controls.vote_excess(who, SHORT_LAGS, flow_class)
    level = short.share if short.trials >= _LEAST_TRIALS else 1.0
    if far is not None and far.peers >= ENOUGH_PERSONS:
        shown = far.kappa > SIGMAS * far.error
        less = far.kappa + SIGMAS * far.error < _KEEPS_OVER_PANES * level
        if shown:
            return (Lasts.PARTLY if less else Lasts.LONG), far
        if less:
            return Lasts.SHORT, far
    return _over_sessions(controls.vote_excess(who, (Lag.SESSIONS,), flow_class), level), far


def returns_last(controls: Controls, who: Mask) -> Lasts:
    """Whether sites meet the exits of these peers again over long lags."""
    if controls.returns is None:
        return Lasts.OPEN
    short = controls.return_excess(who, SHORT_LAGS)
    level = short.share if short.trials >= _LEAST_TRIALS and short.share > 0 else 1.0
    over = _over_sessions(controls.return_excess(who, (Lag.SESSIONS,)), level)
    if over is not Lasts.OPEN:
        return over
    panes = _over_sessions(controls.return_excess(who, (Lag.PANES,)), level)
    return Lasts.LONG if panes is Lasts.LONG else Lasts.OPEN


def _over_sessions(long: Excess, level: float) -> Lasts:
    if long.trials < _LEAST_TRIALS or level <= 0:
        return Lasts.OPEN
    if long.share + SIGMAS * long.error < _KEEPS_OVER_PANES * level:
        return Lasts.SHORT
    surely = float(sign_evidence(long.mine, long.other)) >= LOG_NEEDED
    if surely and long.share >= _KEEPS_OVER_SESSIONS * level:
        return Lasts.LONG
    return Lasts.OPEN
