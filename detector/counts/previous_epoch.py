# SPDX-License-Identifier: Apache-2.0
"""What is remembered of the mapping before the rules changed, so that one can say what the change did.

One exit a peer at most, by slot, since a slot stands for the same peer over a change of the rules. It is
forgotten when a window has passed, as the counts that it was made from would have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detector.analysis.changes import Change, PrimaryExits, compare, primary_exits
from detector.base.family import Family, unpack
from detector.counts.observing import Observed, PoolRanges
from detector.counts.roster import Roster


class PreviousEpoch:
    """The exits that peers had for themselves under the rules of before."""

    def __init__(self) -> None:
        self._homes: dict[Family, PrimaryExits] = {}
        self._until = 0.0
        self._warnings: Mapping[Family, Change] = {}

    def __len__(self) -> int:
        return sum(len(one.peer) for one in self._homes.values())

    def remember(
        self,
        ended: Sequence[Observed],
        roster: Roster,
        pools: Sequence[PoolRanges],
        epoch: int,
        until: float,
    ) -> None:
        """Keep what an epoch that ends has shown; where it has shown nothing, what was kept stands.

        Args:
            ended: its last observations.
            roster: whose rows these are.
            pools: its pools.
            epoch: its number.
            until: when to forget, in seconds on a clock that only goes forward.
        """
        for one in ended:
            shown = _homes(one, roster, pools, epoch)
            if shown.judged:
                self._homes[one.observation.family] = shown
        self._until, self._warnings = until, {}

    def release(self, slots: Sequence[int]) -> None:
        """These slots stand for others from now on."""
        self._homes = {family: one.without(slots) for family, one in self._homes.items()}

    def compare(
        self,
        observed: Sequence[Observed],
        roster: Roster,
        pools: Sequence[PoolRanges],
        epoch: int,
        now: float,
    ) -> Mapping[Family, Change]:
        """What the change did, as far as it shows; when all is forgotten, what was said last."""
        if now >= self._until:
            self._homes = {}
        if self._homes:
            self._warnings = {
                one.observation.family: compare(
                    self._homes[one.observation.family], _homes(one, roster, pools, epoch)
                )
                for one in observed
                if one.observation.family in self._homes
            }
        return self._warnings


def _homes(one: Observed, roster: Roster, pools: Sequence[PoolRanges], epoch: int) -> PrimaryExits:
    family = one.observation.family
    ranges = [
        (unpack(first), unpack(last))
        for pool in pools
        if pool.family is family
        for first, last in pool.ranges
    ]
    return primary_exits(one.observation, roster.slots_of(one.rows), ranges, epoch)
