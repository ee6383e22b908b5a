# SPDX-License-Identifier: Apache-2.0
"""Tries the predictors of the tunnel address on the exits that persons really have, where the addresses are.

From what a predictor says of a tunnel address the address follows, up to a few candidates: over a whole /64
the exit even holds its host bits. So no prediction leaves the sensor. It looks itself at the exit of each
slot's last vote, keeps the exit that a slot has most often, and tells sums; and for a predictor that holds,
whose exit it names. There is nothing to ask, so nobody can try one slot after the other. No NumPy in here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from detector.base.canaries import canary_name
from detector.base.family import Address, Family, unpack
from detector.daemon.messages import PredictorTrial
from detector.daemon.slots import Slot
from detector.predictors.fit import Fitter
from detector.predictors.guess import guessed_choices
from detector.predictors.pool import ExitPool

_NONE = 0
_MAX_COUNT = 1 << 15
_PATIENCE = 20.0  # times that a fit took, before the next one: it takes a twentieth of the time at most


class Samples:
    """The exit that each slot has most often, as far as it was looked at.

    A slot has two candidates, each with a count; an exit that is neither takes from the second one until that
    is its own (Misra and Gries, "Finding repeated elements", 1982). 12 bytes a slot.

    Args:
        capacity: slots.
    """

    def __init__(self, capacity: int) -> None:
        numbers, counts = bytes(4 * capacity), bytes(2 * capacity)
        self._first, self._second = array("I", numbers), array("I", numbers)
        self._first_count, self._second_count = array("H", counts), array("H", counts)
        self._number: dict[bytes, int] = {}
        self._exits: list[Address] = []

    def add(self, slot: int, packed: bytes) -> None:
        """A slot was seen at an exit, given as 16 bytes."""
        number = self._number.get(packed, _NONE)
        if number == _NONE:
            self._exits.append(unpack(packed))
            number = self._number[packed] = len(self._exits)
        first, second = self._first_count, self._second_count
        if self._first[slot] == number:
            first[slot] = min(first[slot] + 1, _MAX_COUNT)
            return
        if self._second[slot] == number:
            second[slot] = min(second[slot] + 1, _MAX_COUNT)
        elif not second[slot]:
            self._second[slot], second[slot] = number, 1
        else:
            second[slot] -= 1
        if second[slot] > first[slot]:
            self._first[slot], self._second[slot] = self._second[slot], self._first[slot]
            first[slot], second[slot] = second[slot], first[slot]

    def busiest(self, slot: int) -> Address | None:
        """The exit that a slot has most often, None where none was seen."""
        return self._exits[self._first[slot] - 1] if self._first_count[slot] else None

    def is_steady(self, slot: int) -> bool:
        """Whether that exit was seen more than once, and far oftener than the next one."""
        count = self._first_count[slot]
        return count > 1 and count >= 3 * self._second_count[slot]

    def forget(self, slots: Iterable[int]) -> None:
        """These slots stand for others from now on."""
        for slot in slots:
            self._first_count[slot] = self._second_count[slot] = 0
            self._first[slot] = self._second[slot] = _NONE

    def age(self) -> None:
        """What was seen before counts half from now on."""
        for counts in (self._first_count, self._second_count):
            for slot, count in enumerate(counts):
                if count:
                    counts[slot] = count >> 1

    def clear(self) -> None:
        """The mapping is another one: nothing was seen."""
        self.forget(range(len(self._first)))
        self._number.clear()
        self._exits.clear()

    @property
    def held(self) -> int:
        """How many slots have an exit here."""
        return sum(1 for count in self._first_count if count)


class Trier:
    """Fits, every now and then.

    Args:
        capacity: slots.
    """

    def __init__(self, capacity: int) -> None:
        self.samples = Samples(capacity)
        self._fitters = {family: Fitter() for family in Family}
        self._owners: dict[int, tuple[str, bytes, int]] = {}
        self._changed = False
        self._rest_until = 0.0

    def clear(self) -> None:
        """The mapping is another one."""
        self.samples.clear()
        self._changed = False
        self._rest_until = 0.0

    def give(self, slots: Iterable[Slot]) -> None:
        """These slots are handed out: what was seen of somebody else there is forgotten."""
        for slot in slots:
            owner = slot.interface, slot.allowed.network, slot.allowed.prefix
            if self._owners.get(slot.number) != owner:
                self._owners[slot.number] = owner
                self.samples.forget([slot.number])

    def see(self, votes: Iterable[tuple[int, bytes]]) -> None:
        """The exits of the last votes of some slots."""
        for slot, packed in votes:
            self.samples.add(slot, packed)
            self._changed = True

    def tried(
        self, slots: Sequence[Slot], pools: Sequence[ExitPool], now: float
    ) -> tuple[PredictorTrial, ...] | None:
        """What the predictors come to; None where nothing is new, or too little time has passed.

        In a family without any pool the exits themselves are asked what it may be, and the trials say so.

        Args:
            slots: all that are in use.
            pools: as the predictors see them, one a rule.
            now: seconds on a clock that only goes forward.
        """
        if not self._changed or now < self._rest_until:
            return None
        self._changed = False
        return tuple(trial for family in Family for trial in self._of(family, slots, pools))

    def rest(self, begun: float, now: float) -> None:
        """A fit took from `begun` until now: leave some time before the next one."""
        self._rest_until = now + _PATIENCE * (now - begun)

    def _of(
        self, family: Family, slots: Sequence[Slot], pools: Sequence[ExitPool]
    ) -> Iterable[PredictorTrial]:
        here = [one for one in slots if one.allowed.family is family and not one.allowed.is_network]
        seen = [
            (slot, exit_)
            for slot in here
            if (exit_ := self.samples.busiest(slot.number)) is not None
            and canary_name(slot.pseudonym) is None
        ]
        numbers = [slot.number for slot, _ in seen]
        tunnels, exits = [slot.allowed.address for slot, _ in seen], [exit_ for _, exit_ in seen]
        known = [pool for pool in pools if pool.first.version == family.version]
        fits = self._fitters[family].fit(
            tunnels,
            exits,
            known or guessed_choices(tunnels, exits),
            [slot.allowed.address for slot in here],
            [self.samples.is_steady(number) for number in numbers],
        )
        for fit in fits:
            named = tuple(numbers[person] for person in fit.hits) if fit.holds else None
            yield PredictorTrial(
                family, fit.predictor, fit.rule, fit.tried, fit.hit, fit.chance, fit.hypotheses, named
            )
