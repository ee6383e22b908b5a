# SPDX-License-Identifier: Apache-2.0
"""A local socket for people on the relay: asks the kernel who is asking, answers with one JSON object.

A client connects, sends one line, ``{"request": NAME, ...}``, and reads one line. One thread serves all: a
client that is slow, silent or one too many costs a place and no more, and the service's cycle waits for none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.base.errors import EXIT_HOST, EXIT_USAGE, ExitprintError, HostError, NotYet, UsageError
from detector.base.plain import clean
from detector.logs import get_logger
from detector.publish.bins import coarse
from detector.publish.inspect.access import Access, is_authorized, is_root, restrict_socket

_log = get_logger()

_TIMEOUT = 5.0  # seconds that a client has for all
_LONGEST_REQUEST = 4096
_LONGEST_ANSWER = 64 << 20
_MOST_CLIENTS = 32
_BACKLOG = 32
_PAUSE = 0.1
_TURN = 0.001  # seconds after which a thread that computes lets another one go on (the usual: 5 ms)
_CHUNK = 1 << 16
_REFUSAL = "only root and whom inspect_owner and inspect_group name may ask"

Arguments = Mapping[str, Any]
Answer = Callable[[Arguments], dict[str, Any]]


def listen(path: Path, access: Access | None = None) -> socket.socket:
    """A listening socket at a path, for its owner and group alone; one that was left behind is replaced.

    Raises:
        HostError: the path cannot be had, or anybody could put another socket there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_guarded(path.parent)
        _clear(path)
        who = access or Access()
        _bind(listener, path, who.mode)
        restrict_socket(path, who)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"inspect_socket: {path}: {reason}", "choose another path") from error
    except HostError:
        listener.close()
        raise
    return listener


def _require_guarded(folder: Path) -> None:
    """Nobody else may put another socket in the place of ours: not there, and not in a folder above.

    Raises:
        HostError: somebody may.
    """
    for one in (folder.resolve(), *folder.resolve().parents):
        found = one.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise HostError(f"inspect_socket: {one} belongs to another user", f"chown root {one}")
        if found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH:
            raise HostError(f"inspect_socket: anybody may write in {one}", f"chmod o-w {one}")
        if found.st_mode & stat.S_IWGRP and found.st_gid:
            raise HostError(f"inspect_socket: a group may write in {one}", f"chmod g-w {one}")


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more; nothing else is ever removed.

    Raises:
        OSError: something else is there, or somebody listens.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(_TIMEOUT)
        with contextlib.suppress(ConnectionRefusedError):
            trial.connect(str(path))
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()


def _bind(listener: socket.socket, path: Path, mode: int) -> None:
    """Make the socket with its mode: one that is given it later can be another one by then."""
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def serve(listener: socket.socket, answers: Mapping[str, Answer], access: Access | None = None) -> None:
    """Answer in the background for as long as the process lives.

    Args:
        listener: from `listen`.
        answers: by request. Each is called with the request's arguments in the server's thread, and may raise
            an `ExitprintError` for a request that is wrong.
        access: who may ask.
    """
    server = _Server(listener, answers, access or Access())
    sys.setswitchinterval(_TURN)  # an answer is many short steps, and would wait at each for the cycle
    threading.Thread(target=server.run, name="inspect", daemon=True).start()


@dataclass(eq=False, slots=True)
class _Client:
    """One connection.

    Attributes:
        deadline: on the clock that only goes forward.
        is_root: it may see every count as it is.
        asked: what it has sent.
        answer: what it has still to get, None as long as it has not asked.
    """

    socket: socket.socket
    deadline: float
    is_root: bool
    asked: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class _Server:
    def __init__(self, listener: socket.socket, answers: Mapping[str, Answer], access: Access) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._answers = answers
        self._access = access
        self._clients: list[_Client] = []  # the oldest first
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the listener is closed."""
        while self._listener.fileno() >= 0:
            try:
                self._turn()
            except Exception:  # whatever a client makes us stumble over, the next one is answered
                _log.error("the inspect socket stumbled", exc_info=True)
                time.sleep(_PAUSE)

    def _turn(self) -> None:
        wait = self._clients[0].deadline - time.monotonic() if self._clients else _TIMEOUT
        for key, _ in self._selector.select(max(wait, 0.0)):
            if key.data is None:
                self._accept()
            elif key.data in self._clients:
                self._go_on(key.data)
        now = time.monotonic()
        while self._clients and self._clients[0].deadline <= now:
            self._drop(self._clients[0])

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
        except OSError:  # no descriptor is free, or the listener is closed
            time.sleep(_PAUSE)
            return
        end.setblocking(False)
        if not self._allowed(end):
            with contextlib.suppress(OSError):
                end.send(_line(_error(_REFUSAL, "ask as root", EXIT_HOST)))
            end.close()
            return
        if len(self._clients) >= _MOST_CLIENTS:
            self._drop(self._clients[0])
        client = _Client(end, time.monotonic() + _TIMEOUT, is_root(end))
        self._clients.append(client)
        self._selector.register(end, selectors.EVENT_READ, client)

    def _allowed(self, end: socket.socket) -> bool:
        try:
            return is_authorized(end, self._access)
        except OSError:
            return False

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.socket)
        client.socket.close()

    def _go_on(self, client: _Client) -> None:
        try:
            done = self._listen_to(client) if client.answer is None else _send(client)
        except BlockingIOError:
            return
        except OSError:
            done = True  # it is gone
        if done:
            self._drop(client)

    def _listen_to(self, client: _Client) -> bool:
        """Take in what is asked; returns whether the client is done with."""
        chunk = client.socket.recv(_CHUNK)
        client.asked += chunk
        line, end, _ = client.asked.partition(b"\n")
        if not end and chunk and len(client.asked) <= _LONGEST_REQUEST:
            return False
        client.answer = memoryview(_line(self._answer(bytes(line), is_root=client.is_root)))
        self._selector.modify(client.socket, selectors.EVENT_WRITE, client)
        return _send(client)

    def _answer(self, line: bytes, *, is_root: bool) -> dict[str, Any]:
        if len(line) > _LONGEST_REQUEST:
            return _error(f"a request has at most {_LONGEST_REQUEST} bytes", "", EXIT_USAGE)
        asked = _parsed(line) or {}
        request = asked.get("request")
        answer = self._answers.get(request) if isinstance(request, str) else None
        if answer is None:
            return _error(f"requests are: {', '.join(self._answers)}", "", EXIT_USAGE)
        try:
            told = answer(asked)
            return told if is_root else coarse(told)
        except ExitprintError as error:
            return _error(error.what, error.hint, error.status)
        except Exception:
            _log.error("an answer failed", exc_info=True)
            return _error("the answer failed", "the service's log says where", EXIT_HOST)


def _send(client: _Client) -> bool:
    """Send what can be sent; returns whether that is all."""
    left = client.answer or memoryview(b"")
    client.answer = left[client.socket.send(left) :]
    return not client.answer


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object on a line, None where there is none."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return asked if isinstance(asked, dict) else None


def _error(what: str, hint: str, status: int) -> dict[str, Any]:
    return {"error": what, "hint": hint, "status": status}


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def ask(path: Path, request: str, **arguments: Any) -> dict[str, Any]:
    """The client's side: one question, one answer.

    Raises:
        NotYet: nobody listens there.
        HostError: the socket is not for us, or the service cannot answer.
        UsageError: the service says that the question is wrong.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT * 2)
        try:
            client.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # refused already: the answer says so
                client.sendall(_line({"request": request, **arguments}))
            with client.makefile("rb") as lines:
                answer = _parsed(lines.readline(_LONGEST_ANSWER))
        except PermissionError as error:
            raise HostError(
                f"the service's socket {path} is not for this user",
                "ask as root, or as a member of the group that inspect_group names",
            ) from error
        except (OSError, ValueError) as error:
            raise NotYet(f"the service does not answer at {path}", "is it running? see its log") from error
    if answer is None:
        raise NotYet(f"the service does not answer at {path}", "is it running? see its log")
    if "error" in answer:
        kind = UsageError if answer.get("status") == EXIT_USAGE else HostError
        # It may have been taken over, and who reads this may be root.
        raise kind(f"the service refuses: {clean(str(answer['error']))}", clean(str(answer.get("hint", ""))))
    return answer
