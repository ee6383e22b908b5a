# SPDX-License-Identifier: Apache-2.0
"""Debian's Prometheus and Alertmanager and a receiver of webhooks, with the project's own rules and routes.

Or, as the other recipe for fleets has it, VictoriaMetrics in the place of Prometheus: vmagent asks the
relays and writes to it, vmalert evaluates the rules.

They are processes of ours in a temporary folder, on free ports of loopback; the machine's own services are
left alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

import yaml

from detector.base.errors import HostError
from detector.lab import timescale
from detector.lab.namespaces import require
from detector.lab.timescale import Target

INTERVAL = "1s"
_HOST = "127.0.0.1"
_PATIENCE = 60.0
_POLL = 0.1

_PROGRAMS = {"prometheus": ("prometheus",), "victoria-metrics": ("victoria-metrics", "vmagent", "vmalert")}

Engine = Literal["prometheus", "victoria-metrics"]
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert as Alertmanager told a receiver.

    Attributes:
        receiver: `pager` or `tickets`.
        firing: False when it is resolved.
    """

    receiver: str
    firing: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its name."""
        return self.labels["alertname"]


class Receiver:
    """What takes Alertmanager's messages.

    Attributes:
        url: where they are to go, without the receiver's name.
    """

    def __init__(self) -> None:
        self._alerts: list[Alert] = []
        told = self._alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                told.extend(_alert(body["receiver"], one) for one in body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
                """Nothing to say."""

        self._server = ThreadingHTTPServer((_HOST, 0), Handler)
        self.url = f"http://{_HOST}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True).start()

    def told(self, receiver: str | None = None) -> tuple[Alert, ...]:
        """What was told to one receiver or to all until now, in order."""
        return tuple(alert for alert in self._alerts if receiver in (None, alert.receiver))

    def last(self, name: str) -> Alert | None:
        """The last message about an alert."""
        return next((alert for alert in reversed(self._alerts) if alert.name == name), None)

    def close(self) -> None:
        """Take no more."""
        self._server.shutdown()
        self._server.server_close()


def _alert(receiver: str, said: Mapping[str, Any]) -> Alert:
    return Alert(receiver, said["status"] == "firing", said["labels"], said["annotations"])


class Monitoring:
    """Prometheus, Alertmanager and the receiver, as they run.

    Attributes:
        prometheus, alertmanager: their addresses; for the former, what answers queries.
        rules: what evaluates the rules.
        receiver: what was told.
        factor: by which all times of rules and routes are shorter.
    """

    def __init__(
        self, prometheus: str, alertmanager: str, receiver: Receiver, factor: float, rules: str = ""
    ) -> None:
        self.prometheus = prometheus
        self.rules = rules or prometheus
        self.alertmanager = alertmanager
        self.receiver = receiver
        self.factor = factor
        self.started = time.time()

    def alerts(self) -> list[dict[str, Any]]:
        """Prometheus' alerts, pending and firing, as it tells them."""
        found: list[dict[str, Any]] = self._ask("alerts", of=self.rules)["alerts"]
        return found

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples that a query gives now.

        Raises:
            HostError: Prometheus does not take the query.
        """
        found: list[dict[str, Any]] = self._ask("query", query=expr)["result"]
        return found

    def since_start(self, expr: str) -> list[dict[str, Any]]:
        """The series that a query gives over the whole run, step by step.

        Raises:
            HostError: Prometheus does not take the query.
        """
        until = time.time()
        found: list[dict[str, Any]] = self._ask(
            "query_range", query=expr, start=self.started, end=until, step=1
        )["result"]
        return found

    def firing(self) -> set[str]:
        """The names of the alerts that fire in Prometheus now."""
        return {alert["labels"]["alertname"] for alert in self.alerts() if alert["state"] == "firing"}

    def rule_seconds(self) -> float:
        """What the last round of all rules took, in seconds of the engine's own clock (Prometheus alone)."""
        return float(sum(group["evaluationTime"] for group in self._ask("rules", of=self.rules)["groups"]))

    def _ask(self, what: str, of: str = "", **parameters: Any) -> dict[str, Any]:
        url = f"{of or self.prometheus}/api/v1/{what}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:  # noqa: S310  (our own loopback address)
                found: dict[str, Any] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise HostError(f"Prometheus does not take it: {error.read().decode()[:500]}") from None
        return found

    def wait(self, what: str, done: Callable[[], _Found | None], patience: float = _PATIENCE) -> _Found:
        """Return what `done` gives as soon as it is something true.

        Raises:
            HostError: it takes too long; `what` says what was waited for.
        """
        limit = time.monotonic() + patience
        while not (found := done()):
            if time.monotonic() > limit:
                raise HostError(
                    f"waited {patience:.0f} s in vain for {what}; firing: {sorted(self.firing())}"
                )
            time.sleep(_POLL)
        return found


@contextmanager
def monitoring(
    targets: Sequence[Target], factor: float, engine: Engine = "prometheus", interval: str = INTERVAL
) -> Iterator[Monitoring]:
    """Watch relays; everything is gone when the ``with`` block ends.

    Args:
        targets: the relays.
        factor: by which all times of rules and routes are shorter.
        engine: what asks them and evaluates the rules.
        interval: of both.

    Raises:
        HostError: a program is missing or does not start.
    """
    require(*_PROGRAMS[engine], "prometheus-alertmanager")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exitprint-stack-")))
        receiver = Receiver()
        stack.callback(receiver.close)
        alertmanager, store, agent, rules = (f"{_HOST}:{_free_port()}" for _ in range(4))
        _write(folder, timescale.prometheus(targets, alertmanager, interval), receiver.url, factor)
        _start(stack, folder, _alertmanager(alertmanager), alertmanager)
        if engine == "prometheus":
            rules = store
            _start(stack, folder, _prometheus(store), store)
        else:
            _start(stack, folder, _victoria_metrics(store), store, "/health")
            _start(stack, folder, _vmagent(agent, store), agent, "/health")
            _without_what_vmalert_refuses(folder)
            _start(stack, folder, _vmalert(rules, store, alertmanager, interval), rules, "/health")
        yield Monitoring(
            f"http://{store}", f"http://{alertmanager}", receiver, factor, rules=f"http://{rules}"
        )


def _write(folder: Path, prometheus: dict[str, Any], receiver: str, factor: float) -> None:
    files = {name: timescale.rules(name, factor) for name in timescale.RULES}
    files["prometheus.yml"] = prometheus
    files["alertmanager.yml"] = timescale.routes(factor, receiver)
    files["vmagent.yml"] = {key: prometheus[key] for key in ("scrape_configs",)}
    files["vmagent.yml"]["global"] = {"scrape_interval": prometheus["global"]["scrape_interval"]}
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False, width=10_000))


def _prometheus(place: str) -> list[str]:
    return [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={place}",
        "--log.level=warn",
    ]


def _without_what_vmalert_refuses(folder: Path) -> None:
    """An old vmalert (1.79, Debian 12) does not know `keep_firing_for`: tickets end at once there."""
    check = ["vmalert", "-dryRun", *(f"-rule={name}" for name in timescale.RULES)]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=False)
    if "keep_firing_for" not in done.stdout + done.stderr:
        return
    for name in timescale.RULES:
        found = yaml.safe_load((folder / name).read_text())
        for rule in (rule for group in found["groups"] for rule in group["rules"]):
            rule.pop("keep_firing_for", None)
        (folder / name).write_text(yaml.safe_dump(found, sort_keys=False, width=10_000))


def _victoria_metrics(place: str) -> list[str]:
    return [
        "victoria-metrics",
        "-storageDataPath=data",
        f"-httpListenAddr={place}",
        "-search.latencyOffset=0s",  # so that times can be short: what was written is seen at once
        "-search.disableCache",
        "-search.maxLookback=15s",
        "-loggerLevel=WARN",
    ]


def _vmagent(place: str, store: str) -> list[str]:
    return [
        "vmagent",
        "-promscrape.config=vmagent.yml",
        f"-remoteWrite.url=http://{store}/api/v1/write",
        "-remoteWrite.tmpDataPath=agent",
        "-remoteWrite.flushInterval=200ms",
        f"-httpListenAddr={place}",
        "-loggerLevel=WARN",
    ]


def _vmalert(place: str, store: str, alertmanager: str, interval: str) -> list[str]:
    return [
        "vmalert",
        *(f"-rule={name}" for name in timescale.RULES),
        f"-datasource.url=http://{store}",
        f"-remoteWrite.url=http://{store}",
        "-remoteWrite.flushInterval=200ms",
        "-datasource.queryStep=15s",
        "-datasource.queryTimeAlignment=false",
        f"-notifier.url=http://{alertmanager}",
        f"-evaluationInterval={interval}",
        f"-httpListenAddr={place}",
        "-loggerLevel=WARN",
    ]


def _alertmanager(place: str) -> list[str]:
    return [
        "prometheus-alertmanager",
        "--config.file=alertmanager.yml",
        "--storage.path=notifications",
        f"--web.listen-address={place}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]


def _start(stack: ExitStack, folder: Path, command: list[str], place: str, health: str = "/-/ready") -> None:
    log = stack.enter_context((folder / f"{command[0]}.log").open("w+"))
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
    )
    stack.callback(_stop, process)
    limit = time.monotonic() + _PATIENCE
    while not _ready(place + health):
        if process.poll() is not None or time.monotonic() > limit:
            log.seek(0)
            raise HostError(f"{command[0]} did not start: {' '.join(log.read().split()[-40:])}")
        time.sleep(_POLL)


def _ready(place: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{place}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((_HOST, 0))
        return int(trial.getsockname()[1])
