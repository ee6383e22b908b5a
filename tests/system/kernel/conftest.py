# SPDX-License-Identifier: Apache-2.0
"""A relay in namespaces, and the kernel program attached to it, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import count

import pytest

from detector.kernel.control import Control
from detector.kernel.drain import PairTables
from detector.kernel.loader import Loaded
from tests.system.kernel.program import GAP, SHARED, Program, attached
from tests.system.kernel.topology import Relay, built


@pytest.fixture(scope="session")
def relay() -> Iterator[Relay]:
    """The namespaces, once for all tests."""
    missing = [tool for tool in ("ip", "nft", "conntrack") if shutil.which(tool) is None]
    if os.geteuid() or missing:
        pytest.skip(f"needs root and {', '.join(missing) or 'its commands'}")
    with built() as relay:
        yield relay


@pytest.fixture(scope="session")
def loaded(relay: Relay) -> Iterator[Loaded]:
    """The program with small tables, compiled once for all tests that do not ask for other tables."""
    with attached(relay, SHARED) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def shared(loaded: Loaded) -> tuple[PairTables, Iterator[int]]:
    """What outlives a test: which table is written, and the slots that no test has used."""
    return PairTables(loaded.descriptors, SHARED, Control(loaded.descriptors)), count(10)


@pytest.fixture
def program(relay: Relay, loaded: Loaded, shared: tuple[PairTables, Iterator[int]]) -> Iterator[Program]:
    """The program with nothing counted, no peers and an empty conntrack."""
    relay.forget()
    program = Program(relay, loaded, SHARED, *shared)
    program.control(1.0, pane=1, session_gap=GAP)
    yield program
    program.release()
