# SPDX-License-Identifier: Apache-2.0
"""The peers as the aggregator knows them: rows with a pseudonym and predicted exits, and nothing else.

A row is one stay of one tunnel address in a slot of the kernel tables. It is used again only when nothing is
left that was counted for it, so the evidence of two peers cannot mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from detector.base.canaries import canary_name
from detector.base.family import Address, Family, family_of, pack, unpack

NOBODY = -1
_NAMES = "S48"  # a canary's has up to 39 letters


@dataclass(frozen=True, slots=True)
class Member:
    """What the sensor says of a slot.

    Attributes:
        is_network: it is a network of tunnel addresses, so it is counted and not judged.
        predictions: per predictor, one exit (or None) for each pool of the family.
    """

    slot: int
    family: Family
    is_network: bool
    pseudonym: str
    predictions: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


class Exits:
    """Exit addresses by number, in the order in which they were met; a forgotten one's is used again."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._addresses: list[Address] = []
        self._family = np.empty(1024, np.uint8)
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._number)

    def number(self, packed: bytes) -> int:
        """The number of an exit, given as 16 bytes."""
        number = self._number.get(packed)
        return self._add(packed) if number is None else number

    def numbers(self, packed: NDArray[np.void]) -> NDArray[np.uint64]:
        """The numbers of several: shape (n,), 16 bytes each."""
        return np.array([self.number(one) for one in packed.tolist()], np.uint64)

    def addresses(self) -> list[Address]:
        """Every exit by number; where one was forgotten, an address that stands for nothing."""
        return self._addresses

    def families(self) -> NDArray[np.uint8]:
        """Index of the family of every exit, by number."""
        return self._family[: len(self._addresses)]

    def forget(self, seen: NDArray[np.integer]) -> None:
        """Let go of the exits that are not among these numbers."""
        unseen = np.ones(len(self._addresses), np.bool_)
        unseen[seen] = False
        unseen[self._free] = False
        gone = np.flatnonzero(unseen).tolist()
        for number in gone:
            del self._number[pack(self._addresses[number])]
        self._free += gone

    def _add(self, packed: bytes) -> int:
        address = unpack(packed)
        if self._free:
            number = self._free.pop()
            self._addresses[number] = address
        else:
            number = len(self._addresses)
            self._addresses.append(address)
            if number >= len(self._family):
                self._family = np.append(self._family, np.empty(len(self._family), np.uint8))
        self._family[number] = list(Family).index(family_of(address))
        self._number[packed] = number
        return number


class Roster:
    """Rows, and which slot stands for which of them now."""

    def __init__(self, exits: Exits) -> None:
        self._exits = exits
        self._row_of_slot = np.full(1024, NOBODY, np.int64)
        self._family = np.empty(0, np.uint8)
        self._is_network = np.empty(0, np.bool_)
        self._present = np.empty(0, np.bool_)
        self._pseudonym = np.empty(0, _NAMES)
        self._is_canary = np.empty(0, np.bool_)
        self._predicted: dict[str, NDArray[np.int32]] = {}
        self._free = np.empty(0, np.int64)

    @property
    def rows(self) -> int:
        """How many rows there are, forgotten ones included."""
        return len(self._family)

    @property
    def gone(self) -> int:
        """How many rows are of somebody who has left and is not forgotten."""
        return self.rows - self.present - len(self._free)

    @property
    def slots(self) -> int:
        """One more than the highest slot that stands for somebody."""
        used = np.flatnonzero(self._row_of_slot != NOBODY)
        return int(used[-1]) + 1 if len(used) else 0

    @property
    def present(self) -> int:
        """How many slots stand for somebody."""
        return int(self._present.sum())

    @property
    def predictions(self) -> int:
        """How many exits are predicted."""
        return sum(int(np.count_nonzero(table != NOBODY)) for table in self._predicted.values())

    def add(self, members: Sequence[Member]) -> list[int]:
        """Take up slots; a slot whose address has left and is back has its row again, any other a new one.

        Returns:
            The slots of those that are back.
        """
        back = [one.slot for one in members if self._is_away(one.slot)]
        self._present[self._row_of_slot[back]] = True
        self._add([one for one in members if one.slot not in set(back)])
        return back

    def leave(self, slots: Iterable[int]) -> None:
        """The addresses of these slots have gone; the slots are kept for them."""
        for slot in slots:
            if self._row_of(slot) != NOBODY:
                self._present[self._row_of_slot[slot]] = False

    def _row_of(self, slot: int) -> int:
        return int(self._row_of_slot[slot]) if slot < len(self._row_of_slot) else NOBODY

    def _is_away(self, slot: int) -> bool:
        row = self._row_of(slot)
        return row != NOBODY and not self._present[row]

    def _add(self, members: Sequence[Member]) -> None:
        if not members:
            return
        slots = np.array([one.slot for one in members])
        self._make_room(int(slots.max()) + 1)
        before = self._row_of_slot[slots]
        self._present[before[before != NOBODY]] = False
        rows = self._take_rows(len(members))
        self._row_of_slot[slots] = rows
        self._family[rows] = [one.family.index for one in members]
        self._is_network[rows] = [one.is_network for one in members]
        self._present[rows] = True
        self._pseudonym[rows] = [one.pseudonym.encode() for one in members]
        self._is_canary[rows] = [canary_name(one.pseudonym) is not None for one in members]
        self._add_predictions(rows, members)

    def _take_rows(self, count: int) -> NDArray[np.int64]:
        """Rows that are free, and new ones; the array of names is another one afterwards."""
        free, self._free = self._free[:count], self._free[count:]
        new = count - len(free)
        rows = np.concatenate([free, np.arange(self.rows, self.rows + new)])
        self._family = np.append(self._family, np.zeros(new, np.uint8))
        self._is_network = np.append(self._is_network, np.zeros(new, np.bool_))
        self._present = np.append(self._present, np.zeros(new, np.bool_))
        self._pseudonym = np.append(self._pseudonym, np.zeros(new, _NAMES))
        self._is_canary = np.append(self._is_canary, np.zeros(new, np.bool_))
        return rows

    def _make_room(self, slots: int) -> None:
        if slots > len(self._row_of_slot):
            grown = np.full(max(slots, 2 * len(self._row_of_slot)), NOBODY, np.int64)
            grown[: len(self._row_of_slot)] = self._row_of_slot
            self._row_of_slot = grown

    def _add_predictions(self, rows: NDArray[np.int64], members: Sequence[Member]) -> None:
        names = {name for one in members for name in one.predictions} | set(self._predicted)
        for name in names:
            said = [one.predictions.get(name, ()) for one in members]
            before = self._predicted.get(name, np.empty((0, 0), np.int32))
            pools = max(before.shape[1], *(len(row) for row in said))
            table = np.full((self.rows, pools), NOBODY, np.int32)
            table[: before.shape[0], : before.shape[1]] = before
            for row, exits in zip(rows, said, strict=True):
                table[row, : len(exits)] = [self._known(text) for text in exits]
            self._predicted[name] = table

    def _known(self, text: str | None) -> int:
        return NOBODY if text is None else self._exits.number(pack(ip_address(text)))

    def retire(self, slots: Iterable[int]) -> None:
        """These slots stand for nobody from now on; their rows keep their evidence."""
        for slot in slots:
            if self._row_of_slot[slot] != NOBODY:
                self._present[self._row_of_slot[slot]] = False
                self._row_of_slot[slot] = NOBODY

    def forget(self, seen: NDArray[np.integer]) -> None:
        """Let go of who has left, unless there is evidence in the window.

        Args:
            seen: rows with evidence, in any order.
        """
        gone = ~self._present
        gone[seen] = gone[self._free] = False
        gone[self._row_of_slot[self._row_of_slot != NOBODY]] = False  # who may come back
        rows = np.flatnonzero(gone)
        if len(rows):
            self._pseudonym = self._pseudonym.copy()
            self._pseudonym[rows] = b""
            self._is_canary[rows] = False
            for table in self._predicted.values():
                table[rows] = NOBODY
            self._free = np.concatenate([self._free, rows])

    def rows_of(self, slots: NDArray[np.integer]) -> NDArray[np.int64]:
        """The row of each slot, `NOBODY` where there is none."""
        if len(slots) and int(slots.max()) < len(self._row_of_slot):
            rows: NDArray[np.int64] = self._row_of_slot[slots]
            return rows
        known = slots < len(self._row_of_slot)
        return np.where(known, self._row_of_slot[np.where(known, slots, 0)], NOBODY)

    def slots_of(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """The slot of each row, `NOBODY` where the row's slot stands for somebody else by now."""
        slot = np.full(self.rows, NOBODY, np.int64)
        taken = np.flatnonzero(self._row_of_slot != NOBODY)
        slot[self._row_of_slot[taken]] = taken
        found: NDArray[np.int64] = slot[rows]
        return found

    def select(self, family: Family, seen: NDArray[np.integer]) -> NDArray[np.int64]:
        """The rows of a family that are present or have evidence; a canary is no peer, so none of its rows.

        Args:
            family: which.
            seen: rows with evidence in the window, in any order.
        """
        wanted = self._present.copy()
        wanted[seen] = True
        wanted &= ~self._is_canary
        return np.flatnonzero(wanted & (self._family == family.index))

    def canaries(self) -> dict[int, tuple[Family, str]]:
        """Family and name of the canary by row, for those on the relay."""
        families = list(Family)
        return {
            int(row): (families[self._family[row]], canary_name(self._pseudonym[row].decode()) or "")
            for row in np.flatnonzero(self._is_canary & self._present)
        }

    def is_network(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these rows are networks."""
        is_network: NDArray[np.bool_] = self._is_network[rows]
        return is_network

    def predicted(self, rows: NDArray[np.integer]) -> dict[str, NDArray[np.int32]]:
        """Per predictor, shape (rows, pools): exit numbers, `NOBODY` for none."""
        return {name: table[rows] for name, table in self._predicted.items()}

    def predicted_exits(self) -> NDArray[np.int64]:
        """The numbers of the exits that are predicted for somebody, each once or more often."""
        tables = [table[table != NOBODY].astype(np.int64) for table in self._predicted.values()]
        return np.concatenate([np.empty(0, np.int64), *tables])

    @property
    def names(self) -> NDArray[np.bytes_]:
        """The pseudonyms by row; the array is never changed, a later one may differ."""
        return self._pseudonym

    def are_present(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these rows a slot stands for now."""
        present: NDArray[np.bool_] = self._present[rows]
        return present

    def pseudonyms(self, rows: NDArray[np.integer]) -> list[str]:
        """The names that people see."""
        return [name.decode() for name in self._pseudonym[rows]]
