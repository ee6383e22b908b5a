# SPDX-License-Identifier: Apache-2.0
"""What is counted of a person beside its pairs: words of 64 bits that add up, kept where they are not 0.

A word that holds several counts is packed so that no count can reach its neighbour in a window: the kernel's
budgets bound each. `Columns` of them have the key row << WORD_BITS | word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.base.flows import FLOW_CLASSES, LAGS
from detector.counts.columns import Columns

WORD_BITS = np.uint64(7)
_MASK = np.uint64((1 << 7) - 1)

_LAGS = len(LAGS)
# Four words of 16 bits each: both, mine, other, none.
VOTE_SANDWICHES = 0  # and on, by class and lag
RETURN_SANDWICHES = len(FLOW_CLASSES) * _LAGS  # and on, by lag
# Two words of 32 bits each: tried, true.
LONE_RETURNS = RETURN_SANDWICHES + _LAGS  # and on, by lag
SAME_PORT = LONE_RETURNS + _LAGS
DESTINATION = SAME_PORT + 1
# One count each.
EXPECTED = DESTINATION + 1  # in units of 1 / EXPECTED_UNIT
SESSIONS = EXPECTED + 1
UNTRANSLATED_GLOBAL = SESSIONS + 1
UNTRANSLATED_PRIVATE = UNTRANSLATED_GLOBAL + 1
UNTRACKED = UNTRANSLATED_PRIVATE + 1
REFUSED = UNTRACKED + 1
PORT_BLOCKS = 64  # and on, by block of ports: how many times it was seen

SINGLE = (EXPECTED, SESSIONS, REFUSED)

EXPECTED_UNIT = 1 << 24


def keys_of(rows: NDArray[np.integer], word: int) -> NDArray[np.uint64]:
    """The keys of a word for these rows."""
    keys: NDArray[np.uint64] = (rows.astype(np.uint64) << WORD_BITS) | np.uint64(word)
    return keys


def rows_of(words: Columns) -> NDArray[np.int64]:
    """The row of each word."""
    return (words.keys >> WORD_BITS).astype(np.int64)


def only(words: Columns, word: int) -> Columns:
    """Those of one word."""
    return words.keep(words.keys & _MASK == word)


class Words:
    """The words of some persons, dense.

    Args:
        words: those of the window.
        peer_of_row: shape (rows,): which person a row is, below 0 for one that is not asked for.
        peers: how many persons.
    """

    def __init__(self, words: Columns, peer_of_row: NDArray[np.int64], peers: int) -> None:
        peer = peer_of_row[rows_of(words)] if len(words) else np.empty(0, np.int64)
        mine = peer >= 0
        self._peer, self._peers = peer[mine], peers
        self._word = (words.keys[mine] & _MASK).astype(np.int64)
        self._counts = words.counts[mine]

    def dense(self, word: int, count: int = 1) -> NDArray[np.uint64]:
        """`count` words from one on, shape (peers, count)."""
        found = np.zeros((self._peers, count), np.uint64)
        some = (self._word >= word) & (self._word < word + count)
        found[self._peer[some], self._word[some] - word] = self._counts[some]
        return found

    def one(self, word: int) -> NDArray[np.uint64]:
        """A word that is one count, shape (peers,)."""
        found: NDArray[np.uint64] = self.dense(word)[:, 0]
        return found

    def port_blocks(self) -> NDArray[np.uint64]:
        """Shape (peers,): bit b is set where block b was seen."""
        seen = self.dense(PORT_BLOCKS, 64) > 0
        bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
        found: NDArray[np.uint64] = np.where(seen, bits, np.uint64(0)).sum(axis=1, dtype=np.uint64)
        return found


def unpacked(packed: NDArray[np.uint64], parts: int) -> Sequence[NDArray[np.uint32]]:
    """The counts in packed words, the lowest bits first; each of the shape given."""
    bits = 64 // parts
    mask = np.uint64((1 << bits) - 1)
    return [(packed >> np.uint64(bits * part) & mask).astype(np.uint32) for part in range(parts)]
