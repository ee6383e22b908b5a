# SPDX-License-Identifier: Apache-2.0
"""Reading the counts out of the kernel into columns, without losing any and without a call of bpf()."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.base.family import Family
from detector.base.flows import FLOW_CLASSES, LAGS
from detector.config.model import Tables
from detector.kernel import mapped, tables
from detector.kernel.control import Control
from detector.kernel.tables import EXITS_IN_BLOCK, FAMILIES, OUTCOME_ROOM, Outcome

# Counts in the kernel: of a slot (`owner` is slot + 1) and the exits with these six numbers.
BLOCK = np.dtype([("group", "<u4"), ("owner", "<u4"), ("count", "<u4", (EXITS_IN_BLOCK,))])
# In `owner`: the counts are votes (packed by class) or first flows of sessions; the exits are of IPv6.
VOTES, FIRSTS, IPV6_EXITS = np.uint32(1 << 31), np.uint32(1 << 30), np.uint32(1 << 29)
_OWNER = np.uint32((1 << 29) - 1)
EXIT = np.dtype("V16")
_COUNTER = np.dtype(np.uint64)
_EXIT_LINE_SIZE = 64
_PART = 1 << 20  # bytes of a table that are read at once
_CLASSES, _LAGS = len(FLOW_CLASSES), len(LAGS)

SLOT = np.dtype(
    [
        ("generation", "<u4"),
        ("last_flow", "<u4"),
        ("sessions", "<u4"),
        ("settled", "<u4"),
        ("looked", "u1", (_CLASSES,)),
        ("votes", "u1", (_CLASSES,)),
        ("returns", "u1", (_CLASSES,)),
        ("reuses", "u1", (_CLASSES,)),
        ("exits_named", "<u4"),
        ("blocks", "<u4"),
        ("refused", "<u4"),
        ("untranslated", "<u4", (2,)),
        ("untracked", "<u4"),
        ("spare", "<u4", (2,)),
    ]
)
EVIDENCE = np.dtype(
    [
        ("vote_sandwiches", "<u4", (_CLASSES, _LAGS)),
        ("last_vote", "<u8", (_CLASSES,)),
        ("return_sandwiches", "<u4", (_LAGS,)),
        ("lone_returns", "<u4", (_LAGS,)),
        ("port_blocks", "<u8"),
        ("destination_expected", "<u8"),
        ("destination_tried", "<u4"),
        ("destination_hit", "<u4"),
        ("same_port_tried", "<u4"),
        ("same_port_true", "<u4"),
        ("last_exit", "V16"),
        ("votes", "<u4"),
        ("spare", "<u4", (3,)),
    ]
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """One kind of count by slot and exit; rows of one slot and exit add up.

    Attributes:
        slot: shape (n,), uint32.
        exit: shape (n,), int32: index into the exits of what was drained.
        counts: shape (n,), uint64.
    """

    slot: NDArray[np.uint32]
    exit: NDArray[np.int32]
    counts: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.slot)


@dataclass(frozen=True, slots=True)
class Drained:
    """What was counted since the last drain.

    Attributes:
        flows: of each slot and exit.
        votes: the votes among them: four words of 16 bits, by class, in one.
        firsts: those that began a session.
        exits: shape (m,), `EXIT`: those that were met, each as 16 bytes.
        blocks: how many of the table's were in use.
    """

    flows: Pairs
    votes: Pairs
    firsts: Pairs
    exits: NDArray[np.void]
    blocks: int = 0

    def __len__(self) -> int:
        return len(self.flows)


class PairTables:
    """The two halves of the table of pairs, of which the kernel writes one while the other is read."""

    def __init__(self, maps: Mapping[str, int], sizes: Tables, control: Control) -> None:
        self._maps, self._sizes, self._control = maps, sizes, control
        self._half = tables.blocks_stride(sizes) * BLOCK.itemsize
        self._bytes = tables.blocks(sizes) * BLOCK.itemsize

    @property
    def exits(self) -> int:
        """How many exits have a number of their own, in the family that has more of them."""
        families = len(FAMILIES)
        return int(
            _copied(self._maps["exits_met"], families, _COUNTER, self._control.exits_half * families).max()
        )

    def drain(self, *, renumber: bool = False) -> Drained:
        """Swap the halves, then read and clear the one that was written.

        Args:
            renumber: begin the numbers of the exits anew, so that those that are no longer used give room.
        """
        pairs, exits = self._control.pairs_half, self._control.exits_half
        if renumber:
            self._empty_exits(1 - exits)
        self._control.swap(exits=renumber)
        taken = _emptied(self._maps["pairs"], pairs * self._half, self._bytes)
        kinds = [rows(taken[mask]) for mask in _kinds(taken["owner"])]
        numbers = tables.exit_numbers(self._sizes)
        place = [family.astype(np.int64) * numbers + number for _, family, number, _ in kinds]
        met = np.zeros(len(FAMILIES) * numbers, np.bool_)
        for one in place:
            met[one] = True
        index = np.cumsum(met, dtype=np.int32) - np.int32(1)
        flows, votes, firsts = (
            Pairs(slot, index[at], counts) for (slot, _, _, counts), at in zip(kinds, place, strict=True)
        )
        return Drained(flows, _by_class(votes), firsts, self._named(exits, met), len(taken))

    def _named(self, half: int, met: NDArray[np.bool_]) -> NDArray[np.void]:
        """The exits with these numbers; each was written before anything was counted for it."""
        found = np.flatnonzero(met)
        if not len(found):
            return np.empty(0, EXIT)
        return _copied(self._maps["exits"], int(found[-1]) + 1, EXIT, half * len(met))[found]

    def _empty_exits(self, half: int) -> None:
        """Make the half that is not used ready."""
        families, numbers = len(FAMILIES), tables.exit_numbers(self._sizes)
        for name, size in (
            ("exit_lines", families * tables.exit_lines(self._sizes) * _EXIT_LINE_SIZE),
            ("exits", families * numbers * EXIT.itemsize),
            ("exits_met", families * 8),
        ):
            with mapped.opened(self._maps[name], half * size, size) as memory:
                memory[:size] = bytes(size)


Rows = tuple[NDArray[np.uint32], NDArray[np.bool_], NDArray[np.uint32], NDArray[np.uint64]]


def _emptied(table: int, start: int, size: int) -> NDArray[np.void]:
    """The blocks of a part of a table that were in use; it is empty afterwards.

    Part by part, and mapped for that moment alone: the tables are not part of our resident memory.
    """
    parts = [np.empty(0, BLOCK)]
    for offset in range(0, size, _PART):
        length = min(_PART, size - offset)
        with mapped.opened(table, start + offset, length) as memory:
            parts.append(_taken(memory[:length]))
    return np.concatenate(parts)


def _taken(memory: memoryview) -> NDArray[np.void]:
    """The blocks of a part of a table that are in use, which are cleared."""
    part = np.frombuffer(memory, BLOCK)
    found = np.flatnonzero(part["owner"])
    taken: NDArray[np.void] = part[found]
    part[found] = np.zeros((), BLOCK)
    return taken


def _kinds(owner: NDArray[np.uint32]) -> tuple[NDArray[np.bool_], ...]:
    """Which blocks are of flows, of votes, of first flows."""
    votes, firsts = owner & VOTES != 0, owner & FIRSTS != 0
    return ~(votes | firsts), votes, firsts


def rows(taken: NDArray[np.void]) -> Rows:
    """What `BLOCK` of one kind hold: slots, whether IPv6, numbers of exits, and counts; shape (n,) each."""
    block, place = np.nonzero(taken["count"])
    owner = taken["owner"][block]
    number = taken["group"][block] * np.uint32(EXITS_IN_BLOCK) + place.astype(np.uint32)
    slot = (owner & _OWNER) - np.uint32(1)
    return slot, owner & IPV6_EXITS != 0, number, taken["count"][block, place].astype(np.uint64)


def _by_class(votes: Pairs) -> Pairs:
    return Pairs(votes.slot, votes.exit, widened(votes.counts))


def widened(packed: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Four bytes in a word of 32 bits as four words of 16 bits in one of 64, so that they can be added up."""
    wide = packed.astype(np.uint64)
    return sum(
        ((wide >> np.uint64(8 * place) & np.uint64(0xFF)) << np.uint64(16 * place) for place in range(4)),
        np.zeros(wide.shape, np.uint64),
    )


def read_slots(maps: Mapping[str, int], upto: int) -> NDArray[np.void]:
    """The states of slots 0..upto-1 as `SLOT`."""
    return _copied(maps["slots"], upto, SLOT)


def read_evidence(maps: Mapping[str, int], upto: int) -> NDArray[np.void]:
    """The evidence of slots 0..upto-1 as `EVIDENCE`; most of it only grows, so take differences."""
    return _copied(maps["evidences"], upto, EVIDENCE)


def _copied(
    table: int, count: int, dtype: np.dtype[np.void] | np.dtype[np.uint64], start: int = 0
) -> NDArray[Any]:
    """A copy of some values of an array, from one on."""
    if not count:
        return np.empty(0, dtype)
    with mapped.opened(table, start * dtype.itemsize, count * dtype.itemsize) as memory:
        return np.frombuffer(memory, dtype, count).copy()


def clear_slots(maps: Mapping[str, int], numbers: Iterable[int]) -> None:
    """Forget what is known of slots before they stand for other peers."""
    for number in numbers:
        with mapped.opened(maps["slots"], number * SLOT.itemsize, SLOT.itemsize) as memory:
            slot = np.frombuffer(memory, SLOT, 1)
            empty = np.zeros(1, SLOT)
            empty["generation"] = slot["generation"] + np.uint32(1)
            slot[:] = empty
            del slot
        with mapped.opened(maps["evidences"], number * EVIDENCE.itemsize, EVIDENCE.itemsize) as memory:
            memory[: EVIDENCE.itemsize] = bytes(EVIDENCE.itemsize)


def end_sessions(maps: Mapping[str, int], numbers: Iterable[int], control: Control) -> None:
    """Have the next flow of these slots begin a session, whenever it comes."""
    for number in numbers:
        with mapped.opened(maps["slots"], number * SLOT.itemsize, SLOT.itemsize) as memory:
            slot = np.frombuffer(memory, SLOT, 1)
            slot["last_flow"] = np.uint32(control.before_sessions)
            del slot


def read_outcomes(maps: Mapping[str, int]) -> dict[tuple[Family, Outcome], int]:
    """How many flows had each outcome since the start, over all processors."""
    processors = tables.possible_processors()
    counters = _copied(maps["outcomes"], OUTCOME_ROOM * processors, _COUNTER)
    totals = counters.reshape(processors, OUTCOME_ROOM).sum(axis=0)
    return {
        (family, outcome): int(totals[outcome * len(FAMILIES) + index])
        for outcome in Outcome
        for index, family in enumerate(FAMILIES)
    }
