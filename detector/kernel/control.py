# SPDX-License-Identifier: Apache-2.0
"""What who counts tells the kernel program: the time, the pane, the budgets, and which halves are written."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from detector.kernel import bpf
from detector.kernel.mapped import Words, wait_for_programs
from detector.kernel.tables import Budgets

SIZE = 64
_NOW, _GAP, _PANE, _HALVES, _DRAIN, _BUDGETS = range(6)
_PAIRS, _EXITS = 1, 2
_LAYOUT = struct.Struct("<5I4B4B36x")


def start(maps: Mapping[str, int], now: float, session_gap: float, budgets: Budgets) -> None:
    """What a program that was just loaded is told; by bpf(), from who may."""
    value = _LAYOUT.pack(_milliseconds(now), int(session_gap * 1000), 1, 0, 0, *budgets, *range(4))
    bpf.update(maps["controls"], bytes(4), value)


class Control:
    """The table ``controls``, with one writer."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        self._words = Words(maps["controls"], SIZE)

    @property
    def pane(self) -> int:
        """The current pane."""
        return self._words[_PANE]

    @property
    def pairs_half(self) -> int:
        """Which half of the pairs is written."""
        return self._words[_HALVES] & _PAIRS

    @property
    def exits_half(self) -> int:
        """Which half of the exits is used."""
        return (self._words[_HALVES] & _EXITS) // _EXITS

    @property
    def before_sessions(self) -> int:
        """A time, as the program tells it, whose session is over."""
        return self._words[_NOW] - self._words[_GAP] - 1 & 0xFFFFFFFF

    def set(self, now: float, session_gap: float, pane: int) -> None:
        """The time, the gap that ends a session (both in seconds) and the current pane."""
        self._words[_NOW] = _milliseconds(now)
        self._words[_GAP] = int(session_gap * 1000)
        self._words[_PANE] = pane

    def set_budgets(self, budgets: Budgets) -> None:
        """What is measured of a slot and class in a pane, from now on."""
        self._words[_BUDGETS] = int.from_bytes(bytes(budgets), "little")

    def swap(self, *, exits: bool = False) -> None:
        """Have the other half of the pairs written, and of the exits; returns when the old ones are left."""
        self._words[_DRAIN] = self._words[_DRAIN] + 1
        # One word: what is counted in a half of the pairs is numbered by one half of the exits.
        self._words[_HALVES] = self._words[_HALVES] ^ (_PAIRS | (_EXITS if exits else 0))
        wait_for_programs()


def _milliseconds(now: float) -> int:
    return int(now * 1000) & 0xFFFFFFFF
