# SPDX-License-Identifier: Apache-2.0
"""The time during which one mapping stands, and everything that was counted under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from detector.analysis.observation import PredictorTrials
from detector.base.family import Family
from detector.base.verdicts import Verdict
from detector.counts.observing import Observed, PoolRanges, observe
from detector.counts.roster import Exits, Roster
from detector.counts.window import Counts, Window


@dataclass(frozen=True, slots=True)
class SlotTrials:
    """One predictor for one rule: the sums, and the slots that it names, None where it does not hold."""

    sums: PredictorTrials
    slots: tuple[int, ...] | None

    def flags(self, slots: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which of these slots it names."""
        return None if self.slots is None else np.isin(slots, np.array(self.slots, np.int64))


@dataclass(slots=True)
class Epoch:
    """One mapping's evidence: it ends when the rules change, and nothing of it is carried over.

    Attributes:
        number: of the rules, 0 before they were read.
        since: when it began, in seconds since 1970.
        window: what was counted.
        pools: the exit pools.
        exclusive: families in which a rule maps peers to exits one to one.
        lasting: what the rules of each family by themselves deserve to be called.
        ambiguous: how many rules could not be understood.
        exits, roster: exits by number, peers by row.
        trials: by family, what the predictors of the tunnel address come to.
    """

    number: int
    since: float
    window: Window
    pools: Sequence[PoolRanges] = ()
    exclusive: frozenset[Family] = frozenset()
    lasting: frozenset[tuple[Family, Verdict]] = frozenset()
    ambiguous: int = 0
    exits: Exits = field(default_factory=Exits)
    roster: Roster = field(init=False)
    trials: Mapping[Family, Sequence[SlotTrials]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = Roster(self.exits)

    def forget(self) -> None:
        """Let go of who has left and of exits, unless there is evidence in the window."""
        self.roster.forget(self.window.rows())
        self.exits.forget(np.concatenate([self.window.exits(), self.roster.predicted_exits()]))

    def observed(self, counts: Counts | None = None) -> list[Observed]:
        """What the analysis is told of each family: the window as it is now, unless its counts are given."""
        counted = self.window.total() if counts is None else counts
        return [
            self._with_trials(
                observe(
                    family,
                    counted,
                    self.roster,
                    self.exits,
                    self.pools,
                    exclusive=family in self.exclusive,
                    panes=self.window.panes if counts is None else (),
                    seconds=self.window.seconds if counts is None else None,
                    rules_say=frozenset(verdict for one, verdict in self.lasting if one is family),
                )
            )
            for family in Family
        ]

    def _with_trials(self, one: Observed) -> Observed:
        told = self.trials.get(one.observation.family)
        if told is None:
            return one
        slots = self.roster.slots_of(one.rows)
        trials = tuple(replace(trial.sums, flagged=trial.flags(slots)) for trial in told)
        return replace(one, observation=replace(one.observation, predictor_trials=trials))
