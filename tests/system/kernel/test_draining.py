# SPDX-License-Identifier: Apache-2.0
"""Draining while flows come in loses none and counts none twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from detector.base.family import Family
from detector.kernel import bpf, peer_table
from detector.kernel.drain import BLOCK, EXIT, SLOT, possible_processors
from detector.kernel.loader import Loaded
from detector.kernel.tables import FAMILIES, SLOT_SIZE, Outcome, blocks, peer_lines
from detector.lab.namespaces import entered
from tests.system.kernel.program import SHARED, Key, Program, counted_by_conntrack, fdinfo
from tests.system.kernel.topology import LEAVE, Relay, peer

pytestmark = pytest.mark.root

SOURCES, FLOWS = 40, 600
RULE = f"{LEAVE} snat to 203.0.113.1-203.0.113.64"


def test_draining_under_load_loses_nothing(relay: Relay, program: Program) -> None:
    """While another process opens flows, drains in a row add up to exactly what conntrack lists."""
    relay.rules(RULE)
    slots = program.add_all(peer(number) for number in range(1, SOURCES + 1))
    with entered(relay.sender):
        burst = subprocess.Popen(
            [sys.executable, "-I", Path(__file__).with_name("burst.py"), str(SOURCES), str(FLOWS)]
        )
    total: Counter[Key] = Counter()
    drains = 0
    while burst.poll() is None:
        part = program.drain().flows
        total += part
        drains += bool(part)
    deadline = time.monotonic() + 20
    while relay.entries() < SOURCES * FLOWS and time.monotonic() < deadline:
        time.sleep(0.01)
    total += program.drain().flows
    assert burst.returncode == 0
    assert drains > 2
    assert program.outcomes() == {(Family.IPV4, Outcome.COUNTED): SOURCES * FLOWS}
    assert total.total() == SOURCES * FLOWS
    truth = counted_by_conntrack(relay.listing(), slots)
    assert {key: (total[key], truth[key]) for key in total | truth if total[key] != truth[key]} == {}


def test_nothing_is_drained_twice(relay: Relay, program: Program) -> None:
    """A drain without flows in between is empty, whichever of the two tables it reads."""
    relay.rules(RULE)
    program.add(peer(1))
    for _ in range(3):
        with entered(relay.sender):
            subprocess.run([sys.executable, "-I", Path(__file__).with_name("burst.py"), "1", "5"], check=True)
        relay.send([])
        relay.forget()
        assert program.drain().flows.total() == 5
        assert not program.drain().flows
        assert not program.drain().flows


def test_layouts_are_those_of_the_maps(loaded: Loaded) -> None:
    """Keys and values have in Python the kernel's sizes, and the tables those that were asked for."""
    info = {name: fdinfo(descriptor) for name, descriptor in loaded.descriptors.items()}
    table = (4, BLOCK.itemsize, blocks(SHARED))
    wanted = {"pairs_a": table, "pairs_b": table, "slots": (4, SLOT_SIZE, SHARED.peers)}
    wanted["peers"] = (4, peer_table.LINE_SIZE, peer_lines(SHARED))
    wanted["exits"] = (4, EXIT.itemsize, SHARED.exits)
    wanted["outcomes"] = (4, 8, len(Outcome) * len(FAMILIES))
    for name, sizes in wanted.items():
        assert tuple(int(info[name][key]) for key in ("key_size", "value_size", "max_entries")) == sizes
    assert SLOT.itemsize == SLOT_SIZE
    assert len(bpf.lookup(loaded.descriptors["outcomes"], bytes(4), 8 * possible_processors()))
