# SPDX-License-Identifier: Apache-2.0
"""How flows are spread over the exits: a number of columns that a pool of any size fits in.

Exit addresses are the relay's own; who uses them is only counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.analysis.observation import Observation
from detector.base.family import Address, unpack
from detector.counts.observing import PoolRanges

MAX_COLUMNS = 96


@dataclass(frozen=True, slots=True)
class Column:
    """Some exits beside each other; one, where there are few.

    Attributes:
        first, last: addresses.
        exits: how many of them.
        flows: in the window, of all of them.
        peers: of the exit with the fewest peers.
        persons: peers with a flow at any of them.
        withheld: there were flows, and they are not to be told.
    """

    first: Address
    last: Address
    exits: int
    flows: int
    peers: int
    persons: int
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """The exits of one family.

    Attributes:
        columns: at most `MAX_COLUMNS`, by address.
        in_use: exits that carried a flow in the window.
        listed: exits in the columns: those in use, and where the pools are small the idle ones, too.
        flows: in the window.
        busiest: largest share of the flows that one exit carries, 0 without flows.
        crowded_less: exits in use that have fewer peers than the anonymity floor.
    """

    columns: tuple[Column, ...] = ()
    in_use: int = 0
    listed: int = 0
    flows: int = 0
    busiest: float = 0.0
    crowded_less: int = 0


def load_of(observation: Observation, pools: Sequence[PoolRanges], floor: int) -> Load:
    """The load of a family's exits, in the order of their addresses.

    Args:
        observation: the window.
        pools: of every family.
        floor: peers that an exit is to have at least.
    """
    count = len(observation.exits)
    flows = np.bincount(observation.exit, observation.flows, minlength=count)
    peers = np.bincount(observation.exit[observation.flows > 0], minlength=count)
    used = np.flatnonzero(flows)
    if not len(used):
        return Load()
    found = {observation.exits[exit_]: (int(flows[exit_]), int(peers[exit_])) for exit_ in used}
    idle = dict.fromkeys(_configured([pool for pool in pools if pool.family is observation.family]), (0, 0))
    listed = idle | found
    total = int(flows.sum())
    return Load(
        columns=_columns(sorted(listed.items(), key=lambda one: int(one[0])), _persons(observation)),
        in_use=len(used),
        listed=len(listed),
        flows=total,
        busiest=float(flows.max()) / total,
        crowded_less=int(np.count_nonzero(peers[used] < floor)),
    )


def _configured(pools: Sequence[PoolRanges]) -> list[Address]:
    """Every address of the pools where they are few, otherwise none."""
    if sum(pool.size for pool in pools) > MAX_COLUMNS:
        return []
    return [address for pool in pools for first, last in pool.ranges for address in _between(first, last)]


def _between(first: bytes, last: bytes) -> list[Address]:
    start, end = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    return [unpack(number.to_bytes(16, "big")) for number in range(start, min(end, start + MAX_COLUMNS) + 1)]


def _persons(observation: Observation) -> dict[Address, set[int]]:
    """The peers that each exit has."""
    found: dict[Address, set[int]] = {}
    active = observation.flows > 0
    for exit_, peer in zip(observation.exit[active], observation.peer[active], strict=True):
        found.setdefault(observation.exits[exit_], set()).add(int(peer))
    return found


def _columns(
    exits: list[tuple[Address, tuple[int, int]]], persons: Mapping[Address, set[int]]
) -> tuple[Column, ...]:
    each = -(-len(exits) // MAX_COLUMNS)
    return tuple(_column(exits[at : at + each], persons) for at in range(0, len(exits), each))


def _column(exits: list[tuple[Address, tuple[int, int]]], persons: Mapping[Address, set[int]]) -> Column:
    return Column(
        exits[0][0],
        exits[-1][0],
        len(exits),
        sum(flows for _, (flows, _) in exits),
        min(peers for _, (_, peers) in exits),
        len(set().union(*(persons.get(address, set()) for address, _ in exits))),
    )
