# SPDX-License-Identifier: Apache-2.0
"""Fleets that are made up, and which relays the rules would call linkable: a twin of `tools.rules.canaries`.

The twin is there to try many thousand fleets; `tools.fleet_simulation` holds it against the rules
themselves on a real Prometheus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.rules.canaries import Votes

# The pools of the study of May 2026.
STUDY = (60, 11, 8, 31, 66, 91, 59, 13, 11)

LINKED, NOT, UNTOLD = 1, 0, -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Relays and where canaries sit on them.

    Attributes:
        pools: shape (R,), exits of each relay.
        places: shape (R, C), 0 to N - 1.
        secret: shape (R,), which secret a relay shares with others, -1 for one of its own.
    """

    pools: Ints
    places: Ints
    secret: Ints


def fleet(
    rng: np.random.Generator,
    relays: int,
    canaries: int,
    fixed: float,
    *,
    pools: Sequence[int] = STUDY,
    secrets: int = 1,
    by_place: bool = False,
) -> Fleet:
    """A fleet of which a share is fixed.

    Args:
        rng: draws everything.
        relays: R.
        canaries: C.
        fixed: share of the relays whose choice follows a secret of their own.
        pools: sizes to draw from.
        secrets: shared secrets among which the others are divided.
        by_place: the shared function gives each size of pool places of its own, not one fraction.
    """
    sizes = rng.choice(np.array(pools), relays)
    secret = np.full(relays, -1)
    shared = rng.permutation(relays)[round(relays * fixed) :]
    secret[shared] = np.arange(len(shared)) % secrets
    places = np.floor(rng.random((relays, canaries)) * sizes[:, None]).astype(np.int64)
    for number in range(secrets):
        members = secret == number
        if by_place:
            for size in np.unique(sizes[members]):
                places[members & (sizes == size)] = rng.integers(0, size, canaries)
        else:
            places[members] = np.floor(rng.random(canaries) * sizes[members, None])
    return Fleet(sizes, places, secret)


def truth(made: Fleet, *, by_place: bool = False) -> Ints:
    """`LINKED` for relays that share with another one what decides, `NOT` for the others."""
    linked = np.full(len(made.pools), NOT)
    for row in np.flatnonzero(made.secret >= 0):
        mates = made.secret == made.secret[row]
        if by_place:
            mates &= made.pools == made.pools[row]
        linked[row] = LINKED if mates.sum() > 1 else NOT
    return linked


def told(made: Fleet, votes: Votes | None = None) -> Ints:
    """What the rules say: shape (R,), `LINKED`, `NOT` or `UNTOLD`."""
    votes = votes or Votes()
    relays, canaries = made.places.shape
    open_, member, doubtful = np.ones(relays, bool), np.zeros(relays, bool), np.zeros(relays, bool)
    for number in range(votes.rounds + 1):
        groups = (
            [open_] if number < votes.rounds else [open_ & (made.pools == n) for n in np.unique(made.pools)]
        )
        closed: list[int] = []
        for group in groups:
            if not group.any():
                continue
            anchor = _anchor(made, group, votes, equal=number == votes.rounds)
            everyone = relays if number < votes.rounds else int((made.pools == made.pools[anchor]).sum())
            matches = _matches(made, group, anchor, votes)
            found = _members(matches, everyone, relays, votes)
            closed.append(anchor)
            if found is None:
                doubtful[anchor] |= bool(np.isfinite(matches).any())
            else:
                member |= found
                member[anchor] = True
            doubtful |= np.isfinite(matches)
        open_ = open_ & ~member
        open_[closed] = False
    said = np.full(relays, NOT)
    can = canaries * (np.log2(made.pools) - 1) >= votes.told
    said[~can | doubtful | (relays < 2)] = UNTOLD
    said[member] = LINKED
    return said


def _anchor(made: Fleet, group: NDArray[np.bool_], votes: Votes, *, equal: bool) -> int:
    rows = np.flatnonzero(group)
    bins = made.places[rows]
    if not equal:
        bins = np.floor(votes.bins * (bins + 0.5) / made.pools[rows, None]).astype(np.int64)
    crowd = np.zeros(len(rows))
    for column in bins.T:
        crowd += np.bincount(column)[column]
    tie = 1e-6 * (made.places[rows] / made.pools[rows, None]).mean(axis=1)
    if equal:
        return int(rows[np.argmax(crowd + tie)])
    beyond = crowd - bins.shape[1] * len(rows) / votes.bins
    return int(rows[np.argmax(beyond * np.log2(made.pools[rows]) + tie)])


def _matches(made: Fleet, group: NDArray[np.bool_], anchor: int, votes: Votes) -> Floats:
    """Bits of those that match, minus infinity for everybody else."""
    width, base = 1 / made.pools, made.places / made.pools[:, None]
    top = (made.places + 1) / made.pools[:, None]
    hits = ((base < top[anchor]) & (top > base[anchor])).sum(axis=1)
    worth: Floats = -np.log2(1 - (1 - width) * (1 - width[anchor])) + 0.9 * (made.pools == made.pools[anchor])
    tries = made.places.shape[1]
    misses = tries - hits
    bits: Floats = hits * worth - misses * np.log2(2.72 * tries / np.maximum(misses, 1))
    bits[(hits < votes.share * tries) | ~group] = -np.inf
    bits[anchor] = -np.inf
    return bits


def _members(matches: Floats, everyone: int, relays: int, votes: Votes) -> NDArray[np.bool_] | None:
    count = int(np.isfinite(matches).sum())
    if not count:
        return None
    enough = matches >= votes.member + np.log2(everyone / count)
    found, others = int(enough.sum()), everyone - 1
    if not found:
        return None
    bits = matches[enough].sum() - np.log2(relays) - found * np.log2(others / found)
    bits -= (others - found) * np.log2(others / max(others - found, 1))
    return enough if bits >= votes.bits else None
