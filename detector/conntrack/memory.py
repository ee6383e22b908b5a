# SPDX-License-Identifier: Apache-2.0
"""The bounded memories behind the contrasts: what was last seen at a place (a destination, a source port).

What ``lookup_or_insert()`` of bpf/contrasts.h does for one flow, for many in their order. A key is 64 bits of
a hash with a secret that is drawn at start, so no destination is kept.

A memory that is full goes on with half of the places, chosen by their hash. What is measured is then a sample
of the places, whole histories each: nothing is lost that could have shown a leak but not its absence.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_EVERYTHING = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Before:
    """What was remembered, for n flows.

    Attributes:
        known: shape (n,): there was something.
        values: by column of the memory, shape (n,); anything where nothing was known.
    """

    known: NDArray[np.bool_]
    values: tuple[NDArray[Any], ...]


class Memory:
    """The last values of each key.

    Args:
        capacity: how many keys it holds.
        columns: the type of each value.
    """

    def __init__(self, capacity: int, columns: Sequence[type[np.generic]]) -> None:
        self._capacity = capacity
        self._keys = np.empty(0, np.uint64)  # ascending
        self._values = [np.empty(0, column) for column in columns]
        self._limit = _EVERYTHING

    def __len__(self) -> int:
        return len(self._keys)

    def admits(self, places: Keys) -> NDArray[np.bool_]:
        """Which places, given by their hash, are among those that it goes on with."""
        admitted: NDArray[np.bool_] = places <= self._limit
        return admitted

    @property
    def limit(self) -> np.uint64:
        """The highest hash of a place that it goes on with."""
        return self._limit

    def remember(self, keys: Keys, values: Sequence[NDArray[Any]]) -> Before:
        """Put values in the places of their keys, one flow after the other; returns what was there before."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        first = np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(keys)]
        starts = np.flatnonzero(first)
        distinct = ordered[starts]
        place, there = self._find(distinct)
        last = np.append(starts[1:], len(keys)) - 1
        known = np.ones(len(keys), np.bool_)
        known[starts] = there
        result_known = np.empty(len(keys), np.bool_)
        result_known[order] = known
        before: list[NDArray[Any]] = []
        fresh = ~there
        for index, (column, given) in enumerate(zip(self._values, values, strict=True)):
            sorted_values = given[order].astype(column.dtype)
            previous = np.concatenate((sorted_values[:1], sorted_values[:-1]))
            previous[starts[there]] = column[place[there]]
            result = np.empty(len(keys), column.dtype)
            result[order] = previous
            before.append(result)
            column[place[there]] = sorted_values[last[there]]
            self._values[index] = np.insert(column, place[fresh], sorted_values[last[fresh]])
        self._keys = np.insert(self._keys, place[fresh], distinct[fresh])
        if len(self._keys) > self._capacity:
            self.cut(self._keys[self._capacity // 2] >> _HALF << _HALF)
        return Before(result_known, tuple(before))

    def cut(self, limit: np.uint64) -> None:
        """Go on with the places below a limit only."""
        if limit >= self._limit:
            return
        self._limit = limit - np.uint64(1) if limit else np.uint64(0)
        kept = int(np.searchsorted(self._keys, self._limit, side="right"))
        self._keys = self._keys[:kept].copy()
        self._values = [column[:kept].copy() for column in self._values]

    def _find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each key is or would be, and whether it is there."""
        place = np.searchsorted(self._keys, keys)
        if not len(self._keys):
            return place, np.zeros(len(keys), np.bool_)
        return place, self._keys[np.minimum(place, len(self._keys) - 1)] == keys


class Hash:
    """A hash with a secret of its own."""

    def __init__(self) -> None:
        self._secret = np.uint64(secrets.randbits(64))

    def places(self, *words: Keys) -> Keys:
        """64 bits for each place that some words name, shape (n,)."""
        mixed = np.full(len(words[0]), self._secret)
        for word in words:
            mixed = _mix(mixed) ^ word
        return _mix(mixed)

    def of_rows(self, places: Keys, rows: NDArray[np.int64]) -> Keys:
        """Keys for the same places by row of a peer, in the order of the places."""
        mixed = _mix(places ^ _mix(rows.astype(np.uint64) ^ self._secret))
        return places >> _HALF << _HALF | mixed & _LOW


def _mix(word: Keys) -> Keys:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
