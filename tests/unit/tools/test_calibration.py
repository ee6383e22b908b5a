# SPDX-License-Identifier: Apache-2.0
"""A small run of the calibration keeps what docs/calibration.md promises."""

from __future__ import annotations

from tools.calibrate import HOURS, by_name, innocent, page, power, times
from tools.realistic_relays import BRIEF, EVERYBODYS, INDEPENDENT


def test_nothing_innocent_is_called_a_leak_at_any_look() -> None:
    """Independent exits, exits that everybody shares, exits that are kept for a short time."""
    for kinds in (INDEPENDENT, EVERYBODYS, BRIEF):
        rows = innocent(kinds, relays=2, hours=HOURS[::3], seed=7)
        assert [one.ever for one in rows] == [0] * len(kinds)
        assert sum(one.named for one in rows) <= 0.01 * sum(one.peers for one in rows)


def test_leaks_are_found() -> None:
    """Every kind, and of a tenth that is pinned nearly everybody by name."""
    assert all(one.found == one.relays for one in power(relays=1, seed=7))
    for one in by_name(relays=1, peers=300, seed=7):
        if one.name.startswith("web"):
            assert one.found == 1
            assert one.named >= 0.85 * one.leaking, one
        assert one.innocents_named <= 3


def test_verdicts_come_in_time() -> None:
    """The kernel's hash within minutes, a harmless relay within the hour, a session never as a leak."""
    predictable, unlinkable, sticky, pinned = times(relays=1, seed=7)
    assert predictable.median <= 20 and predictable.flows <= 100
    assert unlinkable.median <= 60
    assert sticky.leaks == unlinkable.leaks == 0
    assert pinned.never == 0


def test_the_page_counts_up() -> None:
    """The document's sums are those of its rows."""
    rows = innocent(INDEPENDENT, 1, (24.0,), seed=1)
    text = page(rows, rows, rows, power(1, 1), by_name(1, 60, 1), times(1, 1))
    assert f"{sum(one.relays for one in rows)} relays:" in text
    assert "nan" not in text
