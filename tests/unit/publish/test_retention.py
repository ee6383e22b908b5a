# SPDX-License-Identifier: Apache-2.0
"""What is said to be in memory is counted where it is."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import numpy as np

from detector.base.family import Family, pack
from detector.config.model import Config, Tables
from detector.counts.columns import Columns
from detector.counts.roster import Exits, Member, Roster
from detector.counts.window import Counts, Held, Window
from detector.daemon.counting import SHAPE
from detector.publish.retention import Holding, files_written, holdings


def counts(pairs: int, trials: int) -> Counts:
    """So many entries, each of them 1."""
    flows, words = (
        Columns(np.arange(number, dtype=np.uint64), np.ones(number, np.uint64)) for number in (pairs, trials)
    )
    return Counts(np.zeros(SHAPE, np.int64), flows=flows, words=words)


def member(slot: int) -> Member:
    """A peer of whom one predictor says one exit."""
    return Member(slot, Family.IPV4, False, f"peer-{slot}", {"linear": ["203.0.113.9"]})


def test_the_window_counts_its_panes() -> None:
    """Entries of all panes, closed or not; the oldest is the first that has any, and leaves with its pane."""
    window = Window(span=30.0, panes=3, shape=SHAPE, now=100.0)
    assert window.held(105.0) == Held(1, 0, 0, None, 0)
    window.turn(111.0)
    window.add(counts(5, 2))
    window.turn(121.0)
    window.add(counts(3, 0))
    held = window.held(124.0)
    assert (held.panes, held.pairs, held.trials, held.oldest) == (3, 8, 2, 14.0)
    assert held.size == (8 + 2) * (8 + 8)
    window.turn(151.0)
    assert window.held(151.0).pairs == 3
    window.turn(161.0)
    assert window.held(161.0) == Held(4, 0, 0, None, 0)


def test_the_aggregators_numbers_are_those_of_its_tables() -> None:
    """Peers that are there, peers that are gone, predictions, exits, and the room that the kernel has."""
    exits = Exits()
    roster = Roster(exits)
    roster.add([member(slot) for slot in range(5)])
    roster.retire([1, 3])
    exits.number(pack(ip_address("203.0.113.10")))
    config = Config(tables=Tables(peers=16, destinations=64))
    found: dict[str, Holding] = {
        one.what: one
        for one in holdings(
            config, {"keys": 7}, roster, exits, Held(1, 4, 0, 2.0, 80), fill={"pairs": 6}, before=2
        )
    }
    assert found["pseudonyms of tunnel addresses on the relay"].count == 3
    assert found["pseudonyms of tunnel addresses that are gone"].count == 2
    assert found["predicted exits of those"].count == 5
    assert found["exit addresses"].count == 2  # the aggregator's come after the kernel's
    assert (found["tunnel address → slot"].count, found["tunnel address → slot"].room) == (3, 16)
    assert found["keyed hashes of slot and destination"].as_dict()["room"] == 64
    assert found["public keys of peers"].count == 7
    assert found["slots of peers that are gone"].count is None
    assert all(one.until for one in found.values())


def test_a_file_that_is_written_is_seen(tmp_path: Path) -> None:
    """One more while it is open for writing, none more for reading or without a name."""
    before = files_written()
    path = tmp_path / "file"
    with path.open("w"):
        assert files_written() == before + 1
        with path.open("rb"):
            assert files_written() == before + 1
        path.unlink()
        assert files_written() == before
