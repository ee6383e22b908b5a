# SPDX-License-Identifier: Apache-2.0
"""`make lab-fleet`: relays that share a secret are found, and their repair is seen, by halves, and proven.

Four relays of `exitprint lab` with pools of different sizes and the same canaries, watched by one engine with
the project's own rules and routes: Prometheus, or VictoriaMetrics with vmagent and vmalert. The secret is one
that no predictor can know, so that each relay alone reads `pinned`, as one that is fixed does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console

from detector.base.errors import ExitprintError
from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.lab.layout import canaries_key
from detector.lab.mappings import shared_secret
from detector.lab.monitoring import Alert, Engine, Monitoring, monitoring
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from detector.lab.timescale import Target

FACTOR = 60.0
OWN = "jhash"
ALERT = "ExitprintFleetLinked"
SIZES = (24, 31, 59, 66)
CANARIES, PEERS = 8, 14
FLOWS = 600
_PATIENCE = 120.0
_LINKED = "relay_family:exitprint_canary_linked:bool"
_FIRST = {Family.IPV4: "203.0.113.10", Family.IPV6: "2001:db8:203:113::10"}


def pools(size: int) -> tuple[AddressRange, ...]:
    """A pool of so many exits in each family."""
    firsts = map(ip_address, _FIRST.values())
    return tuple(AddressRange(first, first + (size - 1)) for first in firsts)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the show is played with.

    Attributes:
        labs, services, targets: by relay, r1 to r4.
    """

    labs: Sequence[Lab]
    services: Sequence[LabService]
    targets: Sequence[Target]
    watch: Monitoring
    seeds: Iterator[int]

    def send(self) -> None:
        """New flows of all peers of all relays."""
        seed = next(self.seeds)
        for lab in self.labs:
            lab.forget()
            lab.send(lab.workload(FLOWS, seed=seed))

    def share(self, relays: Sequence[int]) -> None:
        """These relays, from 0 on, follow the shared secret, the others one of their own; then send."""
        before = self._epochs()
        for number, lab in enumerate(self.labs):
            lab.apply(shared_secret() if number in relays else OWN)
        # What is sent before a relay has seen its new rules counts for the old ones.
        self.watch.wait(
            "the rules",
            lambda: all(new > old for new, old in zip(self._epochs(), before, strict=True)),
            patience=_PATIENCE,
        )
        self.send()

    def _epochs(self) -> list[int]:
        return [int(service.status()["epoch"]["number"]) for service in self.services]

    def linked(self, relays: Sequence[int], watch: Monitoring | None = None) -> None:
        """Wait until exactly these relays are called linked, and all others not.

        Args:
            relays: from 0 on.
            watch: who is to say it, where it is not the fleet's own.

        Raises:
            HostError: that is not said.
        """
        watch = watch or self.watch
        wanted = {f"r{number + 1}": {float(number in relays)} for number in range(len(self.labs))}
        watch.wait(f"linked: {wanted}", lambda: said(watch) == wanted, patience=_PATIENCE)

    def received(self, *, firing: bool, watch: Monitoring | None = None) -> Alert:
        """Wait for a message about linked relays.

        Raises:
            HostError: it does not come.
        """
        of = watch or self.watch

        def found() -> Alert | None:
            last = of.receiver.last(ALERT)
            return last if last and last.firing is firing else None

        what = f"a message that {ALERT} is {'firing' if firing else 'resolved'}"
        return of.wait(what, found, patience=_PATIENCE)


def said(watch: Monitoring) -> dict[str, set[float]]:
    """By relay, what is said of its families: 1 linked, 0 not; none: too little to tell."""
    found: dict[str, set[float]] = {}
    for sample in watch.query(_LINKED):
        found.setdefault(sample["metric"]["relay"], set()).add(float(sample["value"][1]))
    return found


@contextmanager
def fleet(factor: float = FACTOR, engine: Engine = "prometheus", **keys: Any) -> Iterator[Fleet]:
    """Four relays with the service on them, watched; everything is gone when the ``with`` block ends.

    Args:
        factor: by which all times of rules and routes are shorter.
        engine: what asks the relays and evaluates the rules.
        keys: of the service's configuration.

    Raises:
        HostError: something does not start.
    """
    with ExitStack() as stack:
        labs, services = [], []
        for size in SIZES:
            lab = stack.enter_context(Lab(peers=PEERS, canaries=CANARIES, pools=pools(size)))
            lab.apply(OWN)
            labs.append(lab)
            exits = [str(pool) for pool in pools(size)]
            declared = canaries_key(CANARIES)
            service = start_service(lab, port=0, exits=exits, canaries=declared, **keys)
            services.append(stack.enter_context(service))
        targets = [
            Target(urlsplit(service.metrics).netloc, f"r{number}")
            for number, service in enumerate(services, 1)
        ]
        watch = stack.enter_context(monitoring(targets, factor, engine))
        yield Fleet(labs, services, targets, watch, count(1))


def show(scene: Fleet, console: Console) -> None:
    """Break the fleet, repair half, repair all, and say what is seen.

    Raises:
        HostError: something that must be seen is not.
    """
    console.print(f"Rules {scene.watch.rules}   Alertmanager {scene.watch.alertmanager}")
    console.print(
        f"Four relays with pools of {', '.join(map(str, SIZES))} exits, {CANARIES} canaries on each."
    )
    everyone = range(len(SIZES))
    console.print("1. Every relay has a secret of its own.")
    scene.share([])
    scene.linked([])
    console.print("   no relay is linkable with another")
    console.print("2. All follow one secret, which nothing on a relay tells.")
    scene.share(everyone)
    scene.linked(everyone)
    _tell(console, scene.received(firing=True))
    console.print("3. Half of them are repaired.")
    scene.share(everyone[2:])
    scene.linked(everyone[2:])
    console.print("   linkable: r3 and r4; not: r1 and r2")
    console.print("4. All of them are.")
    scene.share([])
    scene.linked([])
    _tell(console, scene.received(firing=False))


def _tell(console: Console, alert: Alert) -> None:
    state = "[red]firing[/]" if alert.firing else "[green]resolved[/]"
    console.print(f"   {alert.receiver} received, {state}: {alert.annotations['summary']}")


@click.command()
@click.option(
    "--engine", type=click.Choice(["prometheus", "victoria-metrics"]), default="prometheus", show_default=True
)
@click.option("--keep", is_flag=True, help="Leave everything up until Ctrl-C.")
def main(engine: Engine, keep: bool) -> None:
    """Show linkable relays found and repaired, on a fleet on this machine. Needs root."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        console.print("building four relays")
        with fleet(engine=engine) as scene:
            show(scene, console)
            if keep:
                console.print("Everything stays up until Ctrl-C.")
                with suppress(KeyboardInterrupt):
                    scene.services[0].wait()
    except ExitprintError as error:
        console.print(f"lab-fleet: {error}", style="red", markup=False)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
