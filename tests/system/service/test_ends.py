# SPDX-License-Identifier: Apache-2.0
"""How the service ends: told to, or because one of its processes is killed; and that nothing of it stays."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from detector.lab.relay import Lab
from detector.lab.service import LabService, launched, start_service
from tests.system.service.running import (
    aggregator_of,
    children,
    command,
    exists,
    gone,
    lines,
    objects_of,
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


def test_told_to_end_while_it_starts(lab: Lab) -> None:
    """A signal during the start ends everything too, the loader included."""
    with launched(lab, port=0) as service:
        loader = loader_of(service)
        service.process.terminate()
        assert service.process.wait(30) in {0, -signal.SIGTERM}
        until(lambda: gone(loader), "the loader is still there")


def loader_of(service: LabService) -> int:
    """The loader, which lives for a moment only."""
    found: list[int] = []
    while not found:
        assert service.process.poll() is None
        found = [one for one in children(service.process.pid) if "detector.kernel.loader" in command(one)]
    return found[0]
