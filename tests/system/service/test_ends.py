# SPDX-License-Identifier: Apache-2.0
"""How the service ends: told to, or because one of its processes is killed; and that nothing of it stays."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from detector.lab.relay import Lab
from detector.lab.service import LabService, launched, start_service
from tests.system.service.running import (
    aggregator_of,
    children,
    command,
    events,
    exists,
    gone,
    lines,
    objects_of,
    page,
    until,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PROMISED = 2.0  # seconds that an end may take
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A relay whose traffic does not matter here."""
    with Lab(peers=2) as relay:
        relay.apply("persistent")
        yield relay


@contextmanager
def nothing_stays(service: LabService) -> Iterator[None]:
    """Every program, map and link of the service is gone at the end; the kernel frees them a moment later."""
    held = objects_of(service.process.pid) | objects_of(aggregator_of(service))
    assert {kind for kind, _ in held} >= {"prog", "map"}
    assert len(held) > 12
    yield
    until(lambda: not [one for one in held if exists(one)], "programs, maps or links were left behind")


@contextmanager
def timed() -> Iterator[None]:
    """What is in here may take as long as is promised."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PROMISED


@contextmanager
def adopting() -> Iterator[None]:
    """Processes whose parent dies become ours, so that their exit status can be read."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_ends_well(lab: Lab, number: signal.Signals) -> None:
    """Status 0 within two seconds, no word of trouble, and nothing stays."""
    with start_service(lab, port=0) as service, nothing_stays(service):
        aggregator = aggregator_of(service)
        with timed():
            service.process.send_signal(number)
            assert service.process.wait(30) == 0
            assert gone(aggregator)
        assert not [line for line in lines(service) if line["level"] == "error"]
        assert lines(service)[-1]["event"] == "stopping"


def test_told_twice_it_ends_once(lab: Lab) -> None:
    """A second signal while it ends, to both processes as a terminal sends it, changes nothing."""
    with start_service(lab, port=0) as service:
        aggregator = aggregator_of(service)
        for process in (service.process.pid, aggregator, service.process.pid):
            os.kill(process, signal.SIGINT)
        assert service.process.wait(30) == 0
        assert not [line for line in lines(service) if line["level"] == "error"]


def test_without_its_aggregator_the_service_ends(lab: Lab) -> None:
    """The sensor says that the aggregator was killed, ends with status 3, and nothing stays."""
    with start_service(lab, port=0) as service, nothing_stays(service):
        with timed():
            os.kill(aggregator_of(service), signal.SIGKILL)
            assert service.process.wait(30) == 3
        last = lines(service)[-1]
        assert (last["process"], last["reason"]) == ("sensor", "the aggregator has ended")
        assert last["aggregator_status"] == -signal.SIGKILL


def test_without_its_sensor_the_service_ends(lab: Lab) -> None:
    """The aggregator says that the sensor has ended, ends with status 3, and nothing stays."""
    with adopting(), start_service(lab, port=0) as service, nothing_stays(service):
        aggregator = aggregator_of(service)
        with timed():
            service.process.kill()
            service.process.wait(30)
            assert os.waitstatus_to_exitcode(os.waitpid(aggregator, 0)[1]) == 3
        last = lines(service)[-1]
        assert (last["process"], last["reason"]) == ("aggregator", "the sensor has ended")


def test_without_its_loader_the_service_does_not_start(lab: Lab) -> None:
    """The start says how the loader ended, with status 3."""
    with launched(lab, port=0) as service:
        os.kill(loader_of(service), signal.SIGKILL)
        assert service.process.wait(30) == 3
        assert "the loader ended before it was done (signal 9)" in service.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", ["detector.kernel.loader", "detector.daemon.aggregator", "nat rules read"])
def test_told_to_end_while_it_starts(lab: Lab, phase: str, number: signal.Signals) -> None:
    """While it compiles, while the aggregator starts, at the first look: status 0, one line, no rest."""
    with launched(lab, port=0) as service:
        seen: list[int] = []

        def begun() -> bool:
            assert service.process.poll() is None
            seen.extend(children(service.process.pid))
            return phase in " ".join(map(command, seen)) or phase in events(service)

        until(begun, "the phase does not come", 120)
        service.process.send_signal(number)
        assert service.process.wait(60) == 0
        until(lambda: all(map(gone, seen)), "a child is still there")
        assert lines(service)[-1]["event"] == "stopping"
        assert not [line for line in lines(service) if line["level"] == "error"]
        assert "Traceback" not in service.log.read_text()


def test_a_loader_whose_parent_is_killed_ends(lab: Lab) -> None:
    """It compiles for nobody, and says nothing of it."""
    with launched(lab, port=0) as service:
        loader = loader_of(service)
        service.process.kill()
        service.process.wait(30)
        until(lambda: gone(loader), "the loader is still there", 5)
        assert "Traceback" not in service.log.read_text()


def test_a_full_disk_behind_the_log_does_not_stop_the_start(lab: Lab, tmp_path: Path) -> None:
    """Nothing that is said can be written, and the service watches."""
    with launched(lab, port=0) as one:
        config = one.log.parent / "exitprint.yml"
        command_ = [sys.executable, "-I", "-m", "detector", "run", "--config"]
        copy = tmp_path / "exitprint.yml"
        copy.write_text(config.read_text().replace(str(config.parent), str(tmp_path)))
        one.process.terminate()
        one.process.wait(30)
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen([*command_, str(copy)], stdin=subprocess.DEVNULL, stderr=full, stdout=full)
    try:
        port = yaml.safe_load(copy.read_text())["listen"]

        def ready() -> bool:
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://{port}/-/ready", timeout=5):
                    return True
            except OSError:
                return False

        until(ready, "it does not watch", 120)
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_sensor_that_hangs_is_missed(lab: Lab) -> None:
    """Stopped: not ready and unknown within some intervals, a metric says since when; and back again."""
    with start_service(lab, port=0) as service:
        service.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: "the sensor has said nothing" in page(service, "/-/ready")[1], "not missed")
            until(lambda: service.status()["waiting"].startswith("the sensor has said nothing"), "not told")
            now = service.status()
            assert now["verdict"] == "unknown"
            assert page(service, "/-/healthy")[0] == 200
            assert "exitprint_sensor_last_seen_timestamp_seconds" in page(service)[1]
        finally:
            service.process.send_signal(signal.SIGCONT)
        service.wait_ready()


def loader_of(service: LabService) -> int:
    """The loader, which lives for a moment only."""
    found: list[int] = []
    while not found:
        assert service.process.poll() is None
        found = [one for one in children(service.process.pid) if "detector.kernel.loader" in command(one)]
    return found[0]
