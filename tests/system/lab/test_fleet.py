# SPDX-License-Identifier: Apache-2.0
"""Linkable relays are found and their repair is proven, on four real relays, by two engines."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator

import pytest

from dashboards.fleet import fleet as board
from detector.lab.fleet import Fleet, fleet
from detector.lab.layout import CANARIES, canary_addresses
from detector.lab.monitoring import Monitoring, monitoring

FACTOR = 200.0
_MISSING = [name for name in ("prometheus-alertmanager", "vmalert") if not shutil.which(name)]

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
    pytest.mark.skipif(bool(_MISSING), reason=f"NO {', '.join(_MISSING)} here"),
]


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Fleet, Monitoring]]:
    """Four relays, watched by Prometheus and by VictoriaMetrics; each test goes on where the last ended."""
    with fleet(FACTOR) as one, monitoring(one.targets, FACTOR, "victoria-metrics") as other:
        yield one, other


@pytest.mark.parametrize(
    ("relays", "firing"), [((), None), ((0, 1, 2, 3), True), ((2, 3), True), ((), False)]
)
def test_exactly_those_that_share_a_secret_are_called_linked(
    scene: tuple[Fleet, Monitoring], relays: tuple[int, ...], firing: bool | None
) -> None:
    """None, all, half, none again: both engines name the right relays, and the page follows."""
    one, other = scene
    one.share(relays)
    for watch in (one.watch, other):
        one.linked(relays, watch)
        if firing is None:
            assert watch.receiver.last("ExitprintFleetLinked") is None
        else:
            page = one.received(firing=firing, watch=watch)
            assert (page.receiver, page.labels["fleet"], page.labels["severity"]) == ("pager", "lab", "page")


def test_every_query_about_canaries_returned_data(scene: tuple[Fleet, Monitoring]) -> None:
    """Each query of the dashboard of the fleet gave data on Prometheus while relays were linked and not."""
    panels = board().build().panels or []
    exprs = [target.expr for panel in panels for target in getattr(panel, "targets", None) or []]
    filled = [expr.replace("$fleet", "lab").replace("$relay", ".+") for expr in exprs]
    asked = [expr for expr in filled if re.search(r"canary|linked_|expected|fixed|version", expr)]
    assert len(asked) > 8
    assert [expr for expr in asked if not scene[0].watch.since_start(expr)] == []


def test_a_canary_is_told_by_its_name_alone(scene: tuple[Fleet, Monitoring]) -> None:
    """No key and no address of a canary or peer is in a series, an alert or a message, nor in a log."""
    one, other = scene
    text = "".join(
        json.dumps(watch.since_start('{__name__=~".+"}'))
        + json.dumps(watch.alerts())
        + str(watch.receiver.told())
        for watch in (one.watch, other)
    )
    text += "".join(service.log.read_text() for service in one.services)
    assert '"canary": "c1"' in text
    assert "canaries are declared" in text
    addresses = [str(address) for peer in canary_addresses(8) for address in peer.values()]
    secrets = [secret for lab in one.labs for secret in lab.secrets()]
    assert [secret for secret in (*secrets, *addresses, *map(str, CANARIES.values())) if secret in text] == []
