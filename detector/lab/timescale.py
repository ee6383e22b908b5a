# SPDX-License-Identifier: Apache-2.0
"""The project's own rules and routes, with every time in them made shorter by one factor, for the lab.

Nothing else is changed: what the rules look at, what they say and where it goes is what a deployment has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detector.base.errors import HostError

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = ("exitprint-recording.yml", "exitprint-fleet.yml", "exitprint-alerts.yml")

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = r"(\d+)(ms|s|m|h|d)"
# In a query: a range or an offset. Nothing else in a query looks like these.
_IN_QUERY = re.compile(rf"(\[|offset ){_DURATION}")
_RULE_TIMES = ("for", "keep_firing_for")
_ROUTE_TIMES = ("group_wait", "group_interval", "repeat_interval")


def shorter(duration: str, factor: float) -> str:
    """A duration of Prometheus (`5m`) divided by a factor, in milliseconds, at least one."""
    match = re.fullmatch(_DURATION, duration)
    if match is None:
        raise ValueError(f"not a duration: {duration}")
    return f"{max(round(int(match[1]) * _UNITS[match[2]] / factor), 1)}ms"


def rules(name: str, factor: float) -> dict[str, Any]:
    """A file of rules, with shorter times.

    Raises:
        HostError: the project's folder deploy/ is not here.
    """
    found: dict[str, Any] = _deployed("prometheus", name)
    for group in found["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _IN_QUERY.sub(lambda one: one[1] + shorter(one[2] + one[3], factor), rule["expr"])
            for key in _RULE_TIMES:
                if key in rule:
                    rule[key] = shorter(rule[key], factor)
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """What is scraped.

    Attributes:
        address: host and port of a /metrics.
        relay, fleet: what it is called; an empty relay: a page of many relays, which names them itself.
    """

    address: str
    relay: str = "lab"
    fleet: str = "lab"

    @property
    def static(self) -> dict[str, Any]:
        """As a scrape configuration has it."""
        labels = {"fleet": self.fleet, "relay": self.relay} if self.relay else {}
        return {"targets": [self.address], "labels": labels}


def prometheus(targets: Sequence[Target], alertmanager: str, interval: str) -> dict[str, Any]:
    """The example of a Prometheus, with these relays.

    Args:
        targets: the relays.
        alertmanager: host and port.
        interval: of scraping and of evaluating the rules.
    """
    found = _deployed("prometheus", "prometheus.yml")
    found["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    found["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    job = found["scrape_configs"][0]
    job["static_configs"] = [target.static for target in targets]
    job["honor_labels"] = not all(target.relay for target in targets)
    return found


def routes(factor: float, receiver: str) -> dict[str, Any]:
    """The example of an Alertmanager, with shorter times, and webhooks at the address of `receiver`."""
    found = _deployed("alertmanager", "alertmanager.yml")
    _shorten(found["route"], factor)
    found["templates"] = [str(DEPLOY / "alertmanager" / name) for name in found["templates"]]
    for one in found["receivers"]:
        for hook in one["webhook_configs"]:
            hook["url"] = f"{receiver}/{one['name']}"
    return found


def _shorten(route: dict[str, Any], factor: float) -> None:
    for key in _ROUTE_TIMES:
        if key in route:
            route[key] = shorter(route[key], factor)
    for child in route.get("routes", ()):
        _shorten(child, factor)


def _deployed(folder: str, name: str) -> dict[str, Any]:
    path = DEPLOY / folder / name
    try:
        found: dict[str, Any] = yaml.safe_load(path.read_text())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"cannot read {path}: {reason}", "run it in a clone of the project") from error
    return found
