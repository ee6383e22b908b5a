# SPDX-License-Identifier: Apache-2.0
"""A small run of the calibration keeps what docs/calibration.md promises."""

from __future__ import annotations

from tools.calibrate import PINNED_SHARE, false_alarms, page, power


def test_few_false_alarms() -> None:
    """On relays with independent exits under 1 % of the peers and of the relays are called a leak."""
    alarms = false_alarms(relays=80, peers=200, seed=7)
    assert sum(one.flagged for one in alarms) < 0.01 * sum(one.judged for one in alarms)
    assert sum(one.called for one in alarms) <= 0.01 * sum(one.relays for one in alarms)
    assert sum(one.unlinkable for one in alarms) > 40


def test_pinned_peers_are_found() -> None:
    """A tenth of the peers, pinned, with six votes each: at least 95 % of them are found one by one."""
    powers = power(relays=1, peers=1000, seed=7)
    for one in powers:
        if one.name.startswith("6 votes"):
            assert one.found >= 0.95 * one.pinned, one.name
        assert one.called == one.relays
    assert PINNED_SHARE == 0.1


def test_the_page_counts_up() -> None:
    """The document's sums are those of its rows."""
    alarms, powers = false_alarms(1, 20, seed=1), power(1, 30, seed=1)
    text = page(alarms, powers, 20)
    assert f"{sum(one.relays for one in alarms)} simulated relays" in text
    assert text.count("\n| ") == len(alarms) + len(powers) + 4
