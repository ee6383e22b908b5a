# SPDX-License-Identifier: Apache-2.0
"""A web server under siege keeps memory, places and processor, and the scraper is always answered."""

from __future__ import annotations

import gzip
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import bcrypt
import pytest

from detector import logs
from detector.config.model import Config, Listen
from detector.config.tls import WebConfig
from detector.daemon.memory import resident_bytes
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.http.access import WebAccess
from detector.publish.http.listening import listen
from detector.publish.http.passwords import Checks
from detector.publish.http.request import Hosts
from detector.publish.snapshot import About, Snapshot, samples
from tests.unit.publish.http.test_web_access import basic

PATIENCE = 20.0
PAGE = b"<!doctype html>" + bytes(range(32, 127)) * 600


@contextmanager
def served(access: WebAccess | None = None, hosts: Hosts | None = None) -> Iterator[int]:
    """Pages of which one is large; yields the port."""
    about = About(Config(relay="r"), "netfilter")
    pages = web.Pages(
        Exposition(lambda: (Snapshot(), about), samples),
        lambda: (True, "fresh"),
        lambda: (True, "watching"),
        lambda _: PAGE,
    )
    listener = listen(Listen(port=0))
    server = web.serve(listener, pages, access, hosts)
    try:
        yield listener.getsockname()[1]
    finally:
        server.shutdown()


def connect(port: int) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def scrape(port: int, header: str | None = None, path: str = "/metrics", host: str = "localhost") -> int:
    """The status of a scrape on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        headers = {"Host": host} | ({} if header is None else {"Authorization": header})
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_slow_connections_do_not_take_the_scrapers_place() -> None:
    """Three hundred clients that say a byte now and then: twenty scrapes of twenty are answered."""
    with served() as port, ExitStack() as stack:
        slow = [stack.enter_context(connect(port)) for _ in range(300)]
        for turn in range(20):
            for one in slow:
                try:
                    one.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n"[turn : turn + 1])
                except OSError:  # it lost its place
                    continue
            assert scrape(port) == 200


def test_a_request_has_its_time_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not prolong it; who has been answered before may be idle for longer."""
    monkeypatch.setattr(web, "_ASKING", 0.6)
    with served() as port, connect(port) as slow, connect(port) as kept:
        kept.sendall(b"GET /-/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.recv(12) == b"HTTP/1.1 421"
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < PATIENCE:
                slow.sendall(b"G")
                time.sleep(0.05)
        kept.sendall(b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        rest = b""
        while b"watching" not in rest:
            rest += kept.recv(4096)
        kept.sendall(b"GET")
        while kept.recv(4096):  # half a request after an answer has its time, too
            pass


def test_who_does_not_take_the_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks again and again and reads nothing loses its connection; others go on."""
    monkeypatch.setattr(web, "_TAKING", 0.5)
    with served() as port, connect(port) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < PATIENCE:
                deaf.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        assert scrape(port) == 200


def test_no_load_takes_more_than_its_share_of_memory() -> None:
    """Two hundred connections with a megabyte of headers each, and as many unread pages: a few megabytes."""
    with served() as port, ExitStack() as stack:
        scrape(port, path="/")
        before = resident_bytes()
        for number in range(200):
            end = stack.enter_context(connect(port))
            try:
                if number % 2:
                    end.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                else:
                    end.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * (1 << 20))
            except OSError:
                continue
        assert scrape(port) == 200
        assert resident_bytes() - before < 20 << 20


def test_thousands_of_connections_come_and_go() -> None:
    """No descriptor and no place is lost."""
    with served() as port:
        scrape(port)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for turn in range(3000):
            with connect(port) as one:
                if turn % 3:
                    one.sendall(b"GET /-/ready HTTP/1.1\r\n"[: turn % 23])
        assert scrape(port) == 200
        limit = time.monotonic() + PATIENCE
        while len(os.listdir("/proc/self/fd")) > before + 2:  # noqa: PTH208
            assert time.monotonic() < limit, "descriptors are left"
            time.sleep(0.05)


@pytest.mark.parametrize(
    "text",
    [
        b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n",
        b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /-/ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n",
    ],
)
def test_no_body_is_answered_as_a_request(text: bytes) -> None:
    """One request, one answer, and the end of the connection."""
    with served() as port, connect(port) as one:
        one.sendall(text + b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        told = b""
        while chunk := one.recv(1 << 16):
            told += chunk
        assert told.count(b"HTTP/1.1 ") == 1
        assert told.startswith(b"HTTP/1.1 413")


def test_requests_in_one_breath_are_answered_in_order() -> None:
    """A thousand at once, each once, without an answer within an answer."""
    one_of = [
        b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
    with served(hosts=Hosts(frozenset({"a"}))) as port, connect(port) as client:
        sender = threading.Thread(target=client.sendall, args=(b"".join(one_of) * 500,))
        sender.start()
        told = b""
        while told.count(b"fresh\n") < 500:
            told += client.recv(1 << 16)
        sender.join()
        assert told.count(b"HTTP/1.1 200 OK") == 1000
        assert told.index(b"watching\n") < told.index(b"fresh\n")


def test_garbled_requests_are_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is asked: an answer for the client, and not a line in the log."""
    logs.configure("aggregator", "json")
    with served() as port:
        for text in (
            b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x00\r\n\r\n",
            b"GET\r\n\r\n",
            b"A" * 9000,
        ):
            with connect(port) as one:
                one.sendall(text)
                assert one.recv(9) == b"HTTP/1.1 "
        with connect(port) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        assert scrape(port) == 200
    assert capsys.readouterr().err == ""


def test_other_names_are_not_answered() -> None:
    """A page that makes a browser ask by a name of its own reads nothing (DNS rebinding)."""
    with served(hosts=Hosts(frozenset({"relay.example"}))) as port:
        assert scrape(port, host="evil.example") == 421
        assert scrape(port, host=f"evil.example:{port}") == 421
        for host in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}", "relay.example", "RELAY.example:1"):
            assert scrape(port, host=host) == 200


def test_where_credentials_are_asked_for_any_name_is_good() -> None:
    """A browser has none for a name of somebody else's."""
    access = WebAccess(WebConfig(users={"u": bcrypt.hashpw(b"p", bcrypt.gensalt(4)).decode()}))
    with served(access) as port:
        assert scrape(port, basic("u", "p"), host="scraped.example") == 200


def test_guessing_costs_neither_strangers_nor_those_who_are_known_their_answer() -> None:
    """Sixty connections without credentials and some with wrong ones: 401 at once, and others come in."""
    access = WebAccess(WebConfig(users={"u": bcrypt.hashpw(b"p", bcrypt.gensalt(10)).decode()}))
    with served(access) as port:
        assert scrape(port, basic("u", "p")) == 200
        stop = threading.Event()
        found: list[int] = []

        def loop(header: str | None) -> None:
            while not stop.is_set():
                found.append(scrape(port, header))

        guessers = [threading.Thread(target=loop, args=(basic("u", "no"),)) for _ in range(12)]
        for one in guessers:
            one.start()
        begun = time.monotonic()
        for _ in range(60):
            assert scrape(port) == 401
            assert scrape(port, basic("u", "p")) == 200
        assert time.monotonic() - begun < PATIENCE
        stop.set()
        for one in guessers:
            one.join()
        assert set(found) <= {401, 429}
        assert 401 in found


def test_a_page_is_sent_short_to_who_takes_it() -> None:
    """The same page, and made short once."""
    with served() as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for path, whole in (("/", PAGE), ("/metrics", None), ("/-/ready", b"watching\n")):
            connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
            answer = connection.getresponse()
            body = answer.read()
            if path == "/-/ready":
                assert answer.getheader("Content-Encoding") is None
            else:
                assert answer.getheader("Content-Encoding") == "gzip"
                assert len(body) < 20_000
                body = gzip.decompress(body)
            assert whole in (None, body)
        connection.close()


def test_a_hundred_scrapes_at_once_wait_for_nobody() -> None:
    """Every one is answered whole, and what the server itself takes for all of them is a moment."""
    with served() as port, ExitStack() as stack:
        scrape(port)
        clients = [stack.enter_context(connect(port)) for _ in range(100)]
        busy = time.thread_time()
        for one in clients:
            one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        told = [_all(one) for one in clients]
        assert {one[:12] for one in told} == {b"HTTP/1.1 200"}
        assert len({len(one) for one in told}) == 1
        assert time.thread_time() - busy < PATIENCE


def _all(one: socket.socket) -> bytes:
    told = b""
    while chunk := one.recv(1 << 16):
        told += chunk
    return told


def test_passwords_wait_in_a_line_of_each_client() -> None:
    """One client's line is bounded, and another's is as long as before; each has its turn."""
    woken, release = threading.Event(), threading.Event()
    order: list[str] = []

    def check(name: str) -> Callable[[], bool]:
        def run() -> bool:
            release.wait(PATIENCE)
            order.append(name)
            return True

        return run

    checks = Checks(woken.set)
    assert checks.ask("first", "a", check("a"))
    time.sleep(0.1)
    assert [checks.ask("x", "a", check("a")) for _ in range(10)] == [True] * 8 + [False] * 2
    assert checks.ask("y", "b", check("b"))
    release.set()
    limit = time.monotonic() + PATIENCE
    done: list[tuple[object, bool]] = []
    while len(done) < 10:
        assert time.monotonic() < limit
        done += checks.done()
    assert order.index("b") <= 2
    assert all(good for _, good in done)
    checks.stop()
