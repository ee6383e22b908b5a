# SPDX-License-Identifier: Apache-2.0
"""HTTP: the status page, /metrics, runbooks and probes, in threads beside the aggregator's cycle."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from detector import __version__
from detector.logs import get_logger
from detector.publish.exporter import Exposition
from detector.publish.page import runbooks
from detector.publish.page.render import POLICY

if TYPE_CHECKING:
    import ssl

_log = get_logger()

_TIMEOUT = 10  # seconds that a client may take to say something
_MAX_CONNECTIONS = 128
_LAST_WORDS = 1  # seconds for a client that was refused to hang up
_LAST_READS, _CHUNK = 8, 1 << 14

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# What a page says, and whether it is good news.
State = tuple[bool, str]


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served.

    Attributes:
        metrics: what /metrics says.
        healthy, ready: what /-/healthy and /-/ready say.
        page: the status page, which reloads itself or not.
    """

    metrics: Exposition
    healthy: Callable[[], State]
    ready: Callable[[], State]
    page: Callable[[bool], str]


class Access(Protocol):
    """Who may come in: `detector.publish.http.access`, imported only where credentials are asked for.

    Attributes:
        context: how connections are secured, None for not at all.
    """

    context: ssl.SSLContext | None

    def knows(self, connection: ssl.SSLSocket) -> bool:
        """Whether a client's certificate is one to let in."""

    def authenticate(self, authorization: str | None) -> bool:
        """Whether a request's header has a user and the user's password, where one is asked for."""


def serve(listener: socket.socket, pages: Pages, access: Access | None = None) -> Server:
    """Answer in the background until the server is shut down; without `access` whoever asks."""
    server = Server(listener, pages, access)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


def rehearse(pages: Pages) -> None:
    """Answer ourselves, once for each kind of page, so that all that this needs is imported."""
    for path, accepted in (("/", "*/*"), ("/metrics", "*/*"), ("/metrics", "application/openmetrics-text")):
        client, ours = socket.socketpair()
        with client, ours:
            client.sendall(f"GET {path} HTTP/1.0\r\nAccept: {accepted}\r\n\r\n".encode())
            _Handler(ours, ("", 0), SimpleNamespace(pages=pages, access=None), None)  # type: ignore[arg-type]


class Server(ThreadingHTTPServer):
    """A thread for each connection.

    Attributes:
        access: who may come in; another one is good for all connections from then on.
    """

    daemon_threads = True

    def __init__(self, listener: socket.socket, pages: Pages, access: Access | None) -> None:
        super().__init__(listener.getsockname()[:2], BaseHTTPRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.pages = pages
        self.access = access
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def process_request(self, request: object, client_address: object) -> None:
        """A thread for each connection, up to a number that cannot exhaust the relay."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Give the place back when the connection ends."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._places.release()

    def finish_request(self, request: object, client_address: object) -> None:
        """Secure the connection, if it is to be, in its own thread: a client that is slow holds up nobody."""
        access = self.access
        if access is None or access.context is None:
            _Handler(request, client_address, self, access)  # type: ignore[arg-type]
            return
        request.settimeout(_TIMEOUT)  # type: ignore[attr-defined]
        with access.context.wrap_socket(
            request,  # type: ignore[arg-type]
            server_side=True,
            do_handshake_on_connect=False,
        ) as secured:
            try:
                secured.do_handshake()
            except OSError:
                _let_read(secured)
                return
            if access.knows(secured):
                _Handler(secured, client_address, self, access)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that goes away in the middle is no news, and its address is nobody's business."""
        error = sys.exception()
        if not isinstance(error, OSError):
            _log.error("a request failed", exc_info=error)


def _let_read(connection: socket.socket) -> None:
    """End a connection so that the client reads why: closed with its request unread, it would be reset."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_LAST_WORDS)
        for _ in range(_LAST_READS):
            if not connection.recv(_CHUNK):
                return


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _TIMEOUT
    server_version = f"exitprint/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def __init__(
        self, request: socket.socket, address: object, server: Server, access: Access | None
    ) -> None:
        self._access = access
        super().__init__(request, address, server)

    def do_GET(self) -> None:
        if self.server.access is not self._access:
            self.close_connection = True  # made under other rules; the client connects again
            return
        if self._access and not self._access.authenticate(self.headers.get("Authorization")):
            self._text(HTTPStatus.UNAUTHORIZED, "a user and a password are needed")
            return
        pages = self.server.pages
        asked = urlsplit(self.path)
        match asked.path:
            case "/":
                page = pages.page(asked.query == "reload").encode()
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
            case "/metrics":
                self._answer(HTTPStatus.OK, *pages.metrics.page(self.headers.get("Accept", "")))
            case "/-/healthy":
                self._state(pages.healthy())
            case "/-/ready":
                self._state(pages.ready())
            case _:
                self._other(asked.path)

    do_HEAD = do_GET  # noqa: N815  (the base class looks for this name)

    def _other(self, path: str) -> None:
        text = runbooks.named(path)
        if text is not None:
            self._answer(HTTPStatus.OK, text, "text/plain; charset=utf-8")
            return
        there = "/, /metrics, /runbooks/NAME.md, /-/healthy and /-/ready"
        self._text(HTTPStatus.NOT_FOUND, f"not here; there are {there}")

    def _state(self, state: State) -> None:
        good, text = state
        self._text(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, text)

    def _text(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Basic realm="exitprint", charset="UTF-8"')
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        """Who asks for what is not written down."""
