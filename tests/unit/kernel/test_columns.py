# SPDX-License-Identifier: Apache-2.0
"""From the kernel's blocks to pairs: each count is under its slot and its exit."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.kernel.drain import BLOCK, FIRSTS, IPV6_EXITS, VOTES, _kinds, rows, widened
from detector.kernel.tables import EXITS_IN_BLOCK

PAIRS = st.dictionaries(
    st.tuples(
        st.integers(0, 2**24),
        st.booleans(),
        st.integers(0, 2**23),
        st.sampled_from((0, int(VOTES), int(FIRSTS))),
    ),
    st.integers(1, 2**32 - 1),
    max_size=40,
)


@given(PAIRS, st.randoms())
def test_blocks_in_any_order_are_the_pairs_that_were_counted(
    pairs: dict[tuple[int, bool, int, int], int], order: random.Random
) -> None:
    """Blocks that are put together as the program does give every count once, under its kind."""
    blocks: dict[tuple[int, int], list[int]] = {}
    for (slot, six, exit_, kind), count in pairs.items():
        group, place = divmod(exit_, EXITS_IN_BLOCK)
        owner = slot + 1 | int(kind) | (int(IPV6_EXITS) if six else 0)
        blocks.setdefault((owner, group), [0] * EXITS_IN_BLOCK)[place] = count
    taken = [(group, owner, counts) for (owner, group), counts in blocks.items()]
    order.shuffle(taken)
    table = np.array(taken, BLOCK)
    found: dict[tuple[int, bool, int, int], int] = {}
    for kind, mask in zip((0, int(VOTES), int(FIRSTS)), _kinds(table["owner"]), strict=True):
        for slot, six, exit_, count in zip(*rows(table[mask]), strict=True):
            found[int(slot), bool(six), int(exit_), kind] = int(count)
    assert found == pairs


def test_a_block_that_was_claimed_in_vain_is_no_pair() -> None:
    """A flow that was lost since its votes had no room leaves a block of zeros."""
    assert [len(column) for column in rows(np.array([(3, 9, [0] * EXITS_IN_BLOCK)], BLOCK))] == [0] * 4


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_packed_counts_are_told_apart_by_their_growth(grown: list[int], before: int) -> None:
    """Whatever four packed counters stood at, their growth is found, also where one overflows."""
    now = before
    for part, count in enumerate(grown):
        now = (now + (count << 8 * part)) % 2**32
    growth = np.array([now], np.uint32) - np.array([before], np.uint32)
    assert [int(widened(growth)[0]) >> 16 * part & 0xFFFF for part in range(4)] == grown
