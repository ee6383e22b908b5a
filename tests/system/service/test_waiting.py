# SPDX-License-Identifier: Apache-2.0
"""The service while there is no connection tracking: it answers, says what it waits for, and then goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from detector.config.model import Config
from detector.daemon import start
from detector.daemon.messages import AggregatorSpec, SocketAccess, for_aggregator
from detector.publish.http.listening import listen
from detector.publish.inspect import socket as inspect
from tests.system.service.running import children, state, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user"),
]

EXITPRINT = (sys.executable, "-m", "detector")


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[AggregatorSpec]:
    """What the service hands over, with sockets of its own."""
    config = Config(relay="r", listen=replace(Config().listen, port=0))
    with listen(config.listen) as pages, inspect.listen(tmp_path / "inspect.sock") as asked:
        yield AggregatorSpec(
            config=for_aggregator(config),
            maps={},
            channel=-1,
            listener=pages.fileno(),
            inspect=asked.fileno(),
            access=SocketAccess(0, None, 0o600),
            web=None,
            user="nobody",
            hook="",
        )


def fetched(port: int, path: str) -> tuple[int, str]:
    """The status and the body of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_answers_until_conntrack_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: AggregatorSpec
) -> None:
    """Socket, metrics, page and probes say what is waited for; who answers has no rights, and ends then."""
    conntrack = tmp_path / "nf_conntrack_max"
    monkeypatch.setattr(start, "_CONNTRACK", conntrack)
    monkeypatch.setattr(start, "_PATIENCE", 0.05)
    before = set(children(os.getpid()))
    wait = threading.Thread(target=start._wait_for_conntrack, args=(spec,))
    with socket.fromfd(spec.listener, socket.AF_INET, socket.SOCK_STREAM) as listener:
        port = listener.getsockname()[1]
    wait.start()
    try:
        until(lambda: set(_children()) - before, "a process that answers")
        (answering,) = set(_children()) - before
        status = inspect.ask(tmp_path / "inspect.sock", "status")
        assert (status["verdict"], "modprobe nf_conntrack" in status["waiting"]) == ("unknown", True)
        code, metrics = fetched(port, "/metrics")
        assert (code, "exitprint_waiting 1.0" in metrics, "exitprint_hook_info{" in metrics) == (
            200,
            True,
            False,
        )
        assert "Waiting: no connection tracking" in fetched(port, "/")[1]
        assert fetched(port, "/-/healthy")[0] == 200
        assert fetched(port, "/-/ready")[0] == 503
        assert state(answering)["CapEff"] == "0" * 16
        assert state(answering)["Uid"].split()[0] != "0"
        done = subprocess.run(
            [*EXITPRINT, "status", "--check", "--json", "--socket", str(tmp_path / "inspect.sock")],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 3
        assert "exitprint doctor" in json.dumps(json.loads(done.stdout)["advice"])
    finally:
        conntrack.write_text("1\n")
        wait.join(20)
    assert not wait.is_alive()
    assert set(_children()) <= before


def _children() -> list[int]:
    """Of every thread of ours."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(one) for one in (task / "children").read_text().split()]
    return found


def test_nothing_is_started_where_conntrack_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: AggregatorSpec
) -> None:
    """The usual case waits for nothing."""
    there = tmp_path / "there"
    there.write_text("1\n")
    monkeypatch.setattr(start, "_CONNTRACK", there)
    began = time.monotonic()
    start._wait_for_conntrack(spec)
    assert time.monotonic() - began < 1
