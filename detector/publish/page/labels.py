# SPDX-License-Identifier: Apache-2.0
"""What the status page calls things."""

from __future__ import annotations

from detector.base.moments import moment_of
from detector.publish.page.html import Markup, element, join

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def ago(seconds: float) -> str:
    """A span of time in its two largest units."""
    left, parts = max(0, int(seconds)), []
    for size, unit in _UNITS:
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or "0 s"


def moment(at: float, clock: float) -> Markup:
    """A time of day, and how long ago that is.

    Args:
        at: seconds since 1970.
        clock: now.
    """
    when = moment_of(at)
    text = element("time", f"{when:%Y-%m-%d %H:%M:%S} UTC", datetime=when.isoformat(timespec="seconds"))
    return join(text, f" ({ago(clock - at)} ago)")
