# SPDX-License-Identifier: Apache-2.0
"""Systemd hears that the service is up once it serves, and that it goes on only while both processes do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.daemon.notify import BEAT, Supervisor


class Systemd:
    """The other end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.end.bind("\0" + name[1:] if name.startswith("@") else name)
        self.end.setblocking(False)

    def environ(self, **more: str) -> dict[str, str]:
        """What it starts a service with."""
        return {
            "NOTIFY_SOCKET": self.name,
            "WATCHDOG_USEC": "60000000",
            "WATCHDOG_PID": str(os.getpid()),
        } | more

    def told(self) -> list[str]:
        """What it was told since it was asked."""
        heard = []
        while True:
            try:
                heard.append(self.end.recv(100).decode())
            except BlockingIOError:
                return heard


@pytest.fixture(params=["path", "abstract"])
def systemd(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Systemd]:
    """One with a socket in a folder, and one with an abstract name."""
    one = Systemd(str(tmp_path / "notify") if request.param == "path" else f"@exitprint-test-{os.getpid()}")
    yield one
    one.end.close()


def test_ready_is_told_once_the_aggregator_serves(systemd: Systemd) -> None:
    """The sensor alone is not the service; the aggregator's first word makes it ready, and once is enough."""
    supervisor = Supervisor(systemd.environ(), 0.0)
    supervisor.beat(0.5)
    assert systemd.told() == []
    supervisor.heard(1.0)
    supervisor.beat(1.0)
    supervisor.beat(1.1)
    assert systemd.told() == ["READY=1"]


def test_the_watchdog_is_fed_while_both_go_on(systemd: Systemd) -> None:
    """An aggregator that was heard within six beats is alive; one that was not starves the watchdog."""
    supervisor = Supervisor(systemd.environ(), 0.0)
    supervisor.heard(0.0)
    supervisor.beat(BEAT)
    supervisor.beat(BEAT + 0.1)
    assert systemd.told() == ["READY=1", "WATCHDOG=1"]
    supervisor.beat(6 * BEAT)
    assert systemd.told() == ["WATCHDOG=1"]
    supervisor.beat(6 * BEAT + 0.1)
    supervisor.beat(20 * BEAT)
    assert systemd.told() == []


@pytest.mark.parametrize("more", [{"WATCHDOG_PID": str(os.getpid() + 1)}, {"WATCHDOG_USEC": ""}])
def test_without_a_watchdog_of_ours_it_is_not_fed(systemd: Systemd, more: dict[str, str]) -> None:
    """One that was meant for another process, or none at all."""
    supervisor = Supervisor(systemd.environ(**more), 0.0)
    supervisor.heard(0.0)
    supervisor.beat(BEAT)
    supervisor.stopping()
    assert systemd.told() == ["READY=1", "STOPPING=1"]


def test_the_names_are_taken_from_the_environment(systemd: Systemd) -> None:
    """A command that the sensor starts cannot speak for the service."""
    environ = systemd.environ(LANG="C")
    Supervisor(environ, 0.0)
    assert environ == {"LANG": "C"}


def test_nobody_and_a_dead_end_are_no_reason_to_end(systemd: Systemd) -> None:
    """Started by hand, or with systemd's socket gone: nothing happens."""
    for environ in ({}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "odd"}):
        supervisor = Supervisor(environ, 0.0)
        supervisor.heard(0.0)
        supervisor.beat(BEAT)
    supervisor = Supervisor(systemd.environ(), 0.0)
    systemd.end.close()
    supervisor.heard(0.0)
    supervisor.beat(BEAT)
    supervisor.stopping()
