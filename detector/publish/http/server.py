# SPDX-License-Identifier: Apache-2.0
"""HTTP: the status page, /metrics, runbooks and probes, in one thread beside the aggregator's cycle.

Everything that is served was made before it is asked for, so one thread answers thousands of requests a
second, and no client can make it wait: a connection has a deadline for each of its phases as a whole, a
request has few bytes, and passwords are computed elsewhere. When all places are taken, a newcomer gets the
place of whoever holds most of them and has done nothing for longest, so that a scraper, which asks as soon as
it is connected, is always answered.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Protocol

from detector.logs import get_logger
from detector.publish.http.answers import (
    BUSY,
    ELSEWHERE,
    UNAUTHORIZED,
    Answer,
    Gzipped,
    Pages,
    State,
    answer,
    encoded,
)
from detector.publish.http.passwords import Checks
from detector.publish.http.request import MAX_BYTES, Hosts, Refused, Request, head_of, parse

if TYPE_CHECKING:
    import ssl

__all__ = ["Access", "Pages", "Server", "State", "rehearse", "serve"]

_log = get_logger()

_MAX_CONNECTIONS = 128
_ASKING = 10.0  # seconds that a client may take to ask, from its connection or the first byte on
_TAKING = 10.0  # seconds that it may take to take an answer
_IDLE = 120.0  # seconds between two requests on one connection
_LAST_WORDS = 1.0  # seconds for a client that was refused to read why
_MAX_IGNORED = 1 << 17  # bytes that it may go on to send meanwhile
_SWEEP = 0.25  # seconds between two looks for who is late
_PAUSE = 0.1  # seconds without accepting when there is no descriptor left
_MAX_ACCEPTED = 64  # connections at once, so that those that are there have their turn
_CHUNK = 1 << 14


class Access(Protocol):
    """Who may come in: `detector.publish.http.access`, imported only where credentials are asked for.

    Attributes:
        context: how connections are secured, None for not at all.
    """

    context: ssl.SSLContext | None

    def knows(self, connection: ssl.SSLSocket) -> bool:
        """Whether a client's certificate is one to let in."""

    def glance(self, authorization: str | None) -> bool | None:
        """Whether a header lets in, None where that is yet to be computed by `authenticate`."""

    def authenticate(self, authorization: str | None) -> bool:
        """Whether a header has a user and the user's password; takes as long as a password takes."""


def serve(
    listener: socket.socket, pages: Pages, access: Access | None = None, hosts: Hosts | None = None
) -> Server:
    """Answer in the background until the server is shut down; without `access` whoever asks by our names."""
    server = Server(listener, pages, access, hosts or Hosts())
    threading.Thread(target=server.run, name="http", daemon=True).start()
    return server


def rehearse(pages: Pages) -> None:
    """Answer ourselves, once for each kind of page, so that all that this needs is imported."""
    gzipped = Gzipped()
    for path, accepted in (("/", "*/*"), ("/metrics", "*/*"), ("/metrics", "application/openmetrics-text")):
        text = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accepted}\r\nAccept-Encoding: gzip\r\n\r\n"
        )
        request = parse(text.encode())
        encoded(answer(request, pages), request, gzipped, goes_on=False)


class _Phase(Enum):
    HANDSHAKE = auto()
    ASKING = auto()
    CHECKING = auto()
    TAKING = auto()
    LEAVING = auto()


@dataclass(eq=False, slots=True)
class _Connection:
    """One client's connection.

    Attributes:
        client: whom it counts for.
        access: the rules that it was made under.
        since, deadline: of its phase, on the clock that only goes forward.
        request: what is being answered, None where it could not be read.
        left: of the answer that is being sent.
        goes_on: another request may follow it.
        idle: it has been answered, and has not asked anew.
        ignored: bytes that came after we had stopped to listen.
    """

    socket: socket.socket
    client: str
    access: Access | None
    phase: _Phase
    since: float
    deadline: float
    buffer: bytearray = field(default_factory=bytearray)
    request: Request | None = None
    left: deque[memoryview] = field(default_factory=deque)
    goes_on: bool = False
    idle: bool = False
    ignored: int = 0

    def enter(self, phase: _Phase, seconds: float) -> None:
        """Begin a phase that may take so long."""
        self.phase, self.since = phase, time.monotonic()
        self.deadline = self.since + seconds


class Server:
    """All connections, in one thread.

    Args:
        listener: a socket that listens.
        pages: what is served.
        access: who may come in, None for everybody.
        hosts: our names, for where everybody may come in.

    Attributes:
        access: another one is good for all requests from then on.
    """

    def __init__(self, listener: socket.socket, pages: Pages, access: Access | None, hosts: Hosts) -> None:
        self.access = access
        self._pages = pages
        self._hosts = hosts
        self._listener = listener
        self._connections: dict[_Connection, None] = {}  # in the order in which they came
        self._gzipped = Gzipped()
        self._checks = Checks(self._wake)
        self._ready: list[_Connection] = []
        self._wakes, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[::-1]
        self._ended = threading.Event()
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def run(self) -> None:
        """Until `shutdown`."""
        swept = 0.0
        while not self._stopping:
            try:
                self._turn()
                if time.monotonic() - swept > _SWEEP:
                    swept = time.monotonic()
                    self._sweep(swept)
            except Exception:  # whatever we stumble over, the next one is answered
                _log.error("the web server stumbled", exc_info=True)
                time.sleep(_PAUSE)
        for connection in list(self._connections):
            self._drop(connection)
        self._checks.stop()
        self._selector.close()
        self._listener.close()
        os.close(self._wakes)
        os.close(self._woken)
        self._ended.set()

    def shutdown(self) -> None:
        """End, and return when every connection is closed."""
        self._stopping = True
        self._wake()
        self._ended.wait(_ASKING)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake
            os.write(self._wakes, b"x")

    def _turn(self) -> None:
        ready, self._ready = self._ready, []
        for key, _ in self._selector.select(0 if ready else _SWEEP):
            if isinstance(key.data, _Connection):
                if key.data in self._connections:
                    self._advance(key.data)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                os.read(self._woken, _CHUNK)
        for connection in ready:
            if connection in self._connections and connection.phase is _Phase.ASKING:
                self._advance(connection)
        for connection, good in self._checks.done():
            if connection in self._connections and connection.phase is _Phase.CHECKING:
                self._guarded(connection, partial(self._let_in, connection, good))

    def _sweep(self, now: float) -> None:
        for connection in [one for one in self._connections if one.deadline <= now]:
            self._drop(connection)

    def _accept(self) -> None:
        for _ in range(_MAX_ACCEPTED):
            try:
                end, where = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is left
                time.sleep(_PAUSE)
                return
            self._take(end, _client(where[0]))

    def _take(self, end: socket.socket, client: str) -> None:
        while len(self._connections) >= _MAX_CONNECTIONS:
            self._drop(self._least_wanted())
        end.setblocking(False)
        access, now = self.access, time.monotonic()
        phase = _Phase.ASKING
        if access is not None and access.context is not None:
            phase = _Phase.HANDSHAKE
            try:
                end = access.context.wrap_socket(end, server_side=True, do_handshake_on_connect=False)
            except OSError:  # it is gone already
                end.close()
                return
        connection = _Connection(end, client, access, phase, now, now + _ASKING)
        self._connections[connection] = None
        self._selector.register(end, selectors.EVENT_READ, connection)
        self._advance(connection)

    def _least_wanted(self) -> _Connection:
        """Of the client with most connections, the one that has been in its phase for longest."""
        most, _ = Counter(one.client for one in self._connections).most_common(1)[0]
        return min((one for one in self._connections if one.client == most), key=lambda one: one.since)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection]
        with contextlib.suppress(KeyError, ValueError):  # not watched while a password is computed
            self._selector.unregister(connection.socket)
        connection.socket.close()

    def _watch(self, connection: _Connection, events: int) -> None:
        self._selector.modify(connection.socket, events, connection)

    def _advance(self, connection: _Connection) -> None:
        self._guarded(connection, partial(self._go_on, connection))

    def _guarded(self, connection: _Connection, step: Callable[[], None]) -> None:
        """Do something for a connection that may be gone, or have asked for what is refused."""
        try:
            try:
                step()
            except Refused as refused:
                connection.request = None
                more = (("Allow", "GET, HEAD"),) if refused.status is HTTPStatus.METHOD_NOT_ALLOWED else ()
                self._send(connection, Answer.text(refused.status, refused.reason, *more))
        except BlockingIOError:
            return
        except OSError as error:
            if not self._wants(connection, error):
                self._drop(connection)

    def _wants(self, connection: _Connection, error: OSError) -> bool:
        """Whether TLS only wants to read or write first; we come back then."""
        name = type(error).__name__
        if name == "SSLWantReadError":
            self._watch(connection, selectors.EVENT_READ)
        elif name == "SSLWantWriteError":
            self._watch(connection, selectors.EVENT_WRITE)
        elif connection.phase is _Phase.HANDSHAKE:
            self._leave(connection)
        else:
            return False
        return True

    def _go_on(self, connection: _Connection) -> None:
        match connection.phase:
            case _Phase.HANDSHAKE:
                self._shake_hands(connection)
            case _Phase.ASKING:
                self._listen_to(connection)
            case _Phase.TAKING:
                self._go_on_sending(connection)
            case _Phase.LEAVING:
                self._ignore(connection)
            case _Phase.CHECKING:  # not watched
                pass

    def _shake_hands(self, connection: _Connection) -> None:
        secured: ssl.SSLSocket = connection.socket  # type: ignore[assignment]
        secured.do_handshake()
        if connection.access is not None and not connection.access.knows(secured):
            self._drop(connection)
            return
        connection.phase = _Phase.ASKING  # its time goes on
        self._watch(connection, selectors.EVENT_READ)
        self._listen_to(connection)

    def _listen_to(self, connection: _Connection) -> None:
        while (end := head_of(connection.buffer)) is None:
            chunk = connection.socket.recv(MAX_BYTES)
            if not chunk:
                self._drop(connection)
                return
            if connection.idle:
                connection.idle = False
                connection.enter(_Phase.ASKING, _ASKING)
            connection.buffer += chunk
        head = bytes(connection.buffer[:end])
        del connection.buffer[:end]
        connection.request = parse(head)
        self._begin_answer(connection, connection.request)

    def _begin_answer(self, connection: _Connection, request: Request) -> None:
        access = self.access
        if access is not connection.access:
            self._drop(connection)  # made under other rules; the client connects again
            return
        if access is None:
            ours = self._hosts.allow(request.host)
            self._send(connection, answer(request, self._pages) if ours else ELSEWHERE)
            return
        authorization = request.headers.get("authorization")
        known = access.glance(authorization)
        if known is not None:
            self._let_in(connection, known)
            return
        connection.enter(_Phase.CHECKING, _IDLE)
        self._selector.unregister(connection.socket)
        if not self._checks.ask(connection, connection.client, lambda: access.authenticate(authorization)):
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._send(connection, BUSY)

    def _let_in(self, connection: _Connection, good: bool) -> None:
        """Answer somebody whose credentials are good or not."""
        if connection.phase is _Phase.CHECKING:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        assert connection.request is not None  # noqa: S101  (for mypy)
        self._send(connection, answer(connection.request, self._pages) if good else UNAUTHORIZED)

    def _send(self, connection: _Connection, told: Answer) -> None:
        request = connection.request
        connection.goes_on = request is not None and request.goes_on
        parts = encoded(told, request, self._gzipped, goes_on=connection.goes_on)
        connection.left = deque(memoryview(part) for part in parts if part)
        connection.enter(_Phase.TAKING, _TAKING)
        self._watch(connection, selectors.EVENT_WRITE)
        self._go_on_sending(connection)

    def _go_on_sending(self, connection: _Connection) -> None:
        while connection.left:
            sent = connection.socket.send(connection.left[0])
            if sent == len(connection.left[0]):
                connection.left.popleft()
            else:
                connection.left[0] = connection.left[0][sent:]
        if not connection.goes_on:
            self._leave(connection)
            return
        connection.idle = not connection.buffer
        connection.enter(_Phase.ASKING, _IDLE if connection.idle else _ASKING)
        self._watch(connection, selectors.EVENT_READ)
        self._ready.append(connection)  # the next request may be in our memory already

    def _leave(self, connection: _Connection) -> None:
        """End it so that the client reads why: closed with something of it unread, it would be reset."""
        connection.enter(_Phase.LEAVING, _LAST_WORDS)
        self._watch(connection, selectors.EVENT_READ)
        with contextlib.suppress(OSError):  # it is gone, and we hear of that next
            connection.socket.shutdown(socket.SHUT_WR)

    def _ignore(self, connection: _Connection) -> None:
        chunk = connection.socket.recv(_CHUNK)
        connection.ignored += len(chunk)
        if not chunk or connection.ignored > _MAX_IGNORED:
            self._drop(connection)


def _client(address: str) -> str:
    """Whom a connection counts for: an address, a /64 of IPv6, or whoever is on this host."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.is_loopback:
        return "here"
    return str(found) if found.version == 4 else found.exploded[:19]
