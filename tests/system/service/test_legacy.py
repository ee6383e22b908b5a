# SPDX-License-Identifier: Apache-2.0
"""The service on a relay whose rules iptables-legacy wrote: a process that does only that reads them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.base.family import Family
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from tests.system.service.running import (
    aggregator_of,
    children,
    command,
    gone,
    lines,
    listeners,
    state,
    until,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
    pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="NO iptables-legacy here"),
]

NET_ADMIN, NET_RAW = 1 << 12, 1 << 13
PEERS, FLOWS = 12, 960
TOOLS = {Family.IPV4: "iptables-legacy", Family.IPV6: "ip6tables-legacy"}


def load(lab: Lab, *options: str) -> None:
    """Rules of iptables-legacy that choose from the lab's pools, and no other rules."""
    lab.apply_text("")
    for family, pool in lab.pools.items():
        rule = ["-o", lab.exit_interface, "-j", "SNAT", "--to-source", f"{pool.first}-{pool.last}", *options]
        for words in (["-F"], ["-A", "POSTROUTING", *rule]):
            done = lab.run(lab.relay, [TOOLS[family], "-t", "nat", *words])
            if done.returncode:
                pytest.skip(f"NO iptables-legacy in this kernel: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A relay whose rules iptables-legacy wrote."""
    with Lab(peers=PEERS) as relay:
        load(relay, "--persistent")
        yield relay


@pytest.fixture(scope="module")
def service(lab: Lab) -> Iterator[LabService]:
    """The service there."""
    with start_service(lab, port=0) as running:
        yield running


def reader_of(service: LabService) -> int:
    """The process that reads the rules of iptables-legacy."""
    (found,) = (one for one in children(service.process.pid) if "detector.daemon.legacy" in command(one))
    return found


def test_the_reader_can_do_nothing_else(service: LabService) -> None:
    """Two capabilities, a filter, no way to more, no table and no listener; the sensor has no raw socket."""
    reader, sensor = reader_of(service), service.process.pid
    assert sorted(children(sensor)) == sorted([reader, aggregator_of(service)])
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(state(reader)[kind], 16) == NET_ADMIN | NET_RAW, kind
        assert int(state(sensor)[kind], 16) == NET_ADMIN, kind
    assert state(reader)["NoNewPrivs"] == "1"
    assert state(reader)["Seccomp"] == "2"
    held = {str(one.readlink()) for one in Path(f"/proc/{reader}/fd").iterdir()}
    assert sum(one.startswith("socket:") for one in held) == 1
    assert not [one for one in held if one.startswith("anon_inode")]
    assert listeners(reader) == set()
    assert not any("wall" in line for line in lines(service))


@pytest.mark.parametrize(
    ("options", "verdict", "predictor"),
    [(("--persistent",), "predictable", "kernel_persistent"), ((), "predictable", "kernel_destination")],
    ids=["persistent", "plain"],
)
def test_the_verdict_is_that_of_the_range(
    lab: Lab, service: LabService, options: tuple[str, ...], verdict: str, predictor: str
) -> None:
    """The range is known, so the kernel's hash over it is tried, and rules that change are followed."""
    before = service.status()["epoch"]["number"]
    lab.forget()
    load(lab, *options)
    if not options:
        until(lambda: service.status()["epoch"]["number"] > before, "the new rules are read")
    lab.send(lab.workload(FLOWS))
    report = service.report(FLOWS)
    assert report["verdict"] == verdict
    assert {one["predictor"] for one in report["families"].values()} == {predictor}
    assert not [one for one in lines(service) if "not understood" in one["event"]]


def test_without_the_reader_the_rules_are_named(service: LabService) -> None:
    """Whoever ends it has a service that goes on and says that it cannot read them."""
    os.kill(reader_of(service), signal.SIGKILL)
    told = "a rule about source NAT is not understood"
    until(lambda: [one for one in lines(service) if one["event"] == told], "it is said")
    assert service.process.poll() is None


def test_the_reader_ends_with_the_sensor(lab: Lab) -> None:
    """However the sensor ends."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with start_service(lab, port=0) as running:
            reader = reader_of(running)
            os.kill(running.process.pid, number)
            until(lambda reader=reader: gone(reader), "the reader has ended")  # type: ignore[misc]


def test_a_table_that_comes_later_is_named() -> None:
    """No process may open raw sockets where there was no such table at the start; the log says what to do."""
    with Lab(peers=2) as relay:
        relay.apply("persistent")
        with start_service(relay, port=0) as running:
            assert children(running.process.pid) == [aggregator_of(running)]
            load(relay, "--persistent")
            until(
                lambda: [one for one in lines(running) if "restart it" in one.get("reason", "")],
                "it is said",
            )
