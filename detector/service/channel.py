# SPDX-License-Identifier: Apache-2.0
"""What the sensor and the aggregator say to each other: JSON objects, one a line, over a socket pair.

sensor -> aggregator
    {"kind": "peers", "added": [[slot, family, wide, pseudonym, predictions], ...], "retired": [slot, ...],
     "present": n, "refused": n, "rss": bytes}
    {"kind": "rules", "epoch": n, "pools": [...], "not_understood": [...], ...}   (`Rules`)
    {"kind": "state", "waiting": what for, or "", "rss": bytes}
    {"kind": "stop"}
aggregator -> sensor
    {"kind": "released", "slots": [slot, ...]}

A public key or a tunnel address never goes this way; predictions are exit addresses.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from typing import Any

from detector.errors import HostError

Message = dict[str, Any]

_CHUNK = 1 << 16


class Closed(HostError):
    """The process at the other end is gone."""


class Channel:
    """One end."""

    def __init__(self, end: socket.socket, other: str) -> None:
        self._socket = end
        self._other = other
        self._pending = bytearray()

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send; waits while the other end is busy.

        Raises:
            Closed: it is gone.
        """
        try:
            self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise self._closed() from error

    def receive(self, wait: float = 0.0) -> Iterator[Message]:
        """Everything that has been said, after waiting up to `wait` seconds for something.

        Raises:
            Closed: the other end is gone.
        """
        while select.select([self._socket], [], [], wait)[0] or self._unfinished():
            try:
                chunk = self._socket.recv(_CHUNK)
            except OSError as error:
                raise self._closed() from error
            if not chunk:
                raise self._closed()
            self._pending += chunk
            *lines, rest = self._pending.split(b"\n")
            self._pending = bytearray(rest)
            yield from map(json.loads, lines)
            wait = 0.0

    def _unfinished(self) -> bool:
        """Half a message is here: the rest is on its way, so wait for it."""
        return bool(self._pending)

    def _closed(self) -> Closed:
        return Closed(f"the {self._other} has ended", "its last lines in the log say why")
