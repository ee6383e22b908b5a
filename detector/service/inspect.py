# SPDX-License-Identifier: Apache-2.0
"""A local socket for people on the relay: asks who is asking, answers with one JSON object.

A client connects, sends one line and reads one line. The socket's owner and mode let root alone in; who the
client really is comes from the kernel (SO_PEERCRED).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.errors import HostError, NotYet

_CREDENTIALS = struct.Struct("3i")
_TIMEOUT = 2.0
_LONGEST_REQUEST = 4096
_CHUNK = 1 << 16

Answer = Callable[[], dict[str, Any]]


def listen(path: Path) -> socket.socket:
    """A listening socket at a path, for its owner alone; one that was left behind is replaced.

    Raises:
        HostError: the path cannot be had.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(8)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"inspect_socket: {path}: {reason}", "choose another path") from error
    finally:
        os.umask(before)
    return listener


def serve(listener: socket.socket, answers: dict[str, Answer]) -> None:
    """Answer in the background for as long as the process lives."""
    threading.Thread(target=_serve, args=(listener, answers), name="inspect", daemon=True).start()


def _serve(listener: socket.socket, answers: dict[str, Answer]) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            client.settimeout(_TIMEOUT)
            try:
                _reply(client, answers)
            except (OSError, ValueError):
                continue  # gone, too slow, or not one of ours


def _reply(client: socket.socket, answers: dict[str, Answer]) -> None:
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    if user != 0:
        client.sendall(_line({"error": "only root may ask"}))
        return
    with client.makefile("rb") as lines:
        asked = json.loads(lines.readline(_LONGEST_REQUEST))
    answer = answers.get(asked.get("request", "")) if isinstance(asked, dict) else None
    client.sendall(_line(answer() if answer else {"error": f"requests are: {', '.join(answers)}"}))


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def ask(path: Path, request: str) -> dict[str, Any]:
    """The client's side: one question, one answer.

    Raises:
        NotYet: nobody listens there.
        HostError: the service refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT * 5)
        try:
            client.connect(str(path))
            client.sendall(_line({"request": request}))
            with client.makefile("rb") as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise NotYet(f"the service does not answer at {path}", "is it running? see its log") from error
    if "error" in answer:
        raise HostError(f"the service refuses: {answer['error']}", "ask as root")
    return answer
