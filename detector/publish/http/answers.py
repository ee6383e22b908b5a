# SPDX-License-Identifier: Apache-2.0
"""What is served: from a request to an answer, without a socket."""

from __future__ import annotations

import gzip
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from detector import __version__
from detector.publish.exporter import Exposition
from detector.publish.http.request import Request
from detector.publish.page import runbooks
from detector.publish.page.render import POLICY

_LEAST_GZIP = 1024  # bytes from which a page is worth it
_MAX_GZIPPED = 16

_TEXT = "text/plain; charset=utf-8"
_HEADERS = {
    "Server": f"exitprint/{__version__}",
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept, Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ALWAYS = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())

# What a page says, and whether it is good news.
State = tuple[bool, str]


@dataclass(frozen=True, slots=True)
class Pages:
    """What is served.

    Attributes:
        metrics: what /metrics says.
        healthy, ready: what /-/healthy and /-/ready say.
        page: the status page, which reloads itself or not; the same object until it has changed.
    """

    metrics: Exposition
    healthy: Callable[[], State]
    ready: Callable[[], State]
    page: Callable[[bool], bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and text.

    Attributes:
        more: further headers.
    """

    status: HTTPStatus
    body: bytes
    kind: str = _TEXT
    more: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, status: HTTPStatus, text: str, *more: tuple[str, str]) -> Answer:
        """A line for people."""
        return cls(status, f"{text}\n".encode(), more=more)


UNAUTHORIZED = Answer.text(
    HTTPStatus.UNAUTHORIZED,
    "a user and a password are needed",
    ("WWW-Authenticate", 'Basic realm="exitprint", charset="UTF-8"'),
)
BUSY = Answer.text(HTTPStatus.TOO_MANY_REQUESTS, "too many passwords are being tried", ("Retry-After", "1"))
ELSEWHERE = Answer.text(
    HTTPStatus.MISDIRECTED_REQUEST,
    "this name is not one of ours: ask by address, or add the name to the key hosts",
)


def answer(request: Request, pages: Pages) -> Answer:
    """What a request gets."""
    match request.path:
        case "/":
            page = pages.page(request.query == "reload")
            return Answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
        case "/metrics":
            return Answer(HTTPStatus.OK, *pages.metrics.page(request.headers.get("accept", "")))
        case "/-/healthy":
            return _state(pages.healthy())
        case "/-/ready":
            return _state(pages.ready())
        case path:
            return _other(path)


def _other(path: str) -> Answer:
    text = runbooks.named(path)
    if text is not None:
        return Answer(HTTPStatus.OK, text)
    there = "/, /metrics, /runbooks/NAME.md, /-/healthy and /-/ready"
    return Answer.text(HTTPStatus.NOT_FOUND, f"not here; there are {there}")


def _state(state: State) -> Answer:
    good, text = state
    return Answer.text(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, text)


@dataclass(slots=True)
class Gzipped:
    """Pages in short, each made once: pages are kept as objects, so the object names the page."""

    _known: OrderedDict[int, tuple[bytes, bytes]] = field(default_factory=OrderedDict)

    def of(self, body: bytes) -> bytes:
        """A page in short."""
        known = self._known.get(id(body))
        if known is None:
            # The page itself is kept too, so that no other one gets its number.
            known = self._known[id(body)] = body, gzip.compress(body, 6, mtime=0)
            while len(self._known) > _MAX_GZIPPED:
                self._known.popitem(last=False)
        return known[1]


def encoded(told: Answer, request: Request | None, gzipped: Gzipped, *, goes_on: bool) -> tuple[bytes, bytes]:
    """Head and body of an answer as they are sent.

    Args:
        told: the answer.
        request: what it is the answer to, None where that could not be read.
        gzipped: pages that were made short before.
        goes_on: another request may follow.
    """
    body, lines = told.body, [("Content-Type", told.kind), *told.more]
    if request and len(body) >= _LEAST_GZIP and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzipped.of(body)
        lines.append(("Content-Encoding", "gzip"))
    lines.append(("Content-Length", str(len(body))))
    if not goes_on:
        lines.append(("Connection", "close"))
    own = "".join(f"{name}: {value}\r\n" for name, value in lines)
    head = f"HTTP/1.1 {told.status.value} {told.status.phrase}\r\n{own}{_ALWAYS}\r\n".encode("latin-1")
    return head, b"" if request and request.method == "HEAD" else body
