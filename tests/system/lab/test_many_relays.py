# SPDX-License-Identifier: Apache-2.0
"""Three hundred relays that are made up, on real engines: what reaches the pager when they leak or vanish."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import pytest

from detector.base.verdicts import VERDICTS
from detector.lab.monitoring import Engine, Receiver, monitoring
from detector.lab.pages import served
from detector.lab.timescale import Target

FACTOR = 60.0
RELAYS = 300
_NEEDED = ("prometheus", "prometheus-alertmanager", "victoria-metrics", "vmagent", "vmalert")
_MISSING = [name for name in _NEEDED if not shutil.which(name)]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="labs need root"),
    pytest.mark.skipif(bool(_MISSING), reason=f"NO {', '.join(_MISSING)} here"),
]


def page(relays: int, verdict: str) -> str:
    """The metrics of so many relays that rules look at, all with one verdict."""
    now, lines = time.time(), []
    for number in range(relays):
        of = f'fleet="lab",relay="r{number}"'
        lines.append(f"exitprint_coverage_ratio{{{of}}} 1")
        lines.append(f"exitprint_last_good_cycle_timestamp_seconds{{{of}}} {now:.0f}")
        lines.append(f'exitprint_leak_bits{{{of},family="ipv4"}} 5.9')
        lines.append(f'exitprint_judged_peers{{{of},family="ipv4"}} 100')
        lines.append(f'exitprint_leaking_peers_ratio{{{of},family="ipv4"}} 1')
        lines.append(f'exitprint_mapping_predictor{{{of},family="ipv4",predictor="kernel_persistent"}} 1')
        lines += [
            f'exitprint_relay_verdict{{{of},family="ipv4",verdict="{one}"}} {int(one == verdict)}'
            for one in VERDICTS
        ]
    return "\n".join(lines) + "\n"


def pager(receiver: Receiver) -> dict[tuple[str, bool], int]:
    """How often the pager was told of which alert, firing or resolved."""
    told: dict[tuple[str, bool], int] = {}
    for alert in receiver.told("pager"):
        told[alert.name, alert.firing] = told.get((alert.name, alert.firing), 0) + 1
    return told


@pytest.mark.parametrize("engine", ["prometheus", "victoria-metrics"])
def test_many_leaks_are_one_page_that_stands_while_relays_vanish(engine: Engine) -> None:
    """All leak: one message. Half of them vanish: nothing is resolved. All are proven good: it ends."""
    with (
        served(lambda: page(RELAYS, "predictable")) as relays,
        monitoring([Target(relays.address, relay="")], FACTOR, engine, interval="2s") as watch,
    ):

        def count(expr: str, wanted: int) -> Callable[[], bool]:
            return lambda: [float(one["value"][1]) for one in watch.query(expr)] == [wanted]

        fleet_page = ("ExitprintFleetLeaking", True)
        by_verdict = 'count(relay_family:exitprint_verdict:seen{verdict="predictable"})'
        watch.wait("three hundred leaks", count(by_verdict, RELAYS), patience=120)
        watch.wait("the page", lambda: fleet_page in pager(watch.receiver), patience=120)
        relays.text = lambda: page(RELAYS // 2, "predictable")
        gone = "count(relay_family:exitprint_verdict:trusted)"
        watch.wait("half of them to vanish", count(gone, RELAYS // 2), patience=120)
        time.sleep(20)  # twenty minutes of a deployment
        assert count(by_verdict, RELAYS)()
        assert not any(not firing for _, firing in pager(watch.receiver))
        assert pager(watch.receiver)[fleet_page] == 1
        assert sum(pager(watch.receiver).values()) <= 11
        relays.text = lambda: page(RELAYS, "unlinkable")
        resolved = ("ExitprintFleetLeaking", False)
        watch.wait("the end of it", lambda: resolved in pager(watch.receiver), patience=120)
