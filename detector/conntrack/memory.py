# SPDX-License-Identifier: Apache-2.0
"""The bounded memories behind the contrasts: the last exit of each (peer, destination) and (peer, port).

What ``remember()`` of bpf/contrasts.h does for one flow, for many in their order. A key is 64 bits of a
hash with a secret that is drawn at start, so no destination is kept.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Exits = NDArray[np.int64]

NEW = -1
FULL = -2


class Memory:
    """The last exit of each key.

    Args:
        capacity: how many keys it holds, at 12 bytes each.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys = np.empty(0, np.uint64)  # ascending
        self._last = np.empty(0, np.int32)
        self._secret = np.uint64(secrets.randbits(64))

    def key(self, row: NDArray[np.int64], *words: Keys) -> Keys:
        """A key for each row of a peer and some words that belong to it, shape (n,)."""
        mixed = row.astype(np.uint64) ^ self._secret
        for word in words:
            mixed = _mix(mixed) ^ word
        return _mix(mixed)

    def remember(self, keys: Keys, exits: Exits) -> Exits:
        """Put exits in the places of their keys, one flow after the other.

        Returns:
            Shape (n,): the exit that was there before, `NEW` where the key was not there, `FULL` where there
            was no room for it.
        """
        order = np.argsort(keys, kind="stable")
        ordered, chosen = keys[order], exits[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        distinct, last = ordered[starts], chosen[np.append(starts[1:], len(keys)) - 1].astype(np.int32)
        before = np.concatenate(([NEW], chosen[:-1]))
        place, known = self._find(distinct)
        before[starts] = NEW
        before[starts[known]] = self._last[place[known]]
        self._last[place[known]] = last[known]
        fresh = np.flatnonzero(~known)
        room = max(self._capacity - len(self._keys), 0)
        refused = fresh[room:]
        fresh = fresh[:room]
        self._keys = np.insert(self._keys, place[fresh], distinct[fresh])
        self._last = np.insert(self._last, place[fresh], last[fresh])
        if len(refused):
            before[np.isin(ordered, distinct[refused])] = FULL
        result = np.empty(len(keys), np.int64)
        result[order] = before
        return result

    def _find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each key is or would be, and whether it is there."""
        place = np.searchsorted(self._keys, keys)
        if not len(self._keys):
            return place, np.zeros(len(keys), np.bool_)
        return place, self._keys[np.minimum(place, len(self._keys) - 1)] == keys


def _mix(word: Keys) -> Keys:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
