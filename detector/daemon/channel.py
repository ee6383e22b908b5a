# SPDX-License-Identifier: Apache-2.0
"""The socket pair between sensor and aggregator: messages of bounded length, and no waiting without an end.

A message is a length (four bytes), the name of its kind and its fields as JSON. Neither end trusts the other
one with its memory or its time: what is longer than can be is refused as soon as its length is read, and half
a message is waited for a moment only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, get_args

from detector.base.errors import HostError
from detector.daemon import codec
from detector.daemon.codec import Malformed
from detector.daemon.messages import ToAggregator, ToSensor

_CHUNK = 1 << 16
_LENGTH = struct.Struct(">I")
_PATIENCE = 1.0  # seconds without progress after which the rest of a message is not waited for
_SEND_PATIENCE = 30.0  # seconds that the other end may take nothing in
_MAX_MESSAGES = 256  # that are handed out at once: whoever floods does not keep us from our work

# What a slot takes at most in a message to the aggregator and to the sensor; and all the rest.
_MEMBER_BYTES, _RELEASED_BYTES = 512, 16
_RULES_BYTES, _LEAST_BYTES = 8 << 20, 1 << 12

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Closed(HostError):
    """The process at the other end is gone."""


class Stalled(HostError):
    """The process at the other end does not go on."""


class TooLong(HostError):
    """A message is longer than the other end takes."""


@dataclass(frozen=True, slots=True)
class Way:
    """What goes one way.

    Attributes:
        kinds: classes of messages by name.
        limit: bytes of a message.
    """

    kinds: Mapping[str, type]
    limit: int


def to_aggregator(slots: int) -> Way:
    """What the sensor says, for a table of so many slots."""
    kinds = {one.__name__: one for one in get_args(ToAggregator)}
    return Way(kinds, _RULES_BYTES + slots * _MEMBER_BYTES)


def to_sensor(slots: int) -> Way:
    """What the aggregator says, for a table of so many slots."""
    kinds = {one.__name__: one for one in get_args(ToSensor)}
    return Way(kinds, _LEAST_BYTES + slots * _RELEASED_BYTES)


def sensor_end(end: socket.socket, slots: int) -> Channel[ToSensor, ToAggregator]:
    """The sensor's end."""
    return Channel(end, "aggregator", to_sensor(slots), to_aggregator(slots))


def aggregator_end(end: socket.socket, slots: int) -> Channel[ToAggregator, ToSensor]:
    """The aggregator's end."""
    return Channel(end, "sensor", to_aggregator(slots), to_sensor(slots))


class Channel(Generic[_In, _Out]):
    """One end.

    Args:
        end: a connected socket.
        other: the process at the other end, for people.
        incoming, outgoing: what may come, and what may be sent.
    """

    def __init__(self, end: socket.socket, other: str, incoming: Way, outgoing: Way) -> None:
        end.setblocking(False)
        self._socket = end
        self._other = other
        self._incoming, self._outgoing = incoming, outgoing
        self._buffer = bytearray()
        self._queue = bytearray()
        self._half_since: float | None = None

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        return self._socket.fileno()

    @property
    def is_posting(self) -> bool:
        """Whether something that was posted is still to be sent: wait until the socket can be written to."""
        return bool(self._queue)

    def stalled(self) -> float:
        """Seconds since half a message has been lying here, 0 where there is none."""
        return time.monotonic() - self._half_since if self._half_since is not None else 0.0

    def send(self, message: _Out) -> None:
        """Send; waits while the other end is busy. Only one end may do so: two could wait for each other.

        Raises:
            Closed: it is gone.
            Stalled: it takes nothing in.
            TooLong: the message does not fit; nothing was sent.
        """
        self.post(message)
        while self._queue:
            if not select.select([], [self._socket], [], _SEND_PATIENCE)[1]:
                raise Stalled(f"the {self._other} takes in nothing that it is told")
            self.flush()

    def post(self, message: _Out) -> None:
        """Send what can be sent now and keep the rest for `flush`; never waits.

        Raises:
            Closed: it is gone.
            Stalled: more is to be sent already than the other end would take.
            TooLong: the message does not fit; nothing was sent.
        """
        name = type(message).__name__.encode()
        raw = name + b" " + codec.encode(message)
        if len(raw) > self._outgoing.limit:
            what = f"what the {self._other} is to be told ({type(message).__name__}) has {len(raw)} bytes"
            raise TooLong(f"{what}, more than the {self._outgoing.limit} that fit")
        if len(self._queue) > self._outgoing.limit:
            raise Stalled(f"the {self._other} takes in nothing that it is told")
        self._queue += _LENGTH.pack(len(raw)) + raw
        self.flush()

    def flush(self) -> None:
        """Send what is left of what was posted, as far as that goes without waiting.

        Raises:
            Closed: the other end is gone.
        """
        while self._queue:
            try:
                sent = self._socket.send(self._queue)
            except BlockingIOError:
                return
            except OSError as error:
                raise self._closed() from error
            del self._queue[:sent]

    def finish(self, message: _Out) -> None:
        """Send a last message if the other end takes it; what was begun before goes first."""
        with contextlib.suppress(Closed, Stalled):
            self.post(message)
            select.select([], [self._socket], [], _PATIENCE)
            self.flush()

    def receive(self, wait: float = 0.0) -> Iterator[_In]:
        """What has been said, after waiting up to `wait` seconds for something.

        Where half a message is here, the rest is waited for as long as it comes.

        Raises:
            Closed: the other end is gone.
            Malformed: what it says is none of its messages.
        """
        given = 0
        while given < _MAX_MESSAGES:
            while given < _MAX_MESSAGES and (raw := self._next()) is not None:
                given += 1
                yield self._decoded(raw)
            if not select.select([self._socket], [], [], _PATIENCE if self._buffer else wait)[0]:
                return
            self._take_in()
            wait = 0.0

    def _next(self) -> bytes | None:
        """A whole message, None where none is here.

        Raises:
            Malformed: one begins that is longer than any may be.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._incoming.limit:
            raise Malformed(f"the {self._other} begins a message of {length} bytes")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        raw = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        self._half_since = time.monotonic() if self._buffer else None
        return raw

    def _decoded(self, raw: bytes) -> _In:
        name, _, told = raw.partition(b" ")
        kind = self._incoming.kinds.get(name.decode("ascii", "replace"))
        if kind is None:
            raise Malformed(f"the {self._other} says something of no kind that it may say")
        try:
            message: _In = codec.decode(kind, told)
        except Malformed as error:
            raise Malformed(f"the {self._other} says what is no message ({error.what})") from None
        return message

    def _take_in(self) -> None:
        try:
            chunk = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._closed() from error
        if not chunk:
            raise self._closed()
        self._buffer += chunk
        self._half_since = time.monotonic()

    def _closed(self) -> Closed:
        return Closed(f"the {self._other} has ended", "its last lines in the log say why")
