# SPDX-License-Identifier: Apache-2.0
"""`exitprint status --check`: the status as one number, for scripts and for systems that know four states."""

from __future__ import annotations

from datetime import datetime

from detector.base.answers import StatusAnswer
from detector.base.verdicts import Severity, words_of
from detector.client.render import is_old

OK, TICKET, PAGE, NOT_KNOWN = range(4)

CHECK_HELP = """\b
Exit status with --check:
  0  no leak: session_sticky, single_exit or unlinkable
  1  a leak on this relay: pinned or destination_linked
  2  a leak beyond this relay: predictable or exclusive
  3  not known: unknown, waiting, no report or an old one, or nobody answers
"""

_STATUS = {
    Severity.OK: OK,
    Severity.INFO: OK,
    Severity.WARNING: TICKET,
    Severity.CRITICAL: PAGE,
    Severity.UNKNOWN: NOT_KNOWN,
}


def check_status(status: StatusAnswer, now: datetime) -> int:
    """0 no leak, 1 a leak here, 2 a leak beyond this relay, 3 not known; what is old is not known."""
    if is_old(status, now) or status["waiting"]:
        return NOT_KNOWN
    return _STATUS[words_of(status["verdict"]).severity]
