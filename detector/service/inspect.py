# SPDX-License-Identifier: Apache-2.0
"""A local socket for people on the relay: asks who is asking, answers with one JSON object.

A client connects, sends one line and reads one line. The socket's owner and mode let root alone in; who the
client really is comes from the kernel (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.errors import HostError, NotYet
from detector.logs import get_logger

_log = get_logger()

_CREDENTIALS = struct.Struct("3i")
_TIMEOUT = 2.0
_LONGEST_REQUEST = 4096
_BACKLOG = 8
_PAUSE = 0.1

Answer = Callable[[], dict[str, Any]]


def listen(path: Path) -> socket.socket:
    """A listening socket at a path, for its owner alone; one that was left behind is replaced.

    Raises:
        HostError: the path cannot be had.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path)
        _bind(listener, path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"inspect_socket: {path}: {reason}", "choose another path") from error
    return listener


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


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def serve(listener: socket.socket, answers: dict[str, Answer]) -> None:
    """Answer in the background for as long as the process lives."""
    threading.Thread(target=_serve, args=(listener, answers), name="inspect", daemon=True).start()


def _serve(listener: socket.socket, answers: dict[str, Answer]) -> None:
    while listener.fileno() >= 0:
        try:
            client, _ = listener.accept()
        except OSError:  # no descriptor is free, or the listener is closed
            time.sleep(_PAUSE)
            continue
        with client:
            client.settimeout(_TIMEOUT)
            try:
                _reply(client, answers)
            except OSError:
                continue  # gone, or too slow
            except Exception:  # whatever a client makes us stumble over, the next one is answered
                _log.error("an answer failed", exc_info=True)


def _reply(client: socket.socket, answers: dict[str, Answer]) -> None:
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user != 0:
        client.sendall(_line({"error": "only root may ask"}))
        return
    with client.makefile("rb") as lines:
        answer = answers.get(_requested(lines.readline(_LONGEST_REQUEST)))
    client.sendall(_line(answer() if answer else {"error": f"requests are: {', '.join(answers)}"}))


def _requested(line: bytes) -> str:
    """What a line asks for, or an empty string."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    request = asked.get("request") if isinstance(asked, dict) else None
    return request if isinstance(request, str) else ""


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def ask(path: Path, request: str) -> dict[str, Any]:
    """The client's side: one question, one answer.

    Raises:
        NotYet: nobody listens there.
        HostError: the service refuses, or the socket is not for us.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT * 5)
        try:
            client.connect(str(path))
            client.sendall(_line({"request": request}))
            with client.makefile("rb") as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        except PermissionError as error:
            raise HostError(f"the service's socket {path} is root's", "ask as root") from error
        except (OSError, ValueError) as error:
            raise NotYet(f"the service does not answer at {path}", "is it running? see its log") from error
    if "error" in answer:
        raise HostError(f"the service refuses: {answer['error']}", "ask as root")
    return answer
