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

from detector.config import Tables
from detector.family import Family
from detector.kernel import bpf
from detector.kernel.tables import FAMILIES, PAIRS_IN_LINE, SLOT_SIZE, Outcome, pair_lines

_BATCH = 32768
_KEY = struct.Struct("<I")

# A pair in the kernel. `owner` is slot + 1 with the family in the top bit; `tag` stands for the exit.
_PAIR = np.dtype([("tag", "<u4"), ("owner", "<u4"), ("flows", "<u4"), ("votes", "<u2"), ("firsts", "<u2")])
_OWNER_MASK, _FAMILY_SHIFT = np.uint32(0x7FFFFFFF), np.uint32(31)
_EXIT_TAG = np.dtype([("family", "<u4"), ("tag", "<u4")])
_EXIT_SIZE = 16
PAIR = np.dtype([("tag", "<u4"), ("owner", "<u4"), ("flows", "<u4"), ("votes", "<u2"), ("firsts", "<u2")])
_EXIT_TAG = np.dtype([("family", "<u4"), ("tag", "<u4")])
_EXIT = np.dtype("V16")
PAIR = np.dtype(
    [("tag", "<u4"), ("owner", "<u4"), ("flows", "<u4"), ("votes", "<u2"), ("firsts", "<u2"), ("exit", "V16")]
)
PAIR = np.dtype([("slot", "<u4"), ("exit", "V16")])
COUNTS = np.dtype([("flows", "<u4"), ("votes", "<u4"), ("firsts", "<u4")])
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
        ("spare", "<u4", (4,)),
    ]
)


@dataclass(frozen=True, slots=True)
class Drained:
    """What was counted since the last drain: n pairs.

    Attributes:
        pairs: shape (n,), `PAIR`.
        counts: shape (n,), `COUNTS`.
        unnamed: by family, flows that the kernel counted for an exit that the table of exits has no room
            for: they are lost.
    """

    pairs: NDArray[np.void]
    counts: NDArray[np.void]
    unnamed: tuple[int, ...] = (0,) * len(FAMILIES)


class PairTables:
    """The two tables of pairs, of which the kernel writes one while the other is read."""

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._current = maps["pairs"]
        self._written, self._idle = maps["pairs_a"], maps["pairs_b"]
        self._bytes = pair_lines(sizes) * PAIRS_IN_LINE * _PAIR.itemsize
        self._named = maps["exits"]
        self._tags, self._exits = np.empty(0, np.uint64), np.empty(0, PAIR["exit"])

    def drain(self) -> Drained:
        """Swap the tables, then read and clear the one that was written.

        Changing the map of maps returns after every running program has ended (``maybe_wait_bpf_programs``
        in the kernel), so nothing is added to a table while it is read.
        """
        bpf.update(self._current, _KEY.pack(0), _KEY.pack(self._idle))
        self._written, self._idle = self._idle, self._written
        # Mapped for this moment alone, so that the tables are not part of our resident memory.
        with mmap.mmap(self._idle, self._bytes) as memory:
            taken = _take(memory)
        exits, named = self._exits_of(_tags(taken["owner"] >> _FAMILY_SHIFT, taken["tag"]))
        kept = taken[named]
        pairs, counts = np.empty(len(kept), PAIR), np.empty(len(kept), COUNTS)
        pairs["slot"], pairs["exit"] = (kept["owner"] & _OWNER_MASK) - 1, exits[named]
        for name in COUNTS.names or ():
            counts[name] = kept[name]
        lost = taken[~named]
        unnamed = np.bincount(lost["owner"] >> _FAMILY_SHIFT, lost["flows"], len(FAMILIES))
        return Drained(pairs, counts, tuple(map(int, unnamed)))

    def _exits_of(self, tags: NDArray[np.uint64]) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """The exit that each tag stands for, and whether there is one: both of the tags' shape."""
        at = np.searchsorted(self._tags, tags)
        if not self._matches(at, tags).all():
            self._tags, self._exits = _read_exits(self._named)
            at = np.searchsorted(self._tags, tags)
        named = self._matches(at, tags)
        exits = np.zeros(len(tags), PAIR["exit"])
        exits[named] = self._exits[at[named]]
        return exits, named

    def _matches(self, at: NDArray[np.intp], tags: NDArray[np.uint64]) -> NDArray[np.bool_]:
        inside = at < len(self._tags)
        matches = np.zeros(len(tags), np.bool_)
        matches[inside] = self._tags[at[inside]] == tags[inside]
        return matches


def _tags(family: NDArray[np.uint32], tag: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Family and tag as one word."""
    return family.astype(np.uint64) << np.uint64(32) | tag


def _read_exits(table: int) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """Every tag that has a name, in ascending order, and the exits that they stand for."""
    found = list(bpf.batches(table, _EXIT_TAG.itemsize, _EXIT_SIZE, _BATCH, remove=False))
    keys = np.frombuffer(b"".join(keys for keys, _ in found), _EXIT_TAG)
    exits = np.frombuffer(b"".join(values for _, values in found), PAIR["exit"])
    tags = _tags(keys["family"], keys["tag"])
    order = np.argsort(tags, kind="stable")  # the vectorised default is wrong on some emulated processors
    return tags[order], exits[order]


def _take(memory: mmap.mmap) -> NDArray[np.void]:
    """The pairs of a table, which is empty afterwards."""
    table = np.frombuffer(memory, _PAIR)
    found = np.flatnonzero(table["owner"])
    taken: NDArray[np.void] = table[found]
    table[found] = np.zeros((), _PAIR)
    return taken  # `table` is gone by then: the mapping cannot be closed while it is looked at


def read_slots(maps: Mapping[str, int], upto: int) -> NDArray[np.void]:
    """The states of slots 0..upto-1 as `SLOT`; trials only grow, so take differences."""
    found = bytearray()
    for _, values in bpf.batches(
        maps["slots"], _KEY.size, SLOT_SIZE, max(min(upto, _BATCH), 1), remove=False
    ):
        found += values
        if len(found) >= upto * SLOT_SIZE:
            break
    return np.frombuffer(bytes(found[: upto * SLOT_SIZE]), SLOT)


def clear_slot(maps: Mapping[str, int], slot: int) -> None:
    """Forget what is known of a slot before it stands for another peer."""
    bpf.update(maps["slots"], _KEY.pack(slot), bytes(SLOT_SIZE))


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
