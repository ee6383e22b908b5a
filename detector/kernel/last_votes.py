# SPDX-License-Identifier: Apache-2.0
"""The exits of the slots' last votes, for the process that knows the tunnel addresses; no NumPy in here."""

from __future__ import annotations

from array import array

from detector.kernel import mapped
from detector.kernel.tables import EVIDENCE_SIZE

# Where struct evidence of bpf/tables.h has its `last_exit`, in bytes, and its `votes`, in words.
LAST_EXIT, EXIT_SIZE = 160, 16
VOTES = 44
_WORDS = EVIDENCE_SIZE // 4


class LastVotes:
    """Who has voted since it was asked, and for what.

    Args:
        evidences: the map's descriptor.
        slots: how many it has.
    """

    def __init__(self, evidences: int, slots: int) -> None:
        self._table = evidences
        self._seen = array("I", bytes(4 * slots))

    def since(self, upto: int) -> list[tuple[int, bytes]]:
        """Slots below a number with a vote since the last time, each with that vote's exit as 16 bytes."""
        if not upto:
            return []
        seen, found = self._seen, []
        with mapped.opened(self._table, 0, upto * EVIDENCE_SIZE) as memory:
            words = memory[: upto * EVIDENCE_SIZE].cast("I")
            for slot in range(upto):
                votes = words[slot * _WORDS + VOTES]
                if votes != seen[slot]:
                    seen[slot] = votes
                    at = slot * EVIDENCE_SIZE + LAST_EXIT
                    if votes:  # none: it was cleared for somebody else
                        found.append((slot, bytes(memory[at : at + EXIT_SIZE])))
            words.release()
        return found
