# SPDX-License-Identifier: Apache-2.0
"""Reading the counts out of the kernel into columns, without losing any."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.base.family import Family
from detector.config.model import Tables
from detector.kernel import bpf
from detector.kernel.tables import EXITS_IN_BLOCK, FAMILIES, SLOT_SIZE, Outcome, blocks

_KEY = struct.Struct("<I")

# Counts in the kernel: of a slot (`owner` is slot + 1) and the exits with these six numbers.
BLOCK = np.dtype([("group", "<u4"), ("owner", "<u4"), ("count", "<u4", (EXITS_IN_BLOCK,))])
VOTES_FIRSTS = np.uint32(1 << 31)  # in `owner`: the counts are votes, and in their upper half session_starts
COUNTS = ("flows", "votes", "session_starts")
EXIT = np.dtype("V16")
_HALF, _HALF_MASK = np.uint32(16), np.uint32(0xFFFF)
_PART = 1 << 20  # bytes of a table that are read at once
SLOT = np.dtype(
    [
        ("destination_expected", "<u8"),
        ("pane", "<u4"),
        ("measured", "<u4"),
        ("last_flow", "<u4"),
        ("sessions", "<u4"),
        ("same_destination_tried", "<u4"),
        ("same_destination_true", "<u4"),
        ("same_port_tried", "<u4"),
        ("same_port_true", "<u4"),
        ("destination_tried", "<u4"),
        ("destination_hit", "<u4"),
        ("generation", "<u4"),
        ("spare", "<u4", (3,)),
    ]
)


@dataclass(frozen=True, slots=True)
class Drained:
    """What was counted since the last drain: n rows, m exits. Rows of one slot and exit add up.

    Attributes:
        slot: shape (n,), uint32.
        exit: shape (n,), int32: index into `exits`.
        exits: shape (m,), `EXIT`: those that were met, each as 16 bytes.
        counts: shape (n, 3), uint32: `COUNTS`.
        blocks: how many of the table's were in use.
    """

    slot: NDArray[np.uint32]
    exit: NDArray[np.int32]
    exits: NDArray[np.void]
    counts: NDArray[np.uint32]
    blocks: int = 0

    def __len__(self) -> int:
        return len(self.slot)


class PairTables:
    """The two tables of pairs, of which the kernel writes one while the other is read."""

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._current = maps["pairs"]
        self._written, self._idle = maps["pairs_a"], maps["pairs_b"]
        self._bytes = blocks(sizes) * BLOCK.itemsize
        self._named = maps["exits"]
        self._exits = np.empty(0, EXIT)

    @property
    def exits(self) -> int:
        """How many exits have been met."""
        return len(self._exits)

    def drain(self) -> Drained:
        """Swap the tables, then read and clear the one that was written.

        Changing the map of maps returns after every running program has ended (``maybe_wait_bpf_programs``
        in the kernel), so nothing is added to a table while it is read.
        """
        bpf.update(self._current, _KEY.pack(0), _KEY.pack(self._idle))
        self._written, self._idle = self._idle, self._written
        used, (slot, number, counts) = _emptied(self._idle, self._bytes)
        times = np.bincount(number)
        if len(times) > len(self._exits):
            # Each was written before anything was counted for it.
            self._exits = _mapped(self._named, len(times), EXIT)
        met = np.flatnonzero(times)
        index = np.zeros(len(times), np.int32)
        index[met] = np.arange(len(met), dtype=np.int32)
        return Drained(slot, index[number], self._exits[met], counts, used)


Rows = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]


def _emptied(table: int, size: int) -> tuple[int, Rows]:
    """How many blocks of a table of so many bytes were in use, and their rows; it is empty afterwards.

    Part by part, and mapped for that moment alone: the tables are not part of our resident memory.
    """
    parts, used = [rows(np.empty(0, BLOCK))], 0
    for start in range(0, size, _PART):
        with mmap.mmap(table, min(_PART, size - start), offset=start) as memory:
            taken = _taken(memory)
        if len(taken):
            parts.append(rows(taken))
            used += len(taken)
    slots, numbers, counts = zip(*parts, strict=True)
    return used, (np.concatenate(slots), np.concatenate(numbers), np.concatenate(counts))


def _taken(memory: mmap.mmap) -> NDArray[np.void]:
    """The blocks of a part of a table that are in use, which are cleared."""
    part = np.frombuffer(memory, BLOCK)
    found = np.flatnonzero(part["owner"])
    taken: NDArray[np.void] = part[found]
    part[found] = np.zeros((), BLOCK)
    return taken  # `part` is gone by then: the mapping cannot be closed while it is looked at


def rows(taken: NDArray[np.void]) -> Rows:
    """What `BLOCK` hold: slots and numbers of exits, shape (n,), and `COUNTS`, shape (n, 3).

    A pair has a row for its flows and, from a block of the other kind, one for its votes and session_starts.
    """
    block, place = np.nonzero(taken["count"])
    value, owner = taken["count"][block, place], taken["owner"][block]
    rest = owner >= VOTES_FIRSTS
    counts = np.zeros((len(block), len(COUNTS)), np.uint32)
    counts[~rest, 0] = value[~rest]
    counts[rest, 1], counts[rest, 2] = value[rest] & _HALF_MASK, value[rest] >> _HALF
    number = taken["group"][block] * np.uint32(EXITS_IN_BLOCK) + place.astype(np.uint32)
    return (owner & ~VOTES_FIRSTS) - np.uint32(1), number, counts


def read_slots(maps: Mapping[str, int], upto: int) -> NDArray[np.void]:
    """The states of slots 0..upto-1 as `SLOT`; trials only grow, so take differences."""
    return _mapped(maps["slots"], upto, SLOT)


def _mapped(table: int, count: int, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """A copy of the first values of an array, without a call of bpf() for each."""
    if not count:
        return np.empty(0, dtype)
    with mmap.mmap(table, count * dtype.itemsize, prot=mmap.PROT_READ) as memory:
        return np.frombuffer(memory[: count * dtype.itemsize], dtype)


def clear_slot(maps: Mapping[str, int], slot: int) -> None:
    """Forget what is known of a slot before it stands for another peer."""
    before = np.frombuffer(bpf.lookup(maps["slots"], _KEY.pack(slot), SLOT_SIZE), SLOT)
    empty = np.zeros(1, SLOT)
    empty["generation"] = before["generation"] + np.uint32(1)
    bpf.update(maps["slots"], _KEY.pack(slot), empty.tobytes())


def read_outcomes(maps: Mapping[str, int]) -> dict[tuple[Family, Outcome], int]:
    """How many flows had each outcome since the start, over all processors."""
    processors = possible_processors()
    totals = {}
    for outcome in Outcome:
        for index, family in enumerate(FAMILIES):
            raw = bpf.lookup(maps["outcomes"], _KEY.pack(outcome * len(FAMILIES) + index), 8 * processors)
            totals[family, outcome] = sum(struct.unpack(f"<{processors}Q", raw))
    return totals


def possible_processors() -> int:
    """How many values a per-CPU map holds for each key (possible processors, not those online)."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(re.split("[-,]", text.strip())[-1]) + 1
