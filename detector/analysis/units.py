# SPDX-License-Identifier: Apache-2.0
"""Exits in units larger than an address: /64, /56 and /48 of IPv6, and blocks of IPv4 that a scan finds.

A peer that draws a new address of its own /64 for each flow never uses an exit twice, and is one identity to
any site that counts by /64. The kernel compares addresses, so the sandwiches say nothing here. So nothing is
claimed where everybody's exits move together; a peer has to keep its unit over sessions, since exits that are
taken in turn give neighbours to flows of one moment; only who is alone on its unit needs no second session.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detector.analysis.anonymity import alone
from detector.analysis.columns import Columns, Index, Mask, columns_of
from detector.analysis.consistency import Contrast, consistency_of, pair_contrast, population_of
from detector.analysis.evalues import flag, pinned_evidence
from detector.analysis.observation import Observation
from detector.base.family import Family

IPV6_UNITS = (64, 56, 48)
IPV4_UNITS = tuple(range(31, 15, -1))
_FEWEST_UNITS = 2
_LEAST_EXITS = 16  # in use: a smaller pool has no blocks worth a scan
_LEAST_GAIN = 1.15  # units of a length that joins hardly any exits are those of the length before
_FEWEST_PERSONS = 3
_NEARLY_ALWAYS = 0.9  # of k


@dataclass(frozen=True, slots=True)
class UnitFinding:
    """A unit at which peers keep to exits of their own.

    Attributes:
        prefix: its length in bits.
        units: how many are in use.
        contrast: how peers agree with themselves, in units.
        pinned: shape (P,): who keeps to one.
        alone: shape (P,): who of them shares it with nobody; None where that may be chance.
    """

    prefix: int
    units: int
    contrast: Contrast
    pinned: Mask
    alone: Mask | None


def units_of(observation: Observation, columns: Columns, log_level: float) -> UnitFinding | None:
    """The unit that shows most, None where none shows anything; the lengths tried are corrected for."""
    if columns.exits_used < _LEAST_EXITS:
        return None
    lengths = _lengths(observation, columns)
    level = log_level - float(np.log(max(len(lengths), 1)))
    found = [one for length, unit in lengths if (one := _judge(observation, length, unit, level)) is not None]
    return max(found, key=lambda one: (np.count_nonzero(one.pinned), one.contrast.kappa or 0.0), default=None)


def _lengths(observation: Observation, columns: Columns) -> list[tuple[int, Index]]:
    """Prefix lengths worth a try, and the unit of each exit, shape (E,)."""
    width = 128 if observation.family is Family.IPV6 else 32
    numbers = [int(one) for one in observation.exits]
    used = columns.occupants > 0
    found: list[tuple[int, Index]] = []
    before = float(columns.exits_used)
    for length in IPV6_UNITS if width == 128 else IPV4_UNITS:
        known: dict[int, int] = {}
        unit = np.array([known.setdefault(one >> (width - length), len(known)) for one in numbers], np.intp)
        count = len(np.unique(unit[used]))
        if count < _FEWEST_UNITS:
            break
        if count * _LEAST_GAIN <= before:
            found.append((length, unit))
            before = count
    return found


def _judge(observation: Observation, length: int, unit: Index, level: float) -> UnitFinding | None:
    joined = _joined(observation, length, unit)
    columns = columns_of(joined)
    consistency = consistency_of(columns, columns.votes, columns.peer_votes)
    population = population_of(columns, consistency)
    judged = int(np.count_nonzero(columns.judged))
    log_e = pinned_evidence(columns, population) + level - float(np.log(0.002))
    pinned = flag(log_e, judged)
    together = pair_contrast(columns, population, consistency, columns.peer_votes, columns.judged)
    if np.count_nonzero(pinned) < _FEWEST_PERSONS or together.log_p > level:
        return None
    lonely = alone(columns, pinned | (columns.judged & (consistency == 1)))
    peers: Mask | None = None
    if lonely.log_p <= level:
        peers = lonely.peers
    elif observation.family is Family.IPV6 and not observation.pool_sizes:
        shared = columns.per_peer((columns.occupants[columns.exit] > 1).astype(np.float64)) > 0
        mine = pinned & ~shared
        peers = mine if np.count_nonzero(mine) >= max(5, 0.9 * judged) else None
    kept = peers is not None and (together.kappa or 0.0) >= _NEARLY_ALWAYS
    if not kept and not _over_sessions(columns, together, level):
        return None
    return UnitFinding(length, columns.exits_used, together, pinned, peers)


def _over_sessions(columns: Columns, together: Contrast, level: float) -> bool:
    """Whether sessions begin in the same unit again, nearly as often as votes meet in it."""
    first = columns.with_votes(columns.session_starts)
    consistency = consistency_of(first, first.votes, first.peer_votes)
    again = pair_contrast(
        first, population_of(first, consistency), consistency, first.peer_votes, first.peer_votes > 1
    )
    return again.log_p <= level and 2 * (again.kappa or 0.0) >= (together.kappa or 0.0)


def _joined(observation: Observation, length: int, unit: Index) -> Observation:
    """The same counts with exits joined to units; a pool has as many units as fit into it."""
    units = int(unit.max()) + 1
    exit_ = unit[np.asarray(observation.exit).astype(np.intp)]
    key = np.asarray(observation.peer).astype(np.int64) * units + exit_
    keys, where = np.unique(key, return_inverse=True)
    where = where.reshape(-1)

    def added(counts: object) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        return np.bincount(where, np.asarray(counts), keys.size).astype(np.uint32)

    pool = np.full(units, -1, np.int32)
    pool[unit] = observation.pool
    size = 2 ** ((128 if observation.family is Family.IPV6 else 32) - length)
    return replace(
        observation,
        exits=observation.exits[:1] * units,
        pool=pool,
        pool_sizes=tuple(-(-one // size) for one in observation.pool_sizes),
        peer=(keys // units).astype(np.uint32),
        exit=(keys % units).astype(np.uint32),
        flows=added(observation.flows),
        votes=added(observation.votes),
        session_starts=added(observation.session_starts),
        class_votes=None,
        predicted={},
    )
