# SPDX-License-Identifier: Apache-2.0
"""A clock that is set to anything breaks nothing."""

from __future__ import annotations

import pytest

from detector.base.moments import moment_of, written


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00+00:00"),
        (-5.0, "1970-01-01T00:00:00+00:00"),
        (1_700_000_000.9, "2023-11-14T22:13:20+00:00"),
        (253_402_300_799.0, "9999-12-31T23:59:59+00:00"),
        (253_402_300_800.0, "9999-12-31T23:59:59+00:00"),
        (1e18, "9999-12-31T23:59:59+00:00"),
        (float("inf"), "9999-12-31T23:59:59+00:00"),
    ],
)
def test_any_time_can_be_written(seconds: float, text: str) -> None:
    """What no calendar holds is shown as its end."""
    assert written(seconds) == text
    assert moment_of(seconds).tzinfo is not None
