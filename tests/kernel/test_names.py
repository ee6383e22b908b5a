# SPDX-License-Identifier: Apache-2.0
"""The exit that a tag stands for is found, whatever tags there are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.kernel.drain import EXIT, EXIT_TAG, PAIR, Names

# The same in both halves, or the halves changed: tags that are looked for in the same place.
TAGS = st.tuples(st.integers(0, 1), st.sampled_from([0, 0x00010001, 0x00020001, 0x00010002, 5, 0xFFFFFFFF]))


@given(st.lists(TAGS, unique=True), st.lists(TAGS))
def test_every_tag_is_found_or_has_no_name(
    named: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    """Each pair gets the exit of its own family and tag, and none where there is none."""
    exits = np.array([bytes([index]) * 16 for index in range(len(named))], EXIT)
    names = Names.of(np.array(named, EXIT_TAG), exits)
    pairs = np.zeros(len(wanted), PAIR)
    pairs["owner"] = [(family << 31) + 7 for family, _ in wanted]
    pairs["tag"] = [tag for _, tag in wanted]
    for one, at in zip(wanted, names.find(pairs), strict=True):
        if one in named:
            assert bytes(names.exits[at]) == bytes(exits[named.index(one)])
        else:
            assert at == -1
