# SPDX-License-Identifier: Apache-2.0
"""From the window's counts to what the analysis is told, one observation a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.analysis.observation import Loss, Observation, Trials
from detector.base.family import Address, Family, family_of, pack
from detector.counts.columns import Columns
from detector.counts.roster import NOBODY, Exits, Roster
from detector.counts.window import Counts
from detector.daemon.counting import EXPECTED_UNIT
from detector.kernel.tables import FAMILIES, LOSSES, Outcome

_EXIT_MASK = np.uint64(0xFFFFFFFF)
_EXIT_BITS = np.uint64(32)


@dataclass(frozen=True, slots=True)
class PoolRanges:
    """One exit pool as the sensor tells it.

    Attributes:
        ranges: (first, last), as 16 bytes each.
        origin: where the rules that choose from it stand, for people.
    """

    family: Family
    size: int
    ranges: tuple[tuple[bytes, bytes], ...]
    origin: str = ""

    @classmethod
    def of(cls, told: dict[str, Any]) -> PoolRanges:
        """From the sensor's message."""
        ranges = tuple((pack(ip_address(first)), pack(ip_address(last))) for first, last in told["ranges"])
        return cls(Family(told["family"]), told["size"], ranges, told["origin"])

    def holds(self, packed: bytes) -> bool:
        """Whether an exit, as 16 bytes, is one of its addresses."""
        return any(first <= packed <= last for first, last in self.ranges)


@dataclass(frozen=True, slots=True)
class Observed:
    """An observation and which rows of the roster its peers are."""

    observation: Observation
    rows: NDArray[np.int64]


def observe(
    family: Family,
    counts: Counts,
    roster: Roster,
    exits: Exits,
    pools: Sequence[PoolRanges],
    *,
    exclusive: bool,
) -> Observed:
    """What the window says of one family."""
    pair_rows = (counts.pairs.keys >> _EXIT_BITS).astype(np.int64)
    rows = roster.select(family, pair_rows)
    peer_of_row = np.full(roster.rows, NOBODY, np.int64)
    peer_of_row[rows] = np.arange(len(rows))
    mine = peer_of_row[pair_rows] != NOBODY if len(pair_rows) else np.zeros(0, np.bool_)
    pairs = counts.pairs.keep(mine)
    predicted = roster.predicted(rows)
    used = _Numbering(family, exits, (pairs.keys & _EXIT_MASK).astype(np.int64), predicted.values())
    of_family = [pool for pool in pools if pool.family is family]
    trials = _dense_trials(counts.trials, peer_of_row, len(rows))
    return Observed(
        Observation(
            family=family,
            peers=len(rows),
            exits=used.addresses,
            pool=np.array([_pool_of(address, of_family) for address in used.addresses], np.int32),
            pool_sizes=tuple(pool.size for pool in of_family),
            pool_origins=tuple(pool.origin for pool in of_family),
            peer=peer_of_row[pair_rows[mine]].astype(np.uint32),
            exit=used.renumber((pairs.keys & _EXIT_MASK).astype(np.int64)).astype(np.uint32),
            flows=pairs.counts[:, 0],
            votes=pairs.counts[:, 1],
            session_starts=pairs.counts[:, 2],
            # The kernel adds to the two one after the other, and may have been between them when it was read.
            same_destination=Trials(trials[:, 0], np.minimum(trials[:, 1], trials[:, 0])),
            same_port=Trials(trials[:, 2], np.minimum(trials[:, 3], trials[:, 2])),
            destination_predictor=Trials(trials[:, 4], trials[:, 5], trials[:, 6] / EXPECTED_UNIT),
            predicted={name: used.renumber(table).astype(np.int32) for name, table in predicted.items()},
            is_network=roster.is_network(rows),
            exclusive_map=exclusive,
            loss=_loss(family, counts),
        ),
        rows,
    )


class _Numbering:
    """Exits of one family, numbered anew without gaps."""

    def __init__(
        self,
        family: Family,
        exits: Exits,
        seen: NDArray[np.int64],
        predicted: Sequence[NDArray[np.int32]] | Any,
    ) -> None:
        known = exits.addresses()
        self._new = np.full(len(known) + 1, NOBODY, np.int64)  # the last place is NOBODY's own
        wanted = np.zeros(len(known) + 1, np.bool_)
        wanted[seen] = True
        for table in predicted:
            wanted[table.ravel()] = True
        wanted[-1] = False
        old = [int(number) for number in np.flatnonzero(wanted) if family_of(known[number]) is family]
        self._new[old] = np.arange(len(old))
        self.addresses: tuple[Address, ...] = tuple(known[number] for number in old)

    def renumber(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The new numbers; `NOBODY` stays itself."""
        new: NDArray[np.int64] = self._new[numbers]
        return new


def _pool_of(address: Address, pools: Sequence[PoolRanges]) -> int:
    packed = pack(address)
    return next((index for index, pool in enumerate(pools) if pool.holds(packed)), -1)


def _dense_trials(trials: Columns, peer_of_row: NDArray[np.int64], peers: int) -> NDArray[np.uint32]:
    """Shape (P, trials): zeros for peers without any."""
    dense = np.zeros((peers, trials.counts.shape[1]), np.uint32)
    peer = peer_of_row[trials.keys.astype(np.int64)]
    dense[peer[peer != NOBODY]] = trials.counts[peer != NOBODY]
    return dense


def _loss(family: Family, counts: Counts) -> Loss:
    row = counts.outcomes[FAMILIES.index(family)]
    lost = sum(int(row[outcome]) for outcome in LOSSES.values())
    return Loss(int(row[Outcome.COUNTED]), lost, int(row[Outcome.UNATTRIBUTED]))
