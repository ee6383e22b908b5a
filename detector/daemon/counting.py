# SPDX-License-Identifier: Apache-2.0
"""From the kernel's tables to what was counted since the last look, by row of the roster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from detector.base.family import Family, family_of, unpack
from detector.config.model import Tables
from detector.counts.columns import Columns
from detector.counts.roster import NOBODY, Exits, Roster
from detector.counts.window import TRIAL_COUNTS, Counts
from detector.kernel.drain import SLOT, Drained, PairTables, clear_slot, read_outcomes, read_slots
from detector.kernel.tables import FAMILIES, Outcome, set_control

SHAPE = (len(FAMILIES), len(Outcome))
_EXIT_BITS = np.uint64(32)
# Kernel: expected hits in units of 2^-24; here 2^-16, so that a window's sum fits 32 bits.
_EXPECTED_SHIFT = np.uint64(8)
EXPECTED_UNIT = 1 << 16

_KERNEL_TRIALS = (*TRIAL_COUNTS[:-1], "destination_expected")


class KernelCounts:
    """Differences between two looks at the kernel's tables."""

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._maps = maps
        self._tables = PairTables(maps, sizes)
        self._slots = np.zeros(0, SLOT)
        self._outcomes = np.zeros(SHAPE, np.int64)
        self.drained_rows = 0
        self._fullest = 0

    def set_control(self, now: float, session_gap: float, pane: int) -> None:
        """Tell the kernel program the time, the gap that ends a session (both in seconds) and the pane."""
        set_control(self._maps, now, session_gap, pane)

    def outcomes(self) -> dict[tuple[Family, Outcome], int]:
        """Flows by what became of them, since the start."""
        return {
            (family, outcome): int(self._outcomes[index, outcome])
            for index, family in enumerate(FAMILIES)
            for outcome in Outcome
        }

    def drain(self) -> Drained:
        """Empty the kernel's table of pairs; what comes back has not been attributed yet."""
        drained = self._tables.drain()
        self.drained_rows += len(drained)
        self._fullest = max(self._fullest, drained.blocks)
        return drained

    def take_fill(self) -> dict[str, int]:
        """By table: exits met, and the most blocks of pairs that a drain found since this was asked."""
        fullest, self._fullest = self._fullest, 0
        return {"pairs": fullest, "exits": self._tables.exits}

    def attribute(self, drained: Drained, roster: Roster, exits: Exits) -> Counts:
        """Put what was drained, and the growth of trials and outcomes, under the rows of the roster.

        The sensor tells of a slot before the kernel counts for it, so after all messages are read each slot
        is known. Flows of one that is not are unattributed: they cost coverage, and do not just disappear.
        """
        rows = roster.rows_of(drained.slot)
        outcomes, unattributed = self._outcome_growth(), _unattributed(drained, rows)
        outcomes[:, Outcome.COUNTED] -= unattributed
        outcomes[:, Outcome.UNATTRIBUTED] += unattributed
        return Counts(_pairs(drained, rows, exits), self._trials(roster), outcomes)

    def _trials(self, roster: Roster) -> Columns:
        # Every slot that was ever looked at: the roster may be empty or shorter for a moment, and what a slot
        # has counted until now must not be taken for growth later.
        now = read_slots(self._maps, max(roster.slots, len(self._slots)))
        before = np.zeros(len(now), SLOT)
        before[: len(self._slots)] = self._slots
        self._slots = now
        growth = np.stack([now[name] - before[name] for name in _KERNEL_TRIALS[:-1]], axis=1)
        expected = (now["destination_expected"] - before["destination_expected"]) >> _EXPECTED_SHIFT
        counts = np.concatenate([growth, expected.astype(np.uint32)[:, None]], axis=1)
        rows = roster.rows_of(np.arange(len(now)))
        grown = (rows != NOBODY) & growth.any(axis=1)
        return Columns.of(rows[grown].astype(np.uint64), counts[grown])

    def _outcome_growth(self) -> NDArray[np.int64]:
        now = np.zeros(SHAPE, np.int64)
        for (family, outcome), count in read_outcomes(self._maps).items():
            now[FAMILIES.index(family), outcome] = count
        growth = now - self._outcomes
        self._outcomes = now
        return growth

    def release(self, slots: Iterable[int]) -> None:
        """Clear slots that nobody is counted for any more, so that they can be used again."""
        self._slots = self._slots.copy()
        for slot in slots:
            clear_slot(self._maps, slot)
            if slot < len(self._slots):
                self._slots[slot] = np.zeros((), SLOT)


def _pairs(drained: Drained, rows: NDArray[np.int64], exits: Exits) -> Columns:
    number = exits.numbers(drained.exits)
    keys = rows.astype(np.uint64)
    keys <<= _EXIT_BITS
    keys |= number[drained.exit]
    known = rows != NOBODY
    if known.all():
        return Columns.of(keys, drained.counts)
    return Columns.of(keys[known], drained.counts[known])


def _unattributed(drained: Drained, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """By family, flows that were counted for slots which stand for nobody."""
    unknown = np.flatnonzero(rows == NOBODY)
    family = np.array([FAMILIES.index(family_of(unpack(one.tobytes()))) for one in drained.exits], np.intp)
    flows = drained.counts[unknown, 0]
    return np.bincount(family[drained.exit[unknown]], flows, len(FAMILIES)).astype(np.int64)
