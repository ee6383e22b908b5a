# SPDX-License-Identifier: Apache-2.0
"""The time during which one mapping stands, and everything that was counted under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from detector.base.family import Family
from detector.base.verdicts import Verdict
from detector.counts.observing import Observed, PoolRanges, observe
from detector.counts.roster import Exits, Roster
from detector.counts.window import Counts, Window


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
            for family in Family
        ]
