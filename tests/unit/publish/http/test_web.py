# SPDX-License-Identifier: Apache-2.0
"""HTTP as scrapers, probes and strangers meet it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from detector.base.errors import HostError
from detector.config.model import Config, Listen
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.http.listening import listen
from detector.publish.page import runbooks
from detector.publish.page.render import View, render
from detector.publish.snapshot import About, Snapshot, samples

PATIENCE = 10.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    kind: str
    length: int
    body: str


@contextmanager
def served(where: Listen, *, good: bool = True) -> Iterator[tuple[str, int]]:
    """The pages of a service that has not made a report yet; yields host and port."""
    listener = listen(where)
    host, port = listener.getsockname()[:2]
    about = About(Config(relay="r"), "netfilter")
    pages = web.Pages(
        Exposition(lambda: (Snapshot(), about), samples),
        lambda: (good, "fresh" if good else "no report for 99 s"),
        lambda: (good, "watching" if good else "no WireGuard interface is there"),
        lambda refreshing: render(View(Snapshot(), about, (good, ""), (good, ""), 0.0, refreshing)).encode(),
    )
    server = web.serve(listener, pages)
    yield host, port
    server.shutdown()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a service that is well."""
    with served(Listen(port=0)) as (_, number):
        yield number


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return Answer(
        answer.status,
        answer.getheader("Content-Type", ""),
        int(answer.getheader("Content-Length", "0")),
        body,
    )


def raw(port: int, text: bytes) -> bytes:
    """What comes back until the other end closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(text)
        with connection.makefile("rb") as lines:
            return lines.read()


def test_each_page_answers(port: int) -> None:
    """Metrics, both probes, and a 404 that says what there is; a query string changes nothing."""
    assert ask(port, "/-/healthy") == Answer(200, "text/plain; charset=utf-8", 6, "fresh\n")
    assert (ask(port, "/-/ready").status, ask(port, "/-/ready").body) == (200, "watching\n")
    metrics = ask(port, "/metrics?collect=all")
    assert (metrics.status, metrics.kind.split(";")[0]) == (200, "text/plain")
    assert "exitprint_build_info" in {family.name for family in text_string_to_metric_families(metrics.body)}
    for path in ("/metric", "/-/ready/", "/../metrics"):
        nothing = ask(port, path)
        assert (nothing.status, "/metrics" in nothing.body) == (404, True)


def test_the_page_and_its_runbooks_are_served(port: int) -> None:
    """The status page links each runbook, and each link leads to its text; others lead nowhere."""
    page = ask(port, "/")
    assert (page.status, page.kind) == (200, "text/html; charset=utf-8")
    assert runbooks.TEXTS
    for name, text in runbooks.TEXTS.items():
        assert f'href="{runbooks.address(name)}"' in page.body
        assert ask(port, runbooks.address(name)).body.encode() == text
    for path in (
        "/runbooks/",
        "/runbooks/../../etc/passwd",
        "/runbooks/ExitprintNoVerdict",
        "/runbooks/x.md",
    ):
        assert ask(port, path).status == 404
    assert "http-equiv" not in page.body
    assert 'http-equiv="refresh"' in ask(port, "/?reload").body


def test_no_answer_may_be_kept_framed_or_run(port: int) -> None:
    """Pages, metrics and errors alike say that they are not to be stored, framed, sniffed or run."""
    for path in ("/", "/metrics", "/-/ready", "/nowhere"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", path)
        headers = connection.getresponse().headers
        connection.close()
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_bad_news_are_503_with_the_reason() -> None:
    """A service that is not well says why to its probes, and its metrics are still there."""
    with served(Listen(port=0), good=False) as (_, number):
        assert (ask(number, "/-/healthy").status, ask(number, "/-/healthy").body) == (
            503,
            "no report for 99 s\n",
        )
        ready = ask(number, "/-/ready")
        assert (ready.status, ready.body) == (503, "no WireGuard interface is there\n")
        assert ask(number, "/metrics").status == 200


def test_head_is_get_without_a_body(port: int) -> None:
    """HEAD has the status and the length of GET, and no body; the connection goes on."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for path, status in (("/metrics", 200), ("/-/ready", 200), ("/nowhere", 404)):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
        assert answer.getheader("Content-Length") == str(ask(port, path).length)
    connection.close()


def test_openmetrics_is_for_who_asks_for_it(port: int) -> None:
    """The content type is the one of the format that the scraper accepts."""
    answer = ask(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.kind.startswith("application/openmetrics-text")
    assert answer.body.endswith("# EOF\n")


def test_other_methods_are_refused(port: int) -> None:
    """Nothing can be posted or deleted."""
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "NONSENSE"):
        assert ask(port, "/metrics", method).status == 405


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
    ],
)
def test_oversized_and_garbled_requests_are_refused(port: int, request_: bytes, status: bytes) -> None:
    """Too long a line, too many or too long headers, TLS to a plain port: an error, and others go on."""
    assert status in raw(port, request_)[:400]
    assert ask(port, "/-/healthy").status == 200


def test_a_hundred_scrapes_at_once_are_answered(port: int) -> None:
    """Every one of a hundred parallel scrapes gets the whole page."""
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: ask(port, "/metrics"), range(100)))
    assert {(answer.status, len(answer.body)) for answer in answers} == {(200, answers[0].length)}


def test_half_open_connections_do_not_block_others(port: int) -> None:
    """Forty clients that connect and say half a request leave the others their answers."""
    with ExitStack() as stack:
        for _ in range(40):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            idle.sendall(b"GET /metr")
        assert ask(port, "/metrics").status == 200


def test_a_newcomer_gets_the_place_of_who_has_done_nothing_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond the limit the oldest idle connection is closed, and every new one is answered."""
    monkeypatch.setattr(web, "_MAX_CONNECTIONS", 3)
    with served(Listen(port=0)) as (host, number), ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection((host, number), timeout=PATIENCE)) for _ in range(3)
        ]
        for one in held:
            one.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(12) == b"HTTP/1.1 200"
        assert ask(number, "/-/healthy").status == 200
        while held[0].recv(4096):  # the rest of its answer, then the end
            pass
        held[2].sendall(b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(number, "/-/healthy").status == 200


def test_ipv6_can_be_listened_on() -> None:
    """An IPv6 address of the configuration is served like any other."""
    with served(Listen("::1", 0)) as (host, number):
        assert host == "::1"
        with socket.create_connection(("::1", number), timeout=PATIENCE) as connection:
            connection.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_port_that_is_taken_is_an_error_that_names_the_key() -> None:
    """The address, the reason and the key to change are in the message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Listen(port=taken.getsockname()[1])
        taken_words = f"cannot listen on {where}: address already in use; .*key listen"
        with pytest.raises(HostError, match=taken_words):
            listen(where)
