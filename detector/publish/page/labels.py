# SPDX-License-Identifier: Apache-2.0
"""What the status page calls things."""

from __future__ import annotations

from datetime import UTC, datetime

from detector.analysis.report import Verdict
from detector.base.family import Family
from detector.publish.page.html import Markup, element, join

SEVERITY = {
    Verdict.PREDICTABLE: "critical",
    Verdict.EXCLUSIVE: "critical",
    Verdict.PINNED: "warning",
    Verdict.DESTINATION_LINKED: "warning",
    Verdict.SESSION_STICKY: "info",
    Verdict.SINGLE_EXIT: "ok",
    Verdict.UNLINKABLE: "ok",
    Verdict.UNKNOWN: "unknown",
}

HEADLINE = {
    Verdict.PREDICTABLE: "Leaking: anybody can compute which exit address a peer gets",
    Verdict.EXCLUSIVE: "Leaking: some peers have an exit address to themselves",
    Verdict.PINNED: "Leaking on this relay: peers keep their exit address",
    Verdict.DESTINATION_LINKED: "Leaking to sites: a site sees the same exit address whenever a peer returns",
    Verdict.SESSION_STICKY: "No leak across sessions: each session of a peer gets an exit address of its own",
    Verdict.SINGLE_EXIT: "Nothing to learn: everybody leaves by one exit address",
    Verdict.UNLINKABLE: "No leak: exit addresses do not say who the peer is",
    Verdict.UNKNOWN: "Not known: the evidence does not allow a verdict",
}

FAMILY = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}

CONTRAST = {
    "any": "To different destinations",
    "same_destination": "Back to the same destination",
    "same_port": "From the same source port",
}

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def term(verdict: str) -> str:
    """A verdict as words; the name that metrics and rules use has a dash below."""
    return verdict.replace("_", " ")


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
    when = datetime.fromtimestamp(at, UTC)
    text = element("time", f"{when:%Y-%m-%d %H:%M:%S} UTC", datetime=when.isoformat(timespec="seconds"))
    return join(text, f" ({ago(clock - at)} ago)")
