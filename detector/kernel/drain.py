# SPDX-License-Identifier: Apache-2.0
"""Reading the counts out of the kernel into columns, without losing any."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.family import Family
from detector.kernel import bpf
from detector.kernel.tables import FAMILIES, SLOT_SIZE, Outcome

_BATCH = 32768
_KEY = struct.Struct("<I")

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
    """

    pairs: NDArray[np.void]
    counts: NDArray[np.void]


class PairTables:
    """The two tables of pairs, of which the kernel writes one while the other is read."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        self._current = maps["pairs"]
        self._written, self._idle = maps["pairs_a"], maps["pairs_b"]

    def drain(self) -> Drained:
        """Swap the tables and empty the one that was written.

        Changing the map of maps returns after every running program has ended (``maybe_wait_bpf_programs``
        in the kernel), so nothing is added to a table while it is emptied.
        """
        bpf.update(self._current, _KEY.pack(0), _KEY.pack(self._idle))
        self._written, self._idle = self._idle, self._written
        found = list(bpf.batches(self._idle, PAIR.itemsize, COUNTS.itemsize, _BATCH, remove=True))
        return Drained(
            np.frombuffer(b"".join(keys for keys, _ in found), PAIR),
            np.frombuffer(b"".join(values for _, values in found), COUNTS),
        )


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
