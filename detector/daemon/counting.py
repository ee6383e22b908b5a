# SPDX-License-Identifier: Apache-2.0
"""From the kernel's tables to what was counted since the last look, by row of the roster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from detector.base.family import Family
from detector.base.flows import FLOW_CLASSES, LAGS
from detector.base.outcomes import Outcome
from detector.config.model import Tables
from detector.counts import words
from detector.counts.columns import Columns, merge
from detector.counts.roster import NOBODY, Exits, Roster
from detector.counts.window import Counts
from detector.kernel.control import Control
from detector.kernel.drain import (
    EVIDENCE,
    SLOT,
    Drained,
    Pairs,
    PairTables,
    clear_slots,
    end_sessions,
    read_evidence,
    read_outcomes,
    read_slots,
    widened,
)
from detector.kernel.tables import FAMILIES, possible_processors

SHAPE = (len(FAMILIES), len(Outcome))
_EXIT_BITS = np.uint64(32)
_TRUE = np.uint64(32)  # tried is in the lower half of a word, true in the upper one
_PANE_MASK = np.uint32((1 << 32 - len(FLOW_CLASSES)) - 1)
_CLASS_BITS = np.uint32(len(FLOW_CLASSES))


class KernelCounts:
    """Differences between two looks at the kernel's tables."""

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._maps, self._sizes = maps, sizes
        self.control = Control(maps)
        possible_processors()  # while files can be opened; it is kept
        self._tables = PairTables(maps, sizes, self.control)
        self._slots, self._evidence = np.zeros(0, SLOT), np.zeros(0, EVIDENCE)
        self._outcomes = np.zeros(SHAPE, np.int64)
        self.drained_rows = 0
        self._fullest = 0
        self._renumber = False

    def set_control(self, now: float, session_gap: float, pane: int) -> None:
        """Tell the kernel program the time, the gap that ends a session (both in seconds) and the pane."""
        self.control.set(now, session_gap, pane)

    def outcomes(self) -> dict[tuple[Family, Outcome], int]:
        """Flows by what became of them, since the start."""
        return {
            (family, outcome): int(self._outcomes[index, outcome])
            for index, family in enumerate(FAMILIES)
            for outcome in Outcome
        }

    def renumber_exits(self) -> None:
        """At the next drain, have the exits that are still used take numbers anew; the others give room."""
        self._renumber = True

    def drain(self) -> Drained:
        """Empty the kernel's table of pairs; what comes back has not been attributed yet."""
        drained = self._tables.drain(renumber=self._renumber)
        self._renumber = False
        self.drained_rows += len(drained)
        self._fullest = max(self._fullest, drained.blocks)
        return drained

    def exits_crowded(self) -> bool:
        """Whether most of the numbers that a family's exits can have are given."""
        return 4 * self._tables.exits > 3 * self._sizes.exits

    def take_fill(self) -> dict[str, int]:
        """By table: exits met, and the most blocks of pairs that a drain found since this was asked."""
        fullest, self._fullest = self._fullest, 0
        return {"pairs": fullest, "exits": self._tables.exits}

    def attribute(self, drained: Drained, roster: Roster, exits: Exits) -> Counts:
        """Put what was drained, and the growth of evidence and outcomes, under the rows of the roster.

        The sensor tells of a slot before the kernel counts for it, so after all messages are read each slot
        is known. Flows of one that is not are unattributed: they cost coverage, and do not just disappear.
        """
        numbers = exits.numbers(drained.exits)
        outcomes = self._outcome_growth()
        unattributed = _unattributed(drained.flows, roster, numbers, exits.families())
        outcomes[:, Outcome.COUNTED] -= unattributed
        outcomes[:, Outcome.UNATTRIBUTED] += unattributed
        flows, votes, firsts = (
            _pairs(kind, roster, numbers) for kind in (drained.flows, drained.votes, drained.firsts)
        )
        return Counts(outcomes, flows, votes, firsts, self._words(roster))

    def _words(self, roster: Roster) -> Columns:
        # Every slot that was ever looked at: the roster may be empty or shorter for a moment, and what a slot
        # has counted until now must not be taken for growth later.
        upto = max(roster.slots, len(self._slots))
        slots, evidence = read_slots(self._maps, upto), read_evidence(self._maps, upto)
        rows = roster.rows_of(np.arange(upto))
        parts = [
            *_of_slots(slots, _longer(self._slots, upto), rows),
            *_of_evidence(evidence, _longer(self._evidence, upto), rows),
            _of_port_blocks(evidence, slots, rows, self.control.pane),
        ]
        self._slots, self._evidence = slots, evidence
        return merge([Columns.empty(), *parts])

    def _outcome_growth(self) -> NDArray[np.int64]:
        now = np.zeros(SHAPE, np.int64)
        for (family, outcome), count in read_outcomes(self._maps).items():
            now[FAMILIES.index(family), outcome] = count
        growth = now - self._outcomes
        self._outcomes = now
        return growth

    def begin_sessions(self, slots: Iterable[int]) -> None:
        """Whoever is in these slots has come back: its next flow begins a session."""
        end_sessions(self._maps, slots, self.control)

    def release(self, slots: Iterable[int]) -> None:
        """Clear slots that nobody is counted for any more, so that they can be used again."""
        numbers = list(slots)
        clear_slots(self._maps, numbers)
        self._slots, self._evidence = self._slots.copy(), self._evidence.copy()
        looked_at = [slot for slot in numbers if slot < len(self._slots)]
        self._slots[looked_at] = np.zeros((), SLOT)
        self._evidence[looked_at] = np.zeros((), EVIDENCE)


def _longer(before: NDArray[np.void], length: int) -> NDArray[np.void]:
    longer = np.zeros(length, before.dtype)
    longer[: len(before)] = before
    return longer


def _of_slots(now: NDArray[np.void], before: NDArray[np.void], rows: NDArray[np.int64]) -> list[Columns]:
    """The growth of what a slot counts one by one."""
    growth = {name: now[name] - before[name] for name in ("sessions", "untranslated", "untracked", "refused")}
    named = {
        words.SESSIONS: growth["sessions"],
        words.UNTRANSLATED_GLOBAL: growth["untranslated"][:, 0],
        words.UNTRANSLATED_PRIVATE: growth["untranslated"][:, 1],
        words.UNTRACKED: growth["untracked"],
        words.REFUSED: growth["refused"],
    }
    return [_grown(rows, word, grown.astype(np.uint64)) for word, grown in named.items()]


def _of_evidence(now: NDArray[np.void], before: NDArray[np.void], rows: NDArray[np.int64]) -> list[Columns]:
    """The growth of evidence; all of it modulo 2^32, in which each packed count grows by less than 256."""
    moved = np.flatnonzero((now["votes"] != before["votes"]) | _returned(now, before))
    now, before, rows = now[moved], before[moved], rows[moved]
    votes = widened(now["vote_sandwiches"] - before["vote_sandwiches"]).reshape(
        len(rows), len(FLOW_CLASSES) * len(LAGS)
    )
    returns = widened(now["return_sandwiches"] - before["return_sandwiches"])
    lone = (now["lone_returns"] - before["lone_returns"]).astype(np.uint64)
    lone = lone & np.uint64(0xFFFF) | lone >> np.uint64(16) << _TRUE
    found = [
        _grown(rows, first + place, table[:, place])
        for first, table in (
            (words.VOTE_SANDWICHES, votes),
            (words.RETURN_SANDWICHES, returns),
            (words.LONE_RETURNS, lone),
        )
        for place in range(table.shape[1])
    ]
    for word, tried, true in (
        (words.SAME_PORT, "same_port_tried", "same_port_true"),
        (words.DESTINATION, "destination_tried", "destination_hit"),
    ):
        both = (now[tried] - before[tried]).astype(np.uint64)
        both |= (now[true] - before[true]).astype(np.uint64) << _TRUE
        found.append(_grown(rows, word, both))
    expected = now["destination_expected"] - before["destination_expected"]
    return [*found, _grown(rows, words.EXPECTED, expected)]


def _returned(now: NDArray[np.void], before: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whose returns or reuses there are more of."""
    returned = (now["return_sandwiches"] != before["return_sandwiches"]).any(axis=1)
    returned |= (now["lone_returns"] != before["lone_returns"]).any(axis=1)
    returned |= now["same_port_tried"] != before["same_port_tried"]
    moved: NDArray[np.bool_] = returned
    return moved


def _of_port_blocks(
    evidence: NDArray[np.void], slots: NDArray[np.void], rows: NDArray[np.int64], pane: int
) -> Columns:
    """The blocks of ports that were seen in this pane, each time that they are looked at."""
    current = slots["settled"] >> _CLASS_BITS == np.uint32(pane) & _PANE_MASK
    some = np.flatnonzero((evidence["port_blocks"] != 0) & current & (rows != NOBODY))
    seen = evidence["port_blocks"][some]
    at, bit = np.nonzero(seen[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1))
    keys = words.keys_of(rows[some][at], words.PORT_BLOCKS) + bit.astype(np.uint64)
    return Columns.of(keys, np.ones(len(keys), np.uint64))


def _grown(rows: NDArray[np.int64], word: int, growth: NDArray[np.uint64]) -> Columns:
    some = np.flatnonzero((growth != 0) & (rows != NOBODY))
    return Columns.of(words.keys_of(rows[some], word), growth[some])


def _pairs(kind: Pairs, roster: Roster, numbers: NDArray[np.uint64]) -> Columns:
    rows = roster.rows_of(kind.slot)
    keys = rows.astype(np.uint64)
    keys <<= _EXIT_BITS
    keys |= numbers[kind.exit]
    known = rows != NOBODY
    if known.all():
        return Columns.of(keys, kind.counts)
    return Columns.of(keys[known], kind.counts[known])


def _unattributed(
    flows: Pairs, roster: Roster, numbers: NDArray[np.uint64], families: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """By family, flows that were counted for slots which stand for nobody."""
    unknown = np.flatnonzero(roster.rows_of(flows.slot) == NOBODY)
    family = families[numbers[flows.exit[unknown]].astype(np.int64)]
    return np.bincount(family, flows.counts[unknown], len(FAMILIES)).astype(np.int64)
