# SPDX-License-Identifier: Apache-2.0
"""A real Alertmanager with the project's routes: what silences what, and what a message holds."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from detector.lab.monitoring import Monitoring, monitoring
from detector.lab.timescale import Target

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus-alertmanager"), reason="NO prometheus-alertmanager here"
)


@pytest.fixture(scope="module")
def watch() -> Iterator[Monitoring]:
    """Prometheus and Alertmanager without a relay behind them."""
    with monitoring([Target("127.0.0.1:1")], factor=1000) as running:
        yield running


def _raise(watch: Monitoring, relay: str, *alerts: tuple[str, str]) -> None:
    """Tell Alertmanager of alerts (name, family) of one relay, as Prometheus would."""
    body = [
        {
            "labels": {
                "alertname": name,
                "fleet": "f",
                "relay": relay,
                "family": family,
                "severity": "page" if name == "ExitprintMappingPredictable" else "ticket",
            }
        }
        for name, family in alerts
    ]
    url = f"{watch.alertmanager}/api/v2/alerts"
    request = urllib.request.Request(  # noqa: S310  (our own loopback address)
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).close()  # noqa: S310


def _states(watch: Monitoring, relay: str) -> dict[tuple[str, str], str]:
    """Per alert of a relay, as (name, family), whether it is active or suppressed; empty while undecided."""
    with urllib.request.urlopen(f"{watch.alertmanager}/api/v2/alerts") as answer:  # noqa: S310
        alerts: list[dict[str, Any]] = json.load(answer)
    mine = [alert for alert in alerts if alert["labels"]["relay"] == relay]
    if any(alert["status"]["state"] == "unprocessed" for alert in mine):
        return {}
    return {
        (alert["labels"]["alertname"], alert["labels"].get("family", "")): alert["status"]["state"]
        for alert in mine
    }


def test_a_detector_that_is_down_silences_its_relay_only(watch: Monitoring) -> None:
    """All else about that relay is suppressed; the same alert of another relay is not."""
    pinned, down = ("ExitprintMappingPinned", "ipv4"), ("ExitprintDetectorDown", "")
    _raise(watch, "a", down, pinned, ("ExitprintNoVerdict", ""))
    _raise(watch, "b", pinned)
    assert watch.wait("a's alerts", lambda: _states(watch, "a")) == {
        down: "active",
        pinned: "suppressed",
        ("ExitprintNoVerdict", ""): "suppressed",
    }
    assert watch.wait("b's alerts", lambda: _states(watch, "b")) == {pinned: "active"}


def test_predictable_silences_pinned_of_the_same_family_only(watch: Monitoring) -> None:
    """Pinned in IPv4 says nothing new beside predictable in IPv4; pinned in IPv6 does."""
    predictable = ("ExitprintMappingPredictable", "ipv4")
    four, six = ("ExitprintMappingPinned", "ipv4"), ("ExitprintMappingPinned", "ipv6")
    _raise(watch, "c", predictable, four, six)
    states = watch.wait("c's alerts", lambda: _states(watch, "c"))
    assert states == {predictable: "active", four: "suppressed", six: "active"}


def test_a_page_goes_to_the_pager_and_a_ticket_does_not(watch: Monitoring) -> None:
    """The messages arrive at the webhook of their severity."""
    _raise(watch, "d", ("ExitprintMappingPredictable", "ipv6"), ("ExitprintCoverageLow", ""))

    def told() -> dict[str, str]:
        mine = [alert for alert in watch.receiver.told() if alert.labels["relay"] == "d"]
        return {alert.name: alert.receiver for alert in mine} if len(mine) == 2 else {}

    assert watch.wait("both messages", told) == {
        "ExitprintMappingPredictable": "pager",
        "ExitprintCoverageLow": "tickets",
    }
