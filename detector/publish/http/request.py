# SPDX-License-Identifier: Apache-2.0
"""A request as bytes to a request as an object, or to a refusal: pure, strict, and bounded (RFC 9112).

What two readers of HTTP could take for different things is refused: a body in any form, two lengths, two
hosts, a line that goes on in the next one, a bare line feed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address

MAX_BYTES = 8192
"""Bytes of a request, all of its headers among them."""

_MAX_HEADERS = 64
_END = b"\r\n\r\n"

_LINE = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]{1,4096}) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*((?:[\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?)"
)
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)(/[^#]*)?", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_ONCE = frozenset({"authorization", "content-length", "host", "transfer-encoding"})


class Refused(Exception):
    """A request that is not answered; nothing can follow it on its connection.

    Args:
        status: what to answer with.
        reason: why, for people.
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        method: GET or HEAD.
        path, query: what comes before and after the question mark.
        host: the name or address that the client has for us, without the port; empty where it gives none.
        headers: by name in lower case.
        goes_on: another request may follow on this connection.
    """

    method: str
    path: str
    query: str
    host: str
    headers: Mapping[str, str]
    goes_on: bool


def head_of(buffer: bytes | bytearray) -> int | None:
    """Where the first request in a buffer ends, None where more is to come.

    Raises:
        Refused: it can be no request, or is longer than any may be.
    """
    end = buffer.find(_END, 0, MAX_BYTES)
    if end >= 0:
        return end + len(_END)
    if buffer[:1] and not b"A" <= buffer[:1] <= b"Z":
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no request")
    if len(buffer) < MAX_BYTES:
        return None
    if b"\r\n" not in buffer[:MAX_BYTES]:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"a request has at most {MAX_BYTES} bytes")
    raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request has at most {MAX_BYTES} bytes")


def parse(head: bytes) -> Request:
    """The request that a head is, which `head_of` has found.

    Raises:
        Refused: it is none that is answered here.
    """
    first, *lines = head.removesuffix(_END).split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the first line is no request")
    method, target = line[1].decode(), line[2].decode()
    if line[3] != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and HTTP/1.1 are spoken here")
    headers = _headers(lines)
    _refuse_body(headers)
    if method not in ("GET", "HEAD"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
    host, path = _place(target, headers, asked=line[4] != b"0")
    path, _, query = path.partition("?")
    goes_on = line[4] != b"0" and "close" not in headers.get("connection", "").lower()
    return Request(method, path, query, host, headers, goes_on)


def _headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > _MAX_HEADERS:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {_MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "a line is no header")
        name, value = found[1].decode().lower(), found[2].decode("latin-1").rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise Refused(HTTPStatus.BAD_REQUEST, "a header is there twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _refuse_body(headers: Mapping[str, str]) -> None:
    """A body would have to be read, or it would be taken for the next request."""
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request has no body here")


def _place(target: str, headers: Mapping[str, str], *, asked: bool) -> tuple[str, str]:
    """Host and path. A target with a host of its own outdoes the header (RFC 9112, 3.2.2)."""
    given = headers.get("host")
    if given is None and asked:
        raise Refused(HTTPStatus.BAD_REQUEST, "the header Host is missing")
    host = _host(given) if given else ""
    if target.startswith("/"):
        return host, target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "what is asked for is no path")
    return _host(absolute[1]), absolute[2] or "/"


def _host(text: str) -> str:
    found = _HOST.fullmatch(text)
    if found is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the host is no name and no address")
    return found[1].lower().rstrip(".")


@dataclass(frozen=True, slots=True)
class Hosts:
    """By which names we may be asked, where nothing else keeps strangers out.

    A web page that an administrator opens can make a browser ask us under a name of the page's own, which it
    lets point here (DNS rebinding), and read the answer. It cannot do so with an address, or with our names.

    Args:
        names: ours, in lower case.
    """

    names: frozenset[str] = frozenset()

    def allow(self, host: str) -> bool:
        """Whether a host, as `Request` has it, is us."""
        if host in ("", "localhost") or host in self.names:
            return True
        try:
            if host.startswith("[") and host.endswith("]"):
                IPv6Address(host[1:-1])
            else:
                ip_address(host)
        except ValueError:
            return False
        return True
