# SPDX-License-Identifier: Apache-2.0
"""What becomes of a flow on its way to being counted."""

from __future__ import annotations

from enum import IntEnum


class Outcome(IntEnum):
    """What became of a flow; the numbers are those of ``enum outcome`` in bpf/tables.h."""

    COUNTED = 0
    NOT_A_PEER = 1
    NOT_TRANSLATED = 2
    UNATTRIBUTED = 3
    UNREADABLE = 4
    LOST_PAIRS = 5
    LOST_DESTINATIONS = 6
    LOST_PORTS = 7
    LOST_EXITS = 8
    UNTRACKED = 9


# A lost flow is in no count; a lost measurement is of a flow that is counted and says no more than that.
LOST_FLOWS = {
    "pairs_full": Outcome.LOST_PAIRS,
    "exits_full": Outcome.LOST_EXITS,
    "unreadable": Outcome.UNREADABLE,
}
LOST_MEASUREMENTS = {
    "destinations_full": Outcome.LOST_DESTINATIONS,
    "ports_full": Outcome.LOST_PORTS,
}
LOSSES = LOST_FLOWS | LOST_MEASUREMENTS
