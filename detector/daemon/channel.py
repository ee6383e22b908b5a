# SPDX-License-Identifier: Apache-2.0
"""What the sensor and the aggregator say to each other: JSON objects, one a line, over a socket pair.

sensor -> aggregator
    {"kind": "peers", "added": [[slot, family, is_network, pseudonym, predictions], ...], "retired": [...]}
    {"kind": "rules", "epoch": n, "pools": [...], "not_understood": n, ..., "added": every slot, as above}
    {"kind": "state", "waiting": what for, or "", "watching": whether there are peers to watch,
     "refused": tunnel addresses without a slot, "rss": bytes, "holds": what the sensor has in memory}
    {"kind": "config", "config": the configuration to go on with, "reload": how reading it went}
    {"kind": "web", "config": what `web_config_file` says from now on}
    {"kind": "stop"}
aggregator -> sensor
    {"kind": "released", "slots": [slot, ...]}

A public key or a tunnel address never goes this way; predictions are exit addresses.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

from detector.base.errors import HostError

Message = dict[str, Any]

_CHUNK = 1 << 16


class Closed(HostError):
    """The process at the other end is gone."""


class Channel:
    """One end."""

    def __init__(self, end: socket.socket, other: str) -> None:
        end.setblocking(False)
        self._socket = end
        self._other = other
        self._lines: deque[bytes] = deque()
        self._unfinished = bytearray()
        self._sending = False

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send; waits while the other end is busy, and takes in meanwhile what that one says.

        Two ends that only send would wait for each other for ever.

        Raises:
            Closed: it is gone.
        """
        left = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        self._sending = True
        while left:
            readable, writable, _ = select.select([self._socket], [self._socket], [])
            if readable:
                self._take_in()
            if writable:
                left = left[self._sent(left) :]
        self._sending = False

    def finish(self, message: Message) -> None:
        """Send a last message, unless another was interrupted: half of one cannot be followed by anything."""
        if not self._sending:
            with contextlib.suppress(Closed):
                self.send(message)

    def receive(self, wait: float = 0.0) -> Iterator[Message]:
        """Everything that has been said, after waiting up to `wait` seconds for something.

        Raises:
            Closed: the other end is gone.
        """
        while True:
            while self._lines:
                yield json.loads(self._lines.popleft())
            # Half a message is here: the rest is on its way, so wait for it.
            if not select.select([self._socket], [], [], None if self._unfinished else wait)[0]:
                return
            self._take_in()
            wait = 0.0

    def _sent(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._closed() from error

    def _take_in(self) -> None:
        try:
            chunk = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._closed() from error
        if not chunk:
            raise self._closed()
        # Only what is new is searched: a message can be many chunks long.
        first, *others = chunk.split(b"\n")
        self._unfinished += first
        for part in others:
            self._lines.append(bytes(self._unfinished))
            self._unfinished = bytearray(part)

    def _closed(self) -> Closed:
        return Closed(f"the {self._other} has ended", "its last lines in the log say why")
