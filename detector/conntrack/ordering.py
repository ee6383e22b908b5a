# SPDX-License-Identifier: Apache-2.0
"""From the order of files to the order of time, and which lines stand for flows.

Logs are printed newest first, files are given in the order of their names, several routers write into one.
Some hundred thousand flows are held back, so whatever is out of place by less is put in its place, a small
file as a whole. A long file that is newest first is read so: everything that is compared works both ways.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detector.conntrack.clocks import Seconds
from detector.conntrack.reader import Flows, Lines

HELD = 1 << 17
TOLERANCE = 60.0
"""Seconds by which times may go back without a word; processors and clocks do that much."""


class Selection:
    """Which lines stand for a flow each: where no line tells of a beginning, those that tell of an end.

    Args:
        lines: where flows are counted.
        held: ends that are kept until it is known.
    """

    def __init__(self, lines: Lines, held: int = HELD) -> None:
        self._lines = lines
        self._most = held
        self._ends: list[Flows] = []
        self._by_ends: bool | None = None  # not known yet

    def add(self, flows: Flows) -> Flows | None:
        """Those that count, of some more lines."""
        if self._by_ends is None and not flows.ends.all():
            self._by_ends = False
            self._drop()
        if self._by_ends is None:
            self._ends.append(flows)
            if sum(map(len, self._ends)) <= self._most:
                return None
            return self.finish()
        mine = flows.ends == self._by_ends
        if mine.all():
            return self._counted(flows)
        self._lines.other_events += int(np.count_nonzero(~mine))
        return self._counted(flows.take(mine))

    def finish(self) -> Flows | None:
        """Those that were held, when no more lines come."""
        held, self._ends = self._ends, []
        if not held:
            return None
        self._by_ends = True
        return self._counted(Flows.joined(held))

    @property
    def by_ends(self) -> bool:
        """Whether flows were told by their ends."""
        return bool(self._by_ends)

    def _drop(self) -> None:
        self._lines.other_events += sum(map(len, self._ends))
        self._ends = []

    def _counted(self, flows: Flows) -> Flows | None:
        if not len(flows):
            return None
        translated = flows.translated
        self._lines.flows += len(flows)
        self._lines.translated += int(np.count_nonzero(translated))
        self._lines.timed += int(np.count_nonzero(~np.isnan(flows.time[translated])))
        return flows


class Ordering:
    """Puts flows in the order of time.

    Args:
        held: how many are held back.

    Attributes:
        back: how often time went back by more than `TOLERANCE`, in the order in which the flows came.
        late: flows that came when later ones were gone on already.
    """

    def __init__(self, held: int = HELD) -> None:
        self._most = held
        self._parts: list[Flows] = []
        self._first_seen = self._last_seen = np.nan
        self._down = self._up = 0
        self._sign = 0.0
        self._gone = -np.inf
        self.back = 0
        self.late = 0

    @property
    def newest_first(self) -> bool:
        """Whether times mostly went back, and all in all."""
        return self._down > self._up and self._last_seen < self._first_seen

    def add(self, flows: Flows) -> Iterator[Flows]:
        """The flows that are in their places, when some more come."""
        self._watch(flows.time)
        self._parts.append(flows)
        if sum(map(len, self._parts)) > self._most:
            whole = self._ordered()
            half = len(whole) // 2
            self._parts = [whole.take(slice(half, None))]
            yield self._emitted(whole.take(slice(half)))

    def finish(self) -> Iterator[Flows]:
        """The rest."""
        if self._parts:
            whole = self._ordered()
            self._parts = []
            yield self._emitted(whole)

    def _watch(self, time: Seconds) -> None:
        timed = time[~np.isnan(time)]
        if not len(timed):
            return
        steps = np.diff(timed, prepend=timed[0] if np.isnan(self._last_seen) else self._last_seen)
        self._first_seen = float(timed[0]) if np.isnan(self._first_seen) else self._first_seen
        self._last_seen = float(timed[-1])
        self._down += int(np.count_nonzero(steps < 0))
        self._up += int(np.count_nonzero(steps > 0))
        self.back += int(np.count_nonzero(steps < -TOLERANCE))

    def _ordered(self) -> Flows:
        whole = Flows.joined(self._parts)
        if not self._down + self._up:
            return whole
        if not self._sign:
            # Once some are gone the direction stays; until then all are here, and go oldest first if they
            # fit.
            self._sign = -1.0 if self.newest_first and len(whole) > self._most else 1.0
        time = _filled(whole.time) * self._sign
        if (time[1:] >= time[:-1]).all():
            return whole
        return whole.take(np.argsort(time, kind="stable"))

    def _emitted(self, flows: Flows) -> Flows:
        time = flows.time * (self._sign or 1.0)
        time = time[~np.isnan(time)]
        self.late += int(np.count_nonzero(time < self._gone - TOLERANCE))
        self._gone = max(self._gone, float(time.max(initial=-np.inf)))
        return flows


def _filled(time: Seconds) -> Seconds:
    """With the time before, or else the first one, for flows without any."""
    timed = np.flatnonzero(~np.isnan(time))
    if not len(timed) or len(timed) == len(time):
        return time
    place = np.maximum(np.searchsorted(timed, np.arange(len(time)), side="right") - 1, 0)
    filled: Seconds = time[timed[place]]
    return filled
