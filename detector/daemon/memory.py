# SPDX-License-Identifier: Apache-2.0
"""Resident memory of our own process."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Bytes of this process that are in memory, from procfs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
