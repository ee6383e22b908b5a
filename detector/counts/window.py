# SPDX-License-Identifier: Apache-2.0
"""The sliding window: the last so many panes of counts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.counts.columns import Columns, merge
from detector.counts.words import rows_of


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted in some span of time.

    Attributes:
        outcomes: shape (families, outcomes), int64: flows by what became of them.
        flows: by row << 32 | exit number.
        votes: likewise, the votes among them: four words of 16 bits, by class of flow.
        firsts: likewise, the flows that began a session.
        words: of rows, see `detector.counts.words`.
    """

    outcomes: NDArray[np.int64]
    flows: Columns = field(default_factory=Columns.empty)
    votes: Columns = field(default_factory=Columns.empty)
    firsts: Columns = field(default_factory=Columns.empty)
    words: Columns = field(default_factory=Columns.empty)

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Counts:
        """Nothing; `shape` is that of the outcomes."""
        return cls(np.zeros(shape, np.int64))

    @classmethod
    def total(cls, parts: list[Counts]) -> Counts:
        """The sum of at least one."""
        return cls(
            np.sum([part.outcomes for part in parts], axis=0),
            *(merge(list(columns)) for columns in zip(*(part.columns for part in parts), strict=True)),
        )

    @property
    def columns(self) -> tuple[Columns, ...]:
        """All that is kept by key."""
        return self.flows, self.votes, self.firsts, self.words


@dataclass(frozen=True, slots=True)
class Held:
    """What a window holds.

    Attributes:
        panes: those that are over, and the current one.
        pairs, trials: entries in all panes.
        oldest: seconds since the oldest pane with something in it began, None where there is none.
        size: bytes of the panes' columns.
    """

    panes: int
    pairs: int
    trials: int
    oldest: float | None
    size: int


class Window:
    """Panes of equal length, of which the last few are looked at together.

    Args:
        span: seconds that the window holds, at least.
        panes: parts that it moves by.
        shape: of the outcomes.
        now: seconds on a clock that only goes forward.
    """

    def __init__(self, span: float, panes: int, shape: tuple[int, int], now: float) -> None:
        self._length = span / panes
        self._nothing = Counts.none(shape)
        self._closed: deque[Counts] = deque(maxlen=panes)
        self._closed_total = self._nothing
        self._current = self._nothing
        self._since = self._begun = self._now = now

    @property
    def panes(self) -> list[Counts]:
        """The counts of each pane, oldest first; the last one is not over."""
        return [*self._closed, self._current]

    @property
    def seconds(self) -> float:
        """How long ago the oldest of its counts may have begun, when it was last turned."""
        kept = self._closed.maxlen or 0
        return min(self._now - self._begun, kept * self._length + self._now - self._since)

    def add(self, counts: Counts) -> None:
        """Add to the current pane."""
        self._current = Counts.total([self._current, counts])

    def turn(self, now: float) -> int:
        """Close the panes that are over; returns how many."""
        turned = 0
        self._now = now
        while now - self._since >= self._length:
            self._closed.append(self._current)
            self._current = self._nothing
            self._since += self._length
            turned += 1
        if turned:
            self._closed_total = Counts.total(list(self._closed))
        return turned

    def rows(self) -> NDArray[np.int64]:
        """The rows of which there is something in the window, each once or more often."""
        total = self.total()
        return np.concatenate([(total.flows.keys >> np.uint64(32)).astype(np.int64), rows_of(total.words)])

    def exits(self) -> NDArray[np.int64]:
        """The numbers of the exits of which there is something in the window, each once or more often."""
        return (self.total().flows.keys & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def held(self, now: float) -> Held:
        """What is in memory, at a time on the clock of `turn`."""
        panes = [*self._closed, self._current]
        filled = [age for age, pane in enumerate(reversed(panes)) if len(pane.flows)]
        columns = [part for pane in panes for part in pane.columns]
        return Held(
            len(panes),
            sum(len(pane.flows) for pane in panes),
            sum(len(pane.words) for pane in panes),
            now - self._since + max(filled) * self._length if filled else None,
            sum(part.keys.nbytes + part.counts.nbytes for part in columns),
        )

    def total(self) -> Counts:
        """Everything in the window."""
        return Counts.total([self._closed_total, self._current])
