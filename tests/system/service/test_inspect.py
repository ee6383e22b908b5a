# SPDX-License-Identifier: Apache-2.0
"""The local socket answers whom it may, and nothing that it is sent stops it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detector.base.errors import HostError, NotYet, UsageError
from detector.publish.inspect import socket as inspect

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="the socket answers root alone"),
]


ANSWERS: dict[str, inspect.Answer] = {
    "status": lambda _: {"verdict": "unknown"},
    "broken": lambda _: {"x": 1 // 0},
}
LIST = b'{"error":"requests are: status, broken","hint":"","status":2}\n'
LONG = b'{"error":"a request has at most 4096 bytes","hint":"","status":2}\n'


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A socket in a folder of its own that is made with it, and somebody who answers there."""
    where = tmp_path / "run" / "inspect.sock"
    with inspect.listen(where) as listener:
        inspect.serve(listener, ANSWERS)
        yield where
        listener.shutdown(socket.SHUT_RDWR)


def say(path: Path, line: bytes) -> bytes:
    """What is answered to a line."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as lines:
            return lines.read()


def test_root_is_answered(path: Path) -> None:
    """A question that is known gets its object, one that is not gets the list of those that are."""
    assert inspect.ask(path, "status") == {"verdict": "unknown"}
    with pytest.raises(UsageError, match="requests are: status, broken"):
        inspect.ask(path, "peers")


def test_only_root_can_reach_it(path: Path) -> None:
    """The socket is its owner's alone, its folder can be entered, and another user is told to ask as root."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    code = f"""
import os, pathlib
from detector.publish.inspect.socket import ask
os.setuid(65534)
try:
    ask(pathlib.Path({str(path)!r}), "status")
except Exception as error:
    print(type(error).__name__, error)
"""
    for folder in (path.parent.parent, *path.parent.parent.parents[:2]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"HostError the service's socket {path} is not for this user; ask as root")


def test_another_user_is_refused_by_what_the_kernel_says_of_it(path: Path) -> None:
    """Also where the socket's mode would let it in."""
    code = f"""
import os, socket
client = socket.socket(socket.AF_UNIX)
os.setuid(65534)
client.connect({str(path)!r})
print(client.recv(4096).decode())
"""
    path.chmod(0o666)
    for folder in (path.parent.parent, *path.parent.parent.parents[:2]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    refusal = "only root and whom inspect_owner and inspect_group name may ask"
    assert json.loads(done.stdout) == {"error": refusal, "hint": "ask as root", "status": 3}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\xff\xfe\x00\n",
        b"[" * 4000 + b"\n",
        b"x" * 100_000,
        b'"status"\n',
        b'{"request": []}\n',
        b'{"request": {"status": 1}}\n',
        b'{"request": null}\n',
        b'{"request": "10.64.1.2"}\n',
    ],
)
def test_garbage_gets_the_list_and_stops_nothing(path: Path, line: bytes) -> None:
    """Whatever is sent is not repeated, and the next one who asks is answered."""
    try:
        answer = say(path, line)
    except (BrokenPipeError, ConnectionResetError):  # it was too long to be read to its end
        answer = b""
    assert answer in {b"", LIST, LONG}
    assert inspect.ask(path, "status") == {"verdict": "unknown"}


def test_an_answer_that_fails_stops_nothing(path: Path) -> None:
    """An error of our own ends that connection only."""
    assert b"the answer failed" in say(path, b'{"request": "broken"}\n')
    assert inspect.ask(path, "status") == {"verdict": "unknown"}


def test_nobody_there_is_said(tmp_path: Path) -> None:
    """No socket, or one that was left behind: there is no answer, and the hint says where to look."""
    where = tmp_path / "inspect.sock"
    with pytest.raises(NotYet, match=f"does not answer at {where}; is it running"):
        inspect.ask(where, "status")
    inspect.listen(where).close()
    with pytest.raises(NotYet, match="does not answer"):
        inspect.ask(where, "status")


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    """After a SIGKILL the service can start again."""
    where = tmp_path / "inspect.sock"
    inspect.listen(where).close()
    with inspect.listen(where) as listener:
        inspect.serve(listener, {"status": lambda _: {"again": True}})
        assert inspect.ask(where, "status") == {"again": True}
        listener.shutdown(socket.SHUT_RDWR)


def test_nothing_else_is_ever_removed(path: Path, tmp_path: Path) -> None:
    """A file stays where it is, and so does the socket of a service that runs; the error names the key."""
    file = tmp_path / "precious"
    file.write_text("data")
    for taken in (file, path):
        with pytest.raises(HostError, match=f"inspect_socket: {taken}: address already in use"):
            inspect.listen(taken)
    assert file.read_text() == "data"
    assert inspect.ask(path, "status") == {"verdict": "unknown"}


def test_silent_and_slow_clients_keep_nobody_waiting(path: Path) -> None:
    """More connections than there are places, silent or half-way through a line: root is answered."""
    with contextlib.ExitStack() as stack:
        for number in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b'{"request":'[: number % 12])
            if number % 10 == 0:
                assert inspect.ask(path, "status") == {"verdict": "unknown"}


def test_many_ask_at_once(path: Path) -> None:
    """Twenty clients at a time each get their answer."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: inspect.ask(path, "status"), range(200)))
    assert answers == [{"verdict": "unknown"}] * 200


def test_a_client_that_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    """An answer that does not fit into the socket waits for its reader, and the next one is answered."""
    where = tmp_path / "inspect.sock"
    large = {"large": "x" * 3_000_000}
    with inspect.listen(where) as listener, socket.socket(socket.AF_UNIX) as lazy:
        inspect.serve(listener, {"status": lambda _: {}, "large": lambda _: large})
        lazy.connect(str(where))
        lazy.sendall(b'{"request":"large"}\n')
        assert inspect.ask(where, "status") == {}
        with lazy.makefile("rb") as lines:
            assert json.loads(lines.readline()) == large
        listener.shutdown(socket.SHUT_RDWR)


def test_arguments_and_errors_of_an_answer_arrive(tmp_path: Path) -> None:
    """An answer is told what was asked, and its refusal is the client's error, hint and status included."""

    def refuse(arguments: inspect.Arguments) -> dict[str, object]:
        raise UsageError(f"no {arguments['what']}", "ask for more")

    where = tmp_path / "inspect.sock"
    with inspect.listen(where) as listener:
        inspect.serve(listener, {"refuse": refuse})
        with pytest.raises(UsageError, match="the service refuses: no tea; ask for more"):
            inspect.ask(where, "refuse", what="tea")
        listener.shutdown(socket.SHUT_RDWR)


def test_a_silent_client_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not ask in time finds the connection closed, also if a part of a line has come."""
    monkeypatch.setattr(inspect, "_TIMEOUT", 0.05)
    where = tmp_path / "inspect.sock"
    with inspect.listen(where) as listener, socket.socket(socket.AF_UNIX) as client:
        inspect.serve(listener, ANSWERS)
        client.settimeout(30)
        client.connect(str(where))
        client.sendall(b'{"request"')
        assert client.recv(100) == b""
        listener.shutdown(socket.SHUT_RDWR)
