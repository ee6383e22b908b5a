# SPDX-License-Identifier: Apache-2.0
"""One reading of each request, or a refusal; nothing that two readers could take for different things."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from detector.publish.http.request import MAX_BYTES, Hosts, Refused, head_of, parse

GOOD = b"GET /metrics?x=1 HTTP/1.1\r\nHost: Relay.example.:9973\r\nAccept: a\r\nAccept: b\r\n\r\n"


def read(text: bytes) -> object:
    """The request that these bytes begin with."""
    end = head_of(text)
    assert end is not None
    return parse(text[:end])


def refusal(text: bytes) -> int:
    """The status that it is refused with."""
    with pytest.raises(Refused) as caught:
        read(text)
    return caught.value.status


def test_a_request_is_taken_apart() -> None:
    """Method, path, query, host without port and case, headers by name, repeated ones together."""
    end = head_of(GOOD + b"GET /next")
    assert end == len(GOOD)
    request = parse(GOOD)
    assert (request.method, request.path, request.query) == ("GET", "/metrics", "x=1")
    assert (request.host, request.headers["accept"], request.goes_on) == ("relay.example", "a, b", True)


@pytest.mark.parametrize(
    ("line", "host", "goes_on"),
    [
        (b"GET / HTTP/1.0\r\n", "", False),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n", "[2001:db8::1]", True),
        (b"GET / HTTP/1.1\r\nHost:\r\n", "", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Close\r\n", "a", False),
        (b"GET http://other/ HTTP/1.1\r\nHost: a\r\n", "other", True),
        (b"GET https://other:1 HTTP/1.1\r\nHost: a\r\n", "other", True),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n", "a", True),
    ],
)
def test_what_may_be_said_in_more_than_one_way(line: bytes, host: str, goes_on: bool) -> None:
    """Both versions, addresses as hosts, targets with a host of their own, a length of nothing."""
    request = parse(line + b"\r\n")
    assert (request.path, request.host, request.goes_on) == ("/", host, goes_on)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 63 + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 64 + b"\r\n", 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: bytes, status: int) -> None:
    """Bodies, doubled and folded headers, bare line feeds, garbled lines: each with its status."""
    if status == 200:
        assert read(text)
    else:
        assert refusal(text) == status


def test_a_request_has_at_most_its_bytes() -> None:
    """Just as many are read, one more is refused, and before the end is there nothing is said."""
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    room = MAX_BYTES - len(start) - len(end)
    assert read(start + b"a" * room + end)
    assert refusal(start + b"a" * (room + 1) + end) == 431
    assert refusal(b"GET /" + b"a" * MAX_BYTES) == 414
    assert head_of(start) is None
    assert head_of(b"") is None
    assert head_of(b"G") is None
    with pytest.raises(Refused):
        head_of(b"\x16\x03\x01")


@given(st.binary(max_size=300))
@example(GOOD)
def test_any_bytes_are_a_request_or_refused(text: bytes) -> None:
    """No other error, whatever comes."""
    for start in (text, b"GET / HTTP/1.1\r\nHost: a\r\n" + text + b"\r\n\r\n", text + b" HTTP/1.1\r\n\r\n"):
        try:
            end = head_of(start)
            if end is not None:
                parse(start[:end])
        except Refused as refused:
            assert 400 <= refused.status < 600


@given(st.data())
def test_what_was_tampered_with_is_a_request_or_refused(data: st.DataObject) -> None:
    """A good request with something else in one place."""
    at = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(at, len(GOOD)))
    text = GOOD[:at] + data.draw(st.binary(max_size=8)) + GOOD[end:]
    try:
        if (found := head_of(text)) is not None:
            assert parse(text[:found]).method in ("GET", "HEAD")
    except Refused as refused:
        assert refused.reason


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("localhost", True),
        ("", True),
        ("127.0.0.1", True),
        ("203.0.113.9", True),
        ("[::1]", True),
        ("relay", True),
        ("relay.example.net", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::1", False),
        ("::1x", False),
        ("[evil]", False),
        ("0x7f.1", False),
    ],
)
def test_only_addresses_and_our_names_are_us(host: str, good: bool) -> None:
    """A name that somebody else made point here is not ours."""
    assert Hosts(frozenset({"relay", "relay.example.net"})).allow(host) is good
