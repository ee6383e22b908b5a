# SPDX-License-Identifier: Apache-2.0
"""What a soak calls growth: on each side of its thresholds."""

from __future__ import annotations

import pytest

from tools.soak import grown


@pytest.mark.parametrize(
    ("what", "more", "found"),
    [
        ("bytes", 10_000_000 + (6 << 20), 0),
        ("bytes", 10_000_001 + (6 << 20), 1),
        ("descriptors", 3, 0),
        ("descriptors", 4, 1),
        ("threads", 3, 0),
        ("threads", 4, 1),
    ],
)
def test_growth_since_a_third_is_found(what: str, more: int, found: int) -> None:
    """The start does not count, the end does."""
    usual = {"bytes": 100_000_000, "descriptors": 20, "threads": 3}
    small = dict.fromkeys(usual, 1)
    late = usual | {what: usual[what] + more}
    samples = [{"sensor": one} for one in (small, usual, usual, usual, late)]
    assert len(grown(samples)) == found
