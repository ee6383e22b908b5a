# SPDX-License-Identifier: Apache-2.0
"""Alerts and dashboards on a real relay, with a real Prometheus and a real Alertmanager."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import promql_parser as ql
import pytest

from dashboards.fleet import fleet
from dashboards.relay import relay
from detector.lab import timescale
from detector.lab.relay import Lab
from detector.lab.service import start_service
from detector.lab.stack import BAD, PAGE, PEERS, Scene, scene

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
    pytest.mark.skipif(not shutil.which("prometheus-alertmanager"), reason="NO prometheus-alertmanager here"),
]

FACTOR = 200.0
LEAKS = {
    "ExitprintMappingPredictable",
    "ExitprintExclusiveExits",
    "ExitprintMappingPinned",
    "ExitprintDestinationLinked",
    "ExitprintMitigationRegressed",
}

_ALERTS = 'ALERTS{alertname=~"Exitprint.+", alertstate="firing", fleet="lab", relay="lab"}'
# What needs canaries is tried where there are some: test_fleet.py.
_OF_CANARIES = re.compile(r"canary|linked_")
_UNKNOWN, _SETTLED = "relay_family:exitprint_verdict:unknown", "relay_family:exitprint_severity:settled"


@pytest.fixture(scope="module")
def watched() -> Iterator[Scene]:
    """A relay whose mapping is good, watched; the tests of this module go on where the one before ended."""
    with scene(FACTOR) as one:
        one.send(2 * PEERS)
        one.watch.wait("flows without a verdict", lambda: one.watch.query(_UNKNOWN))
        one.send()
        one.judged("pinned")
        one.watch.wait("a verdict that is settled", lambda: one.watch.query(_SETTLED))
        yield one


def _panel_queries() -> list[str]:
    boards = [fleet().build(), relay().build()]
    panels = [panel for board in boards for panel in board.panels or []]
    exprs = [target.expr for panel in panels for target in getattr(panel, "targets", None) or []]
    return [_filled(expr) for expr in exprs if not _OF_CANARIES.search(expr)]


def _filled(expr: str) -> str:
    """A query with the dashboards' variables as the lab has them."""
    return expr.replace("$__rate_interval", "5s").replace("$fleet", "lab").replace("$relay", "lab")


def _rules() -> list[dict[str, str]]:
    names = [name for name in timescale.RULES if name != "exitprint-fleet.yml"]
    groups = [group for name in names for group in timescale.rules(name, FACTOR)["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def test_a_broken_mapping_pages_and_its_repair_ends_the_page(watched: Scene) -> None:
    """Switched to `persistent`, the page fires and reaches the pager; switched back, it is resolved."""
    assert not watched.watch.receiver.told("pager")
    watched.remap(BAD)
    page = watched.received(PAGE, firing=True)
    assert page.receiver == "pager"
    assert (page.labels["relay"], page.labels["verdict"], page.labels["severity"]) == (
        "lab",
        "predictable",
        "page",
    )
    assert page.labels["predictor"] == "kernel_persistent"
    regressed = watched.received("ExitprintMitigationRegressed", firing=True)
    assert (regressed.receiver, regressed.labels["verdict"]) == ("tickets", "predictable")
    watched.watch.wait("the series of alerts", lambda: watched.watch.query(_ALERTS))
    watched.remap("jhash")
    assert watched.received(PAGE, firing=False).receiver == "pager"
    assert PAGE not in watched.watch.firing()
    assert {alert.name for alert in watched.watch.receiver.told("pager")} == {PAGE}


def test_every_query_of_every_panel_returned_data(watched: Scene) -> None:
    """Each query of both dashboards gave data while the relay was good and bad."""
    queries = _panel_queries()
    assert len(queries) > 40
    assert [query for query in queries if not watched.watch.since_start(query)] == []


def test_every_recording_rule_returned_data_and_every_alert_can(watched: Scene) -> None:
    """Each recorded series is there; each metric that an alert asks for is, too."""
    wanted = {rule["record"] for rule in _rules() if "record" in rule}

    def visit(part: ql.Expr) -> None:
        if isinstance(part, ql.MatrixSelector):
            part = part.vector_selector
        if isinstance(part, ql.VectorSelector):
            wanted.add(part.name or "")

    for rule in _rules():
        watched.watch.query(rule["expr"])
        ql.walk(ql.parse(rule["expr"]), visit)
    wanted = {name for name in wanted if not _OF_CANARIES.search(name)} - {"exitprint_expected_relay"}
    assert {name for name in wanted if not watched.watch.since_start(name)} == set()


def test_a_lost_interface_makes_the_verdict_unknown_and_is_told(watched: Scene) -> None:
    """Without its WireGuard interface the relay has no verdict; a ticket says so, and no page."""
    pages = len(watched.watch.receiver.told("pager"))
    done = watched.lab.run(watched.lab.relay, ["ip", "link", "delete", watched.lab.wireguard_interface])
    assert done.returncode == 0, done.stderr
    ticket = watched.received("ExitprintNoVerdict", firing=True)
    assert ticket.receiver == "tickets"
    assert watched.verdict() == "unknown"
    assert not watched.watch.firing() & LEAKS
    assert len(watched.watch.receiver.told("pager")) == pages


def test_a_stopped_detector_is_told_and_silences_the_rest(watched: Scene) -> None:
    """The service ends: the ticket about that arrives, and nothing else fires to anybody."""
    watched.service.process.terminate()
    ticket = watched.received("ExitprintDetectorDown", firing=True)
    assert (ticket.receiver, ticket.labels["relay"]) == ("tickets", "lab")
    assert watched.verdict() == "unknown"
    assert not watched.watch.firing() & LEAKS


def test_nobodys_key_or_address_is_in_prometheus_or_in_a_message(watched: Scene) -> None:
    """Keys, tunnel addresses and destinations are in no series, alert or message, nor in a dashboard."""
    series = watched.watch.since_start('{__name__=~".+"}')
    told = json.dumps(series) + json.dumps(watched.watch.alerts()) + str(watched.watch.receiver.told())
    text = told + "".join(_panel_queries())
    assert "exitprint_leak_bits" in text
    destinations = [str(one) for addresses in watched.lab.destinations.values() for one in addresses]
    assert [secret for secret in (*watched.lab.secrets(), *destinations) if secret in text] == []


def test_lost_events_are_told_and_the_leak_that_is_left_is_paged() -> None:
    """With tables made tiny on a leaking relay the loss is told, and the leak is: loss cannot make one."""
    tables = {"pairs": 16, "peers": 1024, "destinations": 1024, "ports": 1024}
    with scene(FACTOR, mapping=BAD, tables=tables) as one:
        one.send(800)
        one.watch.wait("a loss", lambda: (one.value("exitprint_coverage_ratio") or 1) < 0.95)
        one.send(800)
        assert one.received("ExitprintEventsLost", firing=True).receiver == "tickets"
        assert one.received("ExitprintCoverageLow", firing=True).receiver == "tickets"
        assert one.received(PAGE, firing=True).receiver == "pager"
        assert one.verdict() == "predictable"
        lost = {
            alert.labels["reason"]
            for alert in one.watch.receiver.told()
            if alert.name == "ExitprintEventsLost"
        }
        assert "pairs_full" in lost


def _scrape(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:  # noqa: S310  (our own loopback address)
        return bytes(answer.read())


def test_many_scrapes_at_once_change_no_count() -> None:
    """While flows arrive, a hundred ask at once: each gets a whole page, and every flow is counted."""
    with Lab(peers=PEERS) as lab, ThreadPoolExecutor(100) as pool:
        lab.apply("jhash")
        with start_service(lab, port=0) as service:
            sent = pool.submit(lab.send, lab.workload(2000))
            pages = list(pool.map(_scrape, [service.metrics] * 300))
            assert sent.result().answered == 2000
            report = service.report(2000)
            assert sum(family["flows"] for family in report["families"].values()) == lab.truth().flows == 2000
            assert all(b"exitprint_build_info" in page and page.endswith(b"\n") for page in pages)
