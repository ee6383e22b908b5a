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
PAIR = np.dtype([("tag", "<u4"), ("owner", "<u4"), ("flows", "<u4"), ("votes", "<u2"), ("firsts", "<u2")])
COUNTS = ("flows", "votes", "firsts")
EXIT = np.dtype("V16")
_OWNER_MASK, _FAMILY_SHIFT = np.uint32(0x7FFFFFFF), np.uint32(31)
EXIT_TAG = np.dtype([("family", "<u4"), ("tag", "<u4")])
_NEAR_BITS = 16
_MANY = 8  # a table with more than every so many pairs in use is cleared whole
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
    """What was counted since the last drain: n pairs, m exits.

    Attributes:
        slot: shape (n,), uint32.
        exit: shape (n,), int32: index into `exits`.
        exits: shape (m,), `EXIT`: those that were met, each as 16 bytes.
        counts: shape (n, 3), uint32: `COUNTS`.
        unnamed: by family, flows that the kernel counted for an exit that the table of exits has no room
            for: they are lost.
    """

    slot: NDArray[np.uint32]
    exit: NDArray[np.int32]
    exits: NDArray[np.void]
    counts: NDArray[np.uint32]
    unnamed: tuple[int, ...] = (0,) * len(FAMILIES)

    def __len__(self) -> int:
        return len(self.slot)


class PairTables:
    """The two tables of pairs, of which the kernel writes one while the other is read."""

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._current = maps["pairs"]
        self._written, self._idle = maps["pairs_a"], maps["pairs_b"]
        self._bytes = pair_lines(sizes) * PAIRS_IN_LINE * PAIR.itemsize
        self._named = maps["exits"]
        self._names = Names.none()

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
        at = self._names.find(taken)
        if (at < 0).any():
            self._names = Names.read(self._named)
            at = self._names.find(taken)
        unnamed = (0,) * len(FAMILIES)
        if (at < 0).any():
            lost = taken[at < 0]
            flows = np.bincount(lost["owner"] >> _FAMILY_SHIFT, lost["flows"], len(FAMILIES))
            unnamed = tuple(map(int, flows))
            taken, at = taken[at >= 0], at[at >= 0]
        return _drained(taken, at, self._names.exits, unnamed)


def _drained(
    taken: NDArray[np.void], at: NDArray[np.int32], exits: NDArray[np.void], unnamed: tuple[int, ...]
) -> Drained:
    """Pairs as columns, with the exits among them alone."""
    met = np.flatnonzero(np.bincount(at, minlength=len(exits)))
    new = np.zeros(len(exits), np.int32)
    new[met] = np.arange(len(met), dtype=np.int32)
    counts = np.empty((len(taken), len(COUNTS)), np.uint32)
    for column, name in enumerate(COUNTS):
        counts[:, column] = taken[name]
    slot = (taken["owner"] & _OWNER_MASK) - np.uint32(1)
    return Drained(slot, new[at], exits[met], counts, unnamed)


@dataclass(frozen=True, slots=True)
class Names:
    """What the tags of exits stand for.

    Attributes:
        tags: shape (m,), ascending: the family above the tag.
        exits: shape (m,), `EXIT`.
        near: by the lowest bits of a tag's hash, where in `tags` to look first: exits are few and pairs are
            many, so nearly every look is one look.
    """

    tags: NDArray[np.uint64]
    exits: NDArray[np.void]
    near: NDArray[np.int32]

    @classmethod
    def none(cls) -> Names:
        """Nothing has a name."""
        return cls(np.empty(0, np.uint64), np.empty(0, EXIT), np.empty(0, np.int32))

    @classmethod
    def read(cls, table: int) -> Names:
        """Every tag that has a name in the kernel's table."""
        found = list(bpf.batches(table, EXIT_TAG.itemsize, EXIT.itemsize, _BATCH, remove=False))
        keys = np.frombuffer(b"".join(keys for keys, _ in found), EXIT_TAG)
        return cls.of(keys, np.frombuffer(b"".join(values for _, values in found), EXIT))

    @classmethod
    def of(cls, keys: NDArray[np.void], exits: NDArray[np.void]) -> Names:
        """From tags by family, each once, and the exits that they stand for: shape (m,) each."""
        tags = keys["family"].astype(np.uint64) << np.uint64(32) | keys["tag"]
        order = np.argsort(tags, kind="stable")
        near = np.zeros(1 << _NEAR_BITS, np.int32)
        near[_hash(keys["tag"][order])] = np.arange(len(order), dtype=np.int32)
        return cls(tags[order], exits[order], near)

    def find(self, pairs: NDArray[np.void]) -> NDArray[np.int32]:
        """Where the exit of each of these `PAIR` is in `exits`, -1 where it has no name: shape (n,)."""
        if not len(self.tags):
            return np.full(len(pairs), -1, np.int32)
        tag, family = pairs["tag"], pairs["owner"] >> _FAMILY_SHIFT
        at = self.near[_hash(tag)]
        found = self.tags.astype(np.uint32)[at] == tag
        found &= (self.tags >> np.uint64(32)).astype(np.uint32)[at] == family
        rest = np.flatnonzero(~found)
        if len(rest):
            wanted = family[rest].astype(np.uint64) << np.uint64(32) | tag[rest]
            near = np.minimum(np.searchsorted(self.tags, wanted), len(self.tags) - 1)
            at[rest] = np.where(self.tags[near] == wanted, near, -1)
        return at


def _hash(tags: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """The halves of a tag together, so that neighbouring addresses differ."""
    return (tags ^ tags >> np.uint32(_NEAR_BITS)).astype(np.uint16)


def _take(memory: mmap.mmap) -> NDArray[np.void]:
    """The pairs of a table, which is empty afterwards."""
    table = np.frombuffer(memory, PAIR)
    found = np.flatnonzero(table["owner"])
    taken: NDArray[np.void] = table[found]
    if len(found) * _MANY > len(table):
        table[:] = np.zeros((), PAIR)
    else:
        table[found] = np.zeros((), PAIR)
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
