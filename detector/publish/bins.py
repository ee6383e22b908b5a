# SPDX-License-Identifier: Apache-2.0
"""Counts in bins: who looks again and again is not to see single flows. No NumPy, as `start` needs this."""

from __future__ import annotations

import math
from typing import Any

_COUNTS = frozenset({"flows", "votes", "tried", "trials", "sessions_begun"})
_STEP = math.log(1.25)


def binned(count: float) -> int:
    """A count to the nearest of some numbers, each a quarter more than the one before."""
    if count < 1:
        return 0
    return round(math.exp(_STEP * round(math.log(count) / _STEP)))


def coarse(answer: Any) -> Any:
    """An answer of the socket as it is told to those who are not root: counts of flows in bins.

    Whoever may ask sees peers by pseudonym. Who asks again and again is not to see single flows of one.
    """
    if isinstance(answer, dict):
        return {
            key: binned(value) if key in _COUNTS and isinstance(value, int) else coarse(value)
            for key, value in answer.items()
        }
    return [coarse(one) for one in answer] if isinstance(answer, list) else answer
