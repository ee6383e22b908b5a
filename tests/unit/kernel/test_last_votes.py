# SPDX-License-Identifier: Apache-2.0
"""The exits of last votes are read where the kernel program writes them, each vote once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from detector.kernel import mapped
from detector.kernel.drain import EVIDENCE
from detector.kernel.last_votes import EXIT_SIZE, LAST_EXIT, VOTES, LastVotes
from detector.kernel.tables import EVIDENCE_SIZE

SLOTS = 100


@pytest.fixture
def table() -> Iterator[int]:
    """A file in memory in the place of the map."""
    descriptor = os.memfd_create("evidences")
    os.truncate(descriptor, SLOTS * EVIDENCE_SIZE + mapped.PAGE)
    yield descriptor
    os.close(descriptor)


def vote(table: int, slot: int, exit_: bytes, votes: int) -> None:
    """What the kernel program writes."""
    with mapped.opened(table, slot * EVIDENCE_SIZE, EVIDENCE_SIZE) as memory:
        row = np.frombuffer(memory, EVIDENCE, 1)
        row["last_exit"], row["votes"] = np.frombuffer(exit_, "V16"), votes
        del row


def test_the_places_are_those_of_the_layout() -> None:
    """As the columns have them, which are compared with the C source."""
    fields = EVIDENCE.fields
    assert fields is not None
    assert fields["last_exit"][1] == LAST_EXIT
    assert fields["last_exit"][0].itemsize == EXIT_SIZE
    assert fields["votes"][1] == VOTES * 4
    assert EVIDENCE.itemsize == EVIDENCE_SIZE


def test_each_vote_is_seen_once(table: int) -> None:
    """Who has voted since, with the exit; a slot that was cleared has not; the rest is not looked at."""
    reader = LastVotes(table, SLOTS)
    assert reader.since(0) == []
    assert reader.since(SLOTS) == []
    vote(table, 3, b"a" * 16, 1)
    vote(table, 99, b"b" * 16, 7)
    assert reader.since(50) == [(3, b"a" * 16)]
    assert reader.since(SLOTS) == [(99, b"b" * 16)]
    assert reader.since(SLOTS) == []
    vote(table, 3, b"c" * 16, 2)
    vote(table, 99, bytes(16), 0)
    assert reader.since(SLOTS) == [(3, b"c" * 16)]
