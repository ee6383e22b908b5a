# SPDX-License-Identifier: Apache-2.0
"""From the kernel's blocks to pairs: each count is under its slot and its exit."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.kernel.drain import BLOCK, VOTES_FIRSTS, rows
from detector.kernel.tables import EXITS_IN_BLOCK

PAIRS = st.dictionaries(
    st.tuples(st.integers(0, 2**24), st.integers(0, 2**23)),
    st.tuples(st.integers(1, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)),
    max_size=40,
)


@given(PAIRS, st.randoms())
def test_blocks_in_any_order_are_the_pairs_that_were_counted(
    pairs: dict[tuple[int, int], tuple[int, int, int]], order: random.Random
) -> None:
    """Blocks that are put together as the program does give every pair once, with its three counts."""
    blocks: dict[tuple[int, int], list[int]] = {}
    for (slot, exit_), (flows, votes, session_starts) in pairs.items():
        group, place = divmod(exit_, EXITS_IN_BLOCK)
        blocks.setdefault((slot + 1, group), [0] * EXITS_IN_BLOCK)[place] = flows
        if votes or session_starts:
            rest = blocks.setdefault((slot + 1 | int(VOTES_FIRSTS), group), [0] * EXITS_IN_BLOCK)
            rest[place] = votes | session_starts << 16
    taken = [(group, owner, counts) for (owner, group), counts in blocks.items()]
    order.shuffle(taken)
    found = dict.fromkeys(pairs, np.zeros(3, np.uint32))
    for slot, exit_, counts in zip(*rows(np.array(taken, BLOCK)), strict=True):
        found[int(slot), int(exit_)] = found[int(slot), int(exit_)] + counts
    assert {pair: tuple(map(int, counts)) for pair, counts in found.items()} == pairs


def test_a_block_that_was_claimed_in_vain_is_no_pair() -> None:
    """A flow that was lost since its votes had no room leaves a block of zeros."""
    slots, exits, counts = rows(np.array([(3, 9, [0] * EXITS_IN_BLOCK)], BLOCK))
    assert (len(slots), len(exits), counts.shape) == (0, 0, (0, 3))
