# SPDX-License-Identifier: Apache-2.0
"""Who has something of the exits to itself: an address, a pool, a prefix, a block of ports, its own address.

What tells is how many share it, not how steady a peer is: two exits that only one person ever uses name it as
surely as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detector.analysis.anonymity import Alone, main_groups
from detector.analysis.columns import Columns, Mask
from detector.analysis.numerics import Floats
from detector.analysis.observation import Observation
from detector.analysis.units import UnitFinding
from detector.base.verdicts import ExclusiveKind

ANONYMITY_FLOOR = 5
ENOUGH_FLOWS = 8  # of a peer: fewer may have met a pool by accident
_MOSTLY = 0.9  # of a peer's flows
_SETTLED = 3600.0  # seconds after which those who are there have been seen
_PORT_VOTES = 8  # of a peer, for a word about its ports
_FEW_BLOCKS = 2
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class Exclusive:
    """What peers have to themselves.

    Attributes:
        peers: by kind, shape (P,): who has it.
        persons: how many have flows on the relay, translated or with a global address of their own.
    """

    peers: Mapping[ExclusiveKind, Mask]
    persons: int

    @property
    def any(self) -> Mask | None:
        """Whoever has anything, shape (P,); None where nobody has."""
        masks = list(self.peers.values())
        return np.logical_or.reduce(masks) if masks else None


def exclusive_of(
    observation: Observation,
    columns: Columns,
    lonely: Alone | None,
    units: UnitFinding | None,
    floor: int = ANONYMITY_FLOOR,
) -> Exclusive:
    """What peers have to themselves.

    Args:
        observation: the counts.
        columns: made of it.
        lonely: peers alone on an exit that they keep, where that is more than chance or the rules say so.
        units: what a unit larger than an address shows, if anything.
        floor: persons that are to share what one of them uses.
    """
    found = {
        ExclusiveKind.UNTRANSLATED: _untranslated(observation, columns),
        ExclusiveKind.PORT_BLOCK: _port_blocks(observation, columns),
        ExclusiveKind.POOL: _own_pools(observation, columns, floor),
        ExclusiveKind.PREFIX: None if units is None else units.alone,
        ExclusiveKind.EXIT: None if lonely is None else lonely.peers,
    }
    masks = {kind: mask for kind, mask in found.items() if mask is not None and mask.any()}
    active = columns.peer_flows > 0
    if observation.untranslated_global is not None:
        active |= np.greater(observation.untranslated_global, 0)
    return Exclusive(masks, int(np.count_nonzero(active)))


def _untranslated(observation: Observation, columns: Columns) -> Mask | None:
    """Peers whose own global address is what the internet sees: a fact that needs no test."""
    if observation.untranslated_global is None:
        return None
    mask: Mask = np.greater(observation.untranslated_global, 0) & columns.narrow
    return mask


def _own_pools(observation: Observation, columns: Columns, floor: int) -> Mask | None:
    """Peers whose pool, by the rules, serves fewer persons than the floor, while the relay has others."""
    known = len(columns.pool_sizes)
    if not known or not columns.cell_peer.size:
        return None
    persons = np.zeros(columns.groups)
    np.add.at(persons, columns.cell_group, 1.0)
    wide = np.zeros(columns.groups)  # a network has many persons behind it
    if not columns.narrow.all():
        carried = ~columns.narrow[np.asarray(observation.peer)] & np.greater(observation.flows, 0)
        np.add.at(wide, columns.group[np.asarray(observation.exit)[carried]], float(floor))
    most = main_groups(columns)
    active = columns.peer_flows > 0
    everybody = int(np.count_nonzero(active))
    present = int(np.count_nonzero(columns.narrow))
    seen = observation.seconds is not None and observation.seconds >= _SETTLED
    if 2 * everybody < present and not seen:
        return None  # who is still to come may share these pools
    within = np.zeros(columns.peers)
    in_most = columns.cell_group == most[columns.cell_peer]
    within[columns.cell_peer[in_most]] = columns.cell_flows[in_most]
    served = persons[most] + wide[most]
    few = active & (most >= 0) & (most < known) & (served < floor) & (everybody - served >= floor)
    mask: Mask = few & (within >= ENOUGH_FLOWS) & (within >= _MOSTLY * columns.peer_flows)
    return mask


def _port_blocks(observation: Observation, columns: Columns) -> Mask | None:
    """Peers whose translated source ports stay in a block that nobody else on their exits has.

    A port that collides is changed now and then on any relay; only where nearly everybody's ports are
    changed, and each stays in one block or two beside each other, are blocks handed out.
    """
    if observation.port_blocks is None:
        return None
    blocks = np.asarray(observation.port_blocks).astype(np.uint64)
    counted = _bits(blocks)
    able = (columns.peer_votes >= _PORT_VOTES) & columns.narrow
    changed = able & (counted > 0)
    if np.count_nonzero(able) < 3 or np.count_nonzero(changed) < _NEARLY_ALL * np.count_nonzero(able):
        return None
    narrow = changed & (counted <= _FEW_BLOCKS)
    if np.count_nonzero(narrow) < _NEARLY_ALL * np.count_nonzero(changed):
        return None
    rows = narrow[columns.peer]
    key = columns.exit[rows].astype(np.int64) * 64
    shared = np.zeros(columns.peers, bool)
    for bit in range(64):
        has = (blocks[columns.peer[rows]] >> np.uint64(bit)) & np.uint64(1) > 0
        _, where, count = np.unique(key[has] + bit, return_inverse=True, return_counts=True)
        shared[columns.peer[rows][has][count[where.reshape(-1)] > 1]] = True
    mask: Mask = narrow & ~shared
    return mask


def _bits(words: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> Floats:
    """How many bits are set in each word."""
    each = np.unpackbits(np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8), axis=1)
    counted: Floats = each.sum(axis=1).astype(np.float64)
    return counted
