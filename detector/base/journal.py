# SPDX-License-Identifier: Apache-2.0
"""How systemd's journal learns what a line is worth."""

from __future__ import annotations

import os
from typing import TextIO

_PRIORITIES = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}


def is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to systemd's journal, by the name that systemd gives the stream."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def priority(level: str) -> str:
    """How a line of this level begins in the journal (sd-daemon(3)); without it each is of level info."""
    return _PRIORITIES.get(level, "<6>")
