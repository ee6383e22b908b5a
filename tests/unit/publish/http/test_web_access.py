# SPDX-License-Identifier: Apache-2.0
"""TLS, client certificates and passwords, as real clients meet them: curl, openssl and Prometheus."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bcrypt
import pytest

from detector.config.model import Config, Listen
from detector.config.tls import WebConfig
from detector.config.web import load_web
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.http.access import WebAccess
from detector.publish.http.listening import listen
from detector.publish.page.render import View, render
from detector.publish.snapshot import About, Snapshot, samples
from tests.unit.publish.http.certificates import PASSWORD, Papers, hashed, issue, papers

PATIENCE = 30.0
PATHS = ("/", "/metrics", "/-/healthy", "/-/ready", "/runbooks/ExitprintNoVerdict.md", "/nowhere")

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="NO curl here")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="NO openssl here")
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="NO prometheus here")

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Certificates and keys."""
    return papers(tmp_path_factory.mktemp("papers"))


@contextmanager
def served(access: WebAccess) -> Iterator[tuple[int, web.Server]]:
    """The pages of a service behind this; yields port and server."""
    about = About(Config(relay="r"), "netfilter")
    pages = web.Pages(
        Exposition(lambda: (Snapshot(), about), samples),
        lambda: (True, "fresh"),
        lambda: (True, "watching"),
        lambda refreshing: render(View(Snapshot(), about, (True, ""), (True, ""), 0.0, refreshing)).encode(),
    )
    listener = listen(Listen(port=0))
    server = web.serve(listener, pages, access)
    yield listener.getsockname()[1], server
    server.shutdown()


def access(path: Path) -> WebAccess:
    """What a `web.yml` lets in."""
    return WebAccess(load_web(path, guarded=False)[0])


@pytest.fixture(scope="module")
def port(made: Papers) -> Iterator[int]:
    """The port of a service that asks for a certificate and a password."""
    with served(access(made.asking())) as (number, _):
        yield number


def curl(port: int, path: str, made: Papers, *more: str, client: str | None = "client") -> str:
    """The status that curl gets, or what it complains of."""
    shown = {"--cacert": made["ca.pem"]}
    if client is not None:
        shown |= {"--cert": made[f"{client}.pem"], "--key": made[f"{client}.key"]}
    papers_ = [part for pair in shown.items() for part in pair]
    quiet = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"]
    done = _run(["curl", *quiet, *papers_, *more, f"https://localhost:{port}{path}"])
    return done.stdout if done.returncode == 0 else done.stderr


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)


@needs_curl
@pytest.mark.parametrize("path", PATHS)
def test_every_page_asks_for_both(port: int, made: Papers, path: str) -> None:
    """With certificate and password the page; without the password 401; without the certificate no answer."""
    expected = "404" if path == "/nowhere" else "200"
    assert curl(port, path, made, "-u", f"scraper:{PASSWORD}") == expected
    assert curl(port, path, made) == "401"
    assert "certificate required" in curl(port, path, made, "-u", f"scraper:{PASSWORD}", client=None)


@needs_curl
@pytest.mark.parametrize(
    "credentials",
    [
        "scraper:wrong",
        "scraper:",
        f"nobody:{PASSWORD}",
        f":{PASSWORD}",
        f"Scraper:{PASSWORD}",
        "scraper:" + "x" * 100,
    ],
)
def test_wrong_credentials_are_401(port: int, made: Papers, credentials: str) -> None:
    """A wrong password, a user that is not there, neither, one that is too long for bcrypt."""
    assert curl(port, "/metrics", made, "-u", credentials) == "401"


@needs_curl
@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Basic c2NyYXBlcg==", "Bearer x", "Basic /////w==", ""]
)
def test_garbled_credentials_are_401(port: int, made: Papers, header: str) -> None:
    """What is no name and password is refused like a wrong one."""
    assert curl(port, "/metrics", made, "-H", f"Authorization: {header}") == "401"


@needs_curl
def test_a_strangers_certificate_is_refused(port: int, made: Papers) -> None:
    """A certificate by another authority is none, whatever name is in it."""
    assert "unknown ca" in curl(port, "/metrics", made, "-u", f"scraper:{PASSWORD}", client="stranger")


@needs_curl
def test_only_allowed_names_come_in(made: Papers) -> None:
    """With client_allowed_sans, a good certificate of another name gets no answer."""
    issue(made, "colleague", "ca", "DNS:colleague.example.net")
    more = "  client_allowed_sans: [prometheus.example.net]\n"
    with served(access(made.asking(password=False, more=more))) as (port, _):
        assert curl(port, "/metrics", made) == "200"
        assert curl(port, "/metrics", made, client="colleague") not in ("200", "401")


@pytest.mark.parametrize(
    ("version", "good"), [("tls1", False), ("tls1_1", False), ("tls1_2", True), ("tls1_3", True)]
)
def test_old_versions_of_tls_are_refused(port: int, made: Papers, version: str, good: bool) -> None:
    """TLS 1.1 and older get no connection, even from a client that would take any cipher."""
    command = [
        "openssl",
        "s_client",
        f"-{version}",
        "-cipher",
        "ALL:@SECLEVEL=0",
        "-brief",
        "-verify_return_error",
    ]
    papers_ = ["-CAfile", made["ca.pem"], "-cert", made["client.pem"], "-key", made["client.key"]]
    done = subprocess.run(
        [*map(str, [*command, *papers_]), "-connect", f"localhost:{port}"],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode == 0) is good, done.stderr


@needs_curl
def test_half_open_connections_hold_up_nobody(port: int, made: Papers) -> None:
    """Forty clients that begin a handshake, or do not even that, leave the others their answers."""
    with ExitStack() as stack:
        for number in range(40):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            idle.sendall(b"\x16\x03\x01\x02\x00"[: number % 6])
        assert curl(port, "/metrics", made, "-u", f"scraper:{PASSWORD}") == "200"


@needs_curl
def test_plain_http_gets_nothing_from_a_tls_port(port: int, made: Papers) -> None:
    """Neither page nor hint goes over an open line, and others go on."""
    done = _run(
        ["curl", "-sS", "--max-time", "20", "-u", f"scraper:{PASSWORD}", f"http://127.0.0.1:{port}/metrics"]
    )
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert curl(port, "/-/ready", made, "-u", f"scraper:{PASSWORD}") == "200"


@needs_curl
def test_other_rules_hold_from_the_next_request_on(made: Papers) -> None:
    """A new password, then plain HTTP for everybody: also on a connection that was kept open."""
    with served(access(made.asking(certificate=False))) as (port, server):
        assert curl(port, "/metrics", made, "-u", f"scraper:{PASSWORD}", client=None) == "200"
        server.access = WebAccess(WebConfig(users={"scraper": hashed("new")}))
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as kept:
            kept.sendall(b"GET /-/ready HTTP/1.1\r\nHost: x\r\nAuthorization: Basic c2NyYXBlcjpuZXc=\r\n\r\n")
            assert kept.recv(12) == b"HTTP/1.1 200"
            server.access = WebAccess(WebConfig(users={"scraper": hashed("newer")}))
            kept.sendall(b"GET /-/ready HTTP/1.1\r\nHost: x\r\nAuthorization: Basic c2NyYXBlcjpuZXc=\r\n\r\n")
            kept.settimeout(PATIENCE)
            rest = b""
            while chunk := kept.recv(4096):
                rest += chunk
            assert b"HTTP/1.1" not in rest


def basic(name: str, password: str) -> str:
    """An Authorization header."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_a_password_is_computed_once_and_forgotten_with_its_hash() -> None:
    """What was right is remembered, as a keyed digest; what was wrong is to be computed each time."""
    one = WebAccess(WebConfig(users={"scraper": hashed("right")}))
    good, bad, nobody = basic("scraper", "right"), basic("scraper", "wrong"), basic("nobody", "right")
    assert one.glance(good) is None
    assert one.authenticate(good)
    assert one.glance(good) is True
    for header in (bad, nobody):
        assert not one.authenticate(header)
        assert one.glance(header) is None
    assert b"right" not in b"".join(one._remembered)
    assert WebAccess(WebConfig(users={"scraper": hashed("right")})).glance(good) is None


@pytest.mark.parametrize("header", [None, "", "Basic", "Basic !!!", "Basic c2NyYXBlcg==", "Bearer x"])
def test_who_shows_no_credentials_costs_nothing(header: str | None) -> None:
    """No header, or one without a name and a password, is refused at once."""
    assert WebAccess(WebConfig(users={"scraper": hashed("right")})).glance(header) is False
    assert WebAccess(WebConfig()).glance(header) is True


def test_every_name_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users with hashes of different costs, and names that nobody has: as many rounds for each."""
    users = {str(cost): bcrypt.hashpw(b"right", bcrypt.gensalt(cost)).decode() for cost in (4, 5, 7)}
    one = WebAccess(WebConfig(users=users))
    rounds: list[int] = []
    matches = WebAccess._matches

    def counting(self: WebAccess, password: bytes, known: bytes) -> bool:
        rounds[-1] += 1 << int(known[4:6])
        return matches(self, password, known)

    monkeypatch.setattr(WebAccess, "_matches", counting)
    for name in (*users, "nobody", "", "4x"):
        for good, password in ((True, "right"), (False, "wrong"), (False, "x" * 100)):
            rounds.append(0)
            assert one.authenticate(basic(name, password)) is (good and name in users)
    assert set(rounds) == {1 << 7}


def test_no_more_than_a_few_passwords_are_remembered() -> None:
    """Users are few; what is remembered is bounded in any case."""
    users = {f"user{number}": hashed(f"{number}") for number in range(70)}
    one = WebAccess(WebConfig(users=users))
    for number in range(70):
        assert one.authenticate(basic(f"user{number}", f"{number}"))
    assert len(one._remembered) <= 64


@needs_prometheus
def test_prometheus_scrapes_over_tls_with_certificate_and_password(made: Papers, tmp_path: Path) -> None:
    """Debian's Prometheus, told the same, finds the target up, and down with a wrong password."""
    with served(access(made.asking())) as (port, _), _prometheus(made, tmp_path, port) as url:
        up = _asked(url, 'up{job="right"} == 1')
        assert "exitprint_build_info" in _asked(url, "exitprint_build_info")
        assert '"right"' in up
        assert '"wrong"' in _asked(url, 'up{job="wrong"} == 0')


def _asked(url: str, query: str) -> str:
    """What a query finds, waiting for it."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        done = _run(["curl", "-sS", "--get", f"{url}/api/v1/query", "--data-urlencode", f"query={query}"])
        if '"metric"' in done.stdout:
            return done.stdout
        time.sleep(0.2)
    return done.stdout + done.stderr


@contextmanager
def _prometheus(made: Papers, folder: Path, port: int) -> Iterator[str]:
    """A Prometheus that scrapes a port with the right password, and with a wrong one; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    job = (
        "  - job_name: {name}\n    scheme: https\n    scrape_interval: 1s\n    scrape_timeout: 1s\n"
        "    static_configs: [{{targets: ['localhost:{port}']}}]\n"
        "    basic_auth: {{username: scraper, password: '{password}'}}\n"
        "    tls_config: {{ca_file: {ca}, cert_file: {cert}, key_file: {key}}}\n"
    )
    files = {"ca": made["ca.pem"], "cert": made["client.pem"], "key": made["client.key"]}
    text = "scrape_configs:\n" + "".join(
        job.format(name=name, port=port, password=password, **files)
        for name, password in (("right", PASSWORD), ("wrong", "wrong"))
    )
    (folder / "prometheus.yml").write_text(text)
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{own}"
        finally:
            process.terminate()
