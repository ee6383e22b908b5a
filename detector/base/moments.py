# SPDX-License-Identifier: Apache-2.0
"""Moments as people read them. A clock may be set to anything: what no calendar holds is shown as its end."""

from __future__ import annotations

from datetime import UTC, datetime

_FIRST, _LAST = 0.0, 253_402_300_799.0  # 1970 begins, 9999 ends


def moment_of(seconds: float) -> datetime:
    """The moment so many seconds after the beginning of 1970, in UTC."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


def written(seconds: float) -> str:
    """That moment in ISO 8601, to the second."""
    return moment_of(seconds).isoformat(timespec="seconds")
