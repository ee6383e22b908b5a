# SPDX-License-Identifier: Apache-2.0
"""Draining while flows come in loses none and counts none twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detector.base.family import Family
from detector.kernel import control, peer_table, tables
from detector.kernel.drain import BLOCK, EVIDENCE, EXIT, SLOT
from detector.kernel.loader import Loaded
from detector.kernel.tables import FAMILIES, OUTCOME_ROOM, Outcome
from detector.lab.namespaces import entered
from tests.system.kernel.program import SHARED, Key, Program, counted_by_conntrack, fdinfo
from tests.system.kernel.topology import LEAVE, Relay, peer

pytestmark = pytest.mark.root

SOURCES, FLOWS = 40, 600
RULE = f"{LEAVE} snat to 203.0.113.1-203.0.113.64"
COMPILE = """
import sys
from detector.config.model import Tables
from detector.kernel import source
from detector.kernel.binding import load_bcc
from detector.kernel.loader import conntrack_btf
from detector.kernel.tables import macros
flags = source.offsets(conntrack_btf()) | source.draw_secret() | macros(Tables()) | {"EP_NAMESPACE": 1}
text = source.text() + "\\n#define offsetof(type, member) __builtin_offsetof(type, member)\\n" + sys.argv[1]
load_bcc().BPF(text=text.encode(), cflags=source.flags(flags))
"""


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
    families, numbers = len(FAMILIES), tables.exit_numbers(SHARED)
    wanted = {
        "pairs": (4, BLOCK.itemsize, 2 * tables.blocks_stride(SHARED)),
        "slots": (4, SLOT.itemsize, SHARED.peers),
        "evidences": (4, EVIDENCE.itemsize, SHARED.peers),
        "peers": (4, peer_table.LINE_SIZE, tables.peer_lines(SHARED)),
        "exits": (4, EXIT.itemsize, 2 * families * numbers),
        "exit_lines": (4, 64, 2 * families * tables.exit_lines(SHARED)),
        "exits_met": (4, 8, 2 * families),
        "outcomes": (4, 8, OUTCOME_ROOM * tables.possible_processors()),
        "watched": (4, tables.WATCHED_SIZE, 1),
        "controls": (4, control.SIZE, 1),
    }
    for name, sizes in wanted.items():
        assert tuple(int(info[name][key]) for key in ("key_size", "value_size", "max_entries")) == sizes
    assert len(Outcome) * families <= OUTCOME_ROOM


@pytest.mark.parametrize(("name", "layout"), [("slot", SLOT), ("evidence", EVIDENCE), ("block", BLOCK)])
def test_each_field_is_where_the_program_has_it(name: str, layout: np.dtype[np.void]) -> None:
    """Every field of a layout has in C the same place and size, as the compiler says."""
    assert layout.names is not None
    assert layout.fields is not None
    parts = {"block": {"group": ("key", 0, 4), "owner": ("key", 4, 4)}}.get(name, {})
    lines = []
    for field in layout.names:
        kind, at = layout.fields[field][:2]
        member, within, size = parts.get(field, (field, 0, kind.itemsize))
        lines.append(
            f'_Static_assert(offsetof(struct {name}, {member}) + {within} == {at}, "{field} is elsewhere");'
        )
        if field not in parts:
            sized = f"sizeof(((struct {name} *)0)->{member})"
            lines.append(f'_Static_assert({sized} == {size}, "{field} has another size");')
    lines.append(f'_Static_assert(sizeof(struct {name}) == {layout.itemsize}, "the size is another");')
    compiled = subprocess.run(
        [sys.executable, "-I", "-c", COMPILE, "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert compiled.returncode == 0, compiled.stderr
    wrong = lines[0].replace(" == ", " + 1 == ")
    refused = subprocess.run(
        [sys.executable, "-I", "-c", COMPILE, wrong], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "is elsewhere" in refused.stderr
