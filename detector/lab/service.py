# SPDX-License-Identifier: Apache-2.0
"""The service as it runs on a lab's relay: the real one, `exitprint run` in a process of its own."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from detector.base.errors import HostError, NotYet
from detector.base.interpreter import module_command
from detector.config.model import Hook, Listen
from detector.lab.namespaces import Namespace
from detector.publish.inspect import socket as inspect

INTERVAL = 1  # seconds
_START_PATIENCE = 120.0  # an emulated machine compiles for ten seconds
_STOP_PATIENCE = 5.0
_SETTLED_CYCLES = 3
_TRIED_CYCLES = 2  # the sensor tries its predictors on what it has seen, and what came of it is judged then
_POLL, _LONGEST_POLL = 0.05, 1.0
_LAST_ERRORS = 3
_HOST = "127.0.0.1"


class Relay(Protocol):
    """Where the service is to run.

    Attributes:
        relay: the namespace.
        wireguard_interface: the interface with the peers.
    """

    @property
    def relay(self) -> Namespace:
        """The namespace."""

    @property
    def wireguard_interface(self) -> str:
        """Its name."""


class LabService:
    """The service on a lab's relay.

    Attributes:
        metrics: the address of its /metrics.
        socket: where `exitprint status` asks.
        process: the running service; its log is in `log`.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, listen: Listen) -> None:
        self.process = process
        self.metrics = f"http://{listen}/metrics"
        self.log = folder / "log"
        self._ready = f"http://{listen}/-/ready"
        self.socket = folder / "inspect.sock"

    def wait_ready(self) -> None:
        """Return when the service watches.

        Raises:
            HostError: it has ended, or takes too long; the end of its log is in the message.
        """
        for _ in _looks(_START_PATIENCE):
            if self.process.poll() is not None:
                raise HostError(f"the service did not start: {self._last_words()}", "see: exitprint doctor")
            try:
                with urllib.request.urlopen(self._ready, timeout=5):  # noqa: S310  (our own loopback address)
                    return
            except OSError:
                continue
        raise HostError(f"the service is not ready: {self._last_words()}", "see: exitprint doctor")

    def status(self) -> dict[str, Any]:
        """What the service says now."""
        return inspect.ask(self.socket, "status")

    def report(self, flows: int) -> Mapping[str, Any]:
        """The report that covers so many flows, or all that there are when no more come.

        Raises:
            HostError: the service has ended.
        """
        last_growth, known = -1, -1
        for _ in _looks(math.inf):
            if self.process.poll() is not None:
                raise HostError(f"the service has ended: {self._last_words()}")
            now = self.status()
            counted = sum(family["flows"] for family in now["families"].values())
            if counted > known:
                last_growth, known = now["cycles"], counted
            settled = _TRIED_CYCLES if known >= flows else _SETTLED_CYCLES
            if now["cycles"] >= last_growth + settled:
                break
        return now

    def wait(self, seconds: float | None = None) -> bool:
        """Return when the service has ended, or after so many seconds; whether it has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _last_words(self) -> str:
        """What it said of its end: the errors of each of its processes, or else the last that it said."""
        told = [_warnings(line) for line in self.log.read_text(errors="replace").splitlines()]
        errors = [text for is_error, text in told if is_error]
        return "; ".join(errors[-_LAST_ERRORS:] or [text for _, text in told[-1:]]) or "it said nothing"


def _looks(patience: float) -> Iterator[None]:
    """Time to look again, for so many seconds: often at first, and never so often that looking takes long."""
    started = time.monotonic()
    while (waited := time.monotonic() - started) < patience:
        yield
        time.sleep(max(_POLL, min(waited / 10, _LONGEST_POLL)))


def _warnings(line: str) -> tuple[bool, str]:
    """Whether a line of the log tells of an error, and what it says."""
    try:
        told = json.loads(line)
    except ValueError:
        return True, line.strip()  # said by Python or by a tool before the log was set up
    where = f" ({told['exception']})" if "exception" in told else ""
    return told["level"] == "error", str(told.get("reason") or f"{told['process']}: {told['event']}{where}")


@contextmanager
def start_service(
    lab: Relay, hook: Hook = "auto", *, port: int | None = None, **keys: Any
) -> Iterator[LabService]:
    """Run the service on the lab's relay; inside the ``with`` block it counts.

    Args:
        lab: a lab that is up, or anything else that has a relay.
        hook: the hook to use.
        port: where /metrics is served on loopback; 0 for any free port, None for the usual one if it is free.
        keys: more keys of the configuration, or other values for those that the lab sets.

    Raises:
        HostError: it does not start.
    """
    with launched(lab, hook, port=port, **keys) as service:
        service.wait_ready()
        yield service


@contextmanager
def launched(
    lab: Relay, hook: Hook = "auto", *, port: int | None = None, **keys: Any
) -> Iterator[LabService]:
    """As `start_service`, without waiting until it watches."""
    with tempfile.TemporaryDirectory(prefix="exitprint-lab-") as name:
        folder = Path(name)
        listen = Listen(_HOST, _free_port(Listen().port if port is None else port))
        config = {
            "relay": "lab",
            "network_namespace": lab.relay.name,
            "wireguard": [lab.wireguard_interface],
            "interval": f"{INTERVAL}s",
            "hook": hook,
            "listen": str(listen),
            "inspect_socket": str(folder / "inspect.sock"),
            "log_format": "json",
        }
        path = folder / "exitprint.yml"
        path.write_text(yaml.safe_dump(config | keys))
        command = module_command("detector", "run", "--config", str(path))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        service = LabService(process, folder, listen)
        try:
            yield service
        finally:
            _stop(process)


def _free_port(preferred: int) -> int:
    """The preferred port, or any that is free."""
    for wanted in (preferred, 0):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((_HOST, wanted))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    raise NotYet("no port is free on loopback")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
