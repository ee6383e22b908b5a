# SPDX-License-Identifier: Apache-2.0
"""`make lab-stack`: a relay is broken, an alert fires and is received; the relay is repaired, the alert ends.

All of it is real: the relay of `exitprint lab`, Debian's Prometheus and Alertmanager, the project's own rules
and routes. Only their times are shorter, so that a minute of a deployment takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console

from detector.base.errors import ExitprintError
from detector.lab.monitoring import Alert, Monitoring, monitoring
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from detector.lab.timescale import Target

FACTOR = 60.0
GOOD, BAD = "jhash", "persistent"
PAGE = "ExitprintMappingPredictable"
PEERS = 24
FLOWS = 1500


@dataclass(frozen=True, slots=True)
class Scene:
    """What the show is played with."""

    lab: Lab
    service: LabService
    watch: Monitoring
    seeds: Iterator[int]

    def send(self, flows: int = FLOWS) -> None:
        """New flows of all peers, other ones than before."""
        self.lab.forget()
        self.lab.send(self.lab.workload(flows, seed=next(self.seeds)))

    def remap(self, mapping: str) -> None:
        """Change the rules, and wait until the service says so; then send."""
        before = self.value("exitprint_rules_epoch")
        self.lab.apply(mapping)
        self.watch.wait("a new epoch", lambda: self.value("exitprint_rules_epoch") != before)
        self.send()

    def value(self, metric: str) -> float | None:
        """What Prometheus has of a metric without labels, None before it has anything."""
        found = self.watch.query(metric)
        return float(found[0]["value"][1]) if found else None

    def verdict(self) -> str | None:
        """The relay's verdict as Prometheus has it."""
        found = self.watch.query("relay:exitprint_verdict:worst")
        return str(found[0]["metric"]["verdict"]) if found else None

    def judged(self, verdict: str) -> None:
        """Return when the verdict is this one."""
        self.watch.wait(f"the verdict {verdict}", lambda: self.verdict() == verdict, patience=120)

    def received(self, alert: str, *, firing: bool) -> Alert:
        """Wait for a message about an alert, and return it."""

        def found() -> Alert | None:
            last = self.watch.receiver.last(alert)
            return last if last and last.firing is firing else None

        what = f"a message that {alert} is {'firing' if firing else 'resolved'}"
        return self.watch.wait(what, found, patience=120)


@contextmanager
def scene(factor: float = FACTOR, *, mapping: str = GOOD, **keys: Any) -> Iterator[Scene]:
    """A relay with the service on it, watched; everything is gone when the ``with`` block ends.

    Args:
        factor: by which all times of rules and routes are shorter.
        mapping: the relay's NAT rules.
        keys: of the service's configuration.

    Raises:
        HostError: something does not start.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(peers=PEERS))
        lab.apply(mapping)
        service = stack.enter_context(start_service(lab, port=0, **keys))
        watch = stack.enter_context(monitoring([Target(urlsplit(service.metrics).netloc)], factor))
        yield Scene(lab, service, watch, count(1))


def show(scene: Scene, console: Console) -> None:
    """Break the mapping and repair it, and say what is seen.

    Raises:
        HostError: an alert that must fire does not, or one that must end does not.
    """
    console.print(f"Prometheus {scene.watch.prometheus}   Alertmanager {scene.watch.alertmanager}")
    console.print(f"A minute of a deployment takes {60 / scene.watch.factor:g} s here.")
    console.print(f"1. The rules say [bold]{GOOD}[/]: sticky, with a secret of this relay.")
    scene.send()
    scene.judged("pinned")
    console.print(f"   verdict {scene.verdict()}; pages: {len(scene.watch.receiver.told('pager'))}")
    console.print(f"2. The rules are changed to [bold]{BAD}[/].")
    scene.remap(BAD)
    scene.judged("predictable")
    console.print(f"   verdict {scene.verdict()}; waiting for the page")
    _tell(console, scene.received(PAGE, firing=True))
    console.print(f"3. The rules are changed back to [bold]{GOOD}[/].")
    scene.remap(GOOD)
    scene.judged("pinned")
    console.print(f"   verdict {scene.verdict()}; waiting for the page to be resolved")
    _tell(console, scene.received(PAGE, firing=False))


def _tell(console: Console, alert: Alert) -> None:
    state = "[red]firing[/]" if alert.firing else "[green]resolved[/]"
    console.print(f"   {alert.receiver} received, {state}: {alert.annotations['summary']}")
    if alert.firing:
        console.print(f"   {alert.annotations['description']}")


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything up until Ctrl-C.")
def main(keep: bool) -> None:
    """Show an alert fire, arrive and end, on a relay of this machine. Needs root."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        console.print("building a relay")
        with scene() as one:
            show(one, console)
            if keep:
                console.print(f"Everything stays up until Ctrl-C; the relay's metrics: {one.service.metrics}")
                with suppress(KeyboardInterrupt):
                    one.service.wait()
    except ExitprintError as error:
        console.print(f"lab-stack: {error}", style="red", markup=False)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
