# SPDX-License-Identifier: Apache-2.0
"""`exitprint lab`: a relay on this machine, the service on it, and the verdict.

What starts the service and what shows a report to people are handed in, so this module knows neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from detector.base.errors import HostError, UsageError
from detector.base.ranges import AddressRange, parse_pool
from detector.config.model import Hook
from detector.lab.layout import DEFAULT_POOLS, MAX_PEERS, Routed
from detector.lab.mappings import MAPPINGS, ROUTED, find
from detector.lab.relay import Lab
from detector.lab.traffic import Result

DEFAULT_MAPPING = "persistent"
DEFAULT_PEERS = 40
DEFAULT_FLOWS = 5120
HOOKS = get_args(Hook)
# Drawing costs more than a flow does.
_STRIDE = 100
# While the relay is kept: seconds between rounds, the share of the flows in one, seconds for an answer.
_PAUSE, _ROUNDS, _PATIENCE = 2.0, 8, 2.0

Report = Mapping[str, Any]


class Service(Protocol):
    """The service as it runs on a lab's relay.

    Attributes:
        metrics: the address of its /metrics.
        socket: where `exitprint status` asks.
    """

    metrics: str
    socket: Path

    def report(self, flows: int) -> Report:
        """The report that covers at least so many flows, as `exitprint status --json` prints it."""

    def wait(self, seconds: float | None = None) -> bool:
        """Return when the service has ended, or after so many seconds; whether it has ended."""


StartService = Callable[[Lab, Hook], AbstractContextManager[Service]]
"""Starts the service on a lab's relay with a hook; inside the ``with`` block it counts."""

ShowReport = Callable[[Report], None]
"""Shows a report to people, on standard output."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked of the lab.

    Attributes:
        ruleset: nftables text to load in place of the mapping.
    """

    mapping: str = DEFAULT_MAPPING
    ruleset: Path | None = None
    peers: int = DEFAULT_PEERS
    flows: int = DEFAULT_FLOWS
    pools: tuple[AddressRange, ...] = DEFAULT_POOLS
    hook: Hook = "auto"

    @property
    def rules(self) -> str:
        """What the relay's rules are called."""
        return str(self.ruleset) if self.ruleset else self.mapping

    @property
    def routed(self) -> Routed | None:
        """Which peers have a global address of their own."""
        return None if self.ruleset else find(self.mapping).routed


class Steps:
    """Progress for people on standard error; says nothing where that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[parts]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, parts="")
        self._next = 0
        self._total: int | None = None

    @contextmanager
    def shown(self) -> Iterator[Steps]:
        """Show the steps meanwhile."""
        # Before rich 14 one that is disabled still ends with an empty line.
        with nullcontext() if self._progress.disable else self._progress:
            yield self

    def say(self, what: str, total: int | None = None) -> None:
        """Begin a step; `total` is how many parts it has, None for one that cannot be counted."""
        self._next = 0
        self._progress.reset(self._task, description=what, total=total, parts="")
        self._total = total

    def count(self, done: int) -> None:
        """So many parts of the step are done."""
        if done >= self._next:
            self._next = done + _STRIDE
            self._progress.update(self._task, completed=done, parts=f"{done} of {self._total}")

    def hide(self) -> None:
        """Take the progress off the terminal, to print something else."""
        if not self._progress.disable:
            self._progress.stop()


@contextmanager
def running(options: Options, start: StartService, steps: Steps) -> Iterator[tuple[Lab, Service]]:
    """A lab with its rules loaded and the service on it.

    Raises:
        UsageError: the rules are not accepted.
        HostError: this host cannot build the lab.
    """
    with Lab(peers=options.peers, pools=options.pools, routed=options.routed, progress=steps.say) as lab:
        steps.say(f"loading the rules: {options.rules}")
        if options.ruleset:
            lab.apply_file(options.ruleset)
        else:
            lab.apply(options.mapping)
        steps.say("starting the service")
        with start(lab, options.hook) as service:
            yield lab, service


def measure(options: Options, lab: Lab, service: Service, steps: Steps) -> tuple[Report, Result]:
    """Send the traffic; what the service reports of it, and what became of it."""
    work = lab.workload(options.flows)
    steps.say(f"sending flows of {options.peers} peers", len(work))
    result = lab.send(work, progress=steps.count)
    steps.say("waiting for the report")
    return service.report(result.tried), result


def lab_command(start: StartService, show: ShowReport) -> click.Command:
    """The click command, for a service that `start` starts and reports that `show` shows."""

    @click.command("lab", short_help="Build a relay on this machine and judge it.")
    @click.option(
        "--mapping", type=click.Choice([*MAPPINGS, *ROUTED]), help=f"NAT rules to try [{DEFAULT_MAPPING}]."
    )
    @click.option(
        "--ruleset", type=click.Path(path_type=Path), help="nftables rules to try; the exit is eth0."
    )
    @click.option("--peers", type=click.IntRange(1, MAX_PEERS), default=DEFAULT_PEERS, show_default=True)
    @click.option("--flows", type=click.IntRange(1), default=DEFAULT_FLOWS, show_default=True)
    @click.option("--pool", "pools", multiple=True, help="Exits of a named mapping, once per family.")
    @click.option("--hook", type=click.Choice(HOOKS), default="auto", show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
    @click.option("--keep", is_flag=True, help="Leave the relay and its /metrics up until Ctrl-C.")
    def lab(
        mapping: str | None,
        ruleset: Path | None,
        peers: int,
        flows: int,
        pools: tuple[str, ...],
        hook: Hook,
        as_json: bool,
        keep: bool,
    ) -> None:
        """Build a relay on this machine, run the service on it and print the verdict.

        Peers, relay and internet are network namespaces; WireGuard, source NAT and traffic are real. All of
        it is removed at the end, also on Ctrl-C. Needs root.
        """
        if mapping and ruleset:
            raise UsageError("--mapping and --ruleset exclude each other", "give one of them")
        options = Options(mapping or DEFAULT_MAPPING, ruleset, peers, flows, read_pools(pools), hook)
        run(options, start, _print_json if as_json else show, keep=keep, says_next=not as_json)

    return lab


def run(
    options: Options, start: StartService, show: ShowReport, *, keep: bool, says_next: bool = True
) -> None:
    """Build, measure, show; with `keep` stay up until the service ends or a person interrupts."""
    console = Console(stderr=True)
    steps = Steps(console)
    with steps.shown(), running(options, start, steps) as (lab, service):
        report, result = measure(options, lab, service, steps)
        steps.hide()
        if not result.clean:
            console.print(_loss(result), style="yellow")
        show(report)
        if keep:
            with suppress(KeyboardInterrupt):
                console.print(_whereabouts(lab, service), highlight=False, soft_wrap=True)
                keep_on(options, lab, service)
        elif says_next:
            console.print(_NEXT[options.ruleset is None and options.mapping == DEFAULT_MAPPING], style="dim")


_NEXT = {
    True: "Next: make lab ARGS=--keep leaves this relay up with its traffic, to find the rule and mend it.",
    False: "Next: --keep leaves the relay up with its traffic; --mapping and --ruleset try other rules.",
}


def keep_on(options: Options, lab: Lab, service: Service) -> None:
    """Go on sending other traffic until the service ends, so that a fix can be seen."""
    seed = lab.seed
    while not service.wait(_PAUSE):
        seed += 1
        with suppress(HostError):  # rules that are being changed lose flows; the next round comes
            lab.send(lab.workload(options.flows // _ROUNDS or 1, seed=seed), patience=_PATIENCE)


def read_pools(texts: tuple[str, ...]) -> tuple[AddressRange, ...]:
    """The pools that a person gave, or the default ones.

    Raises:
        UsageError: one is not a pool, or there are two of a family.
    """
    pools = tuple(parse_pool(text) for text in texts)
    if len({pool.family for pool in pools}) < len(pools):
        raise UsageError("--pool was given twice for one family", "give one range per family")
    return pools or DEFAULT_POOLS


def _print_json(report: Report) -> None:
    click.echo(json.dumps(report))


def _loss(result: Result) -> str:
    return (
        f"not every packet arrived: of {result.tried} flows {result.unanswered} were not answered, "
        f"{result.wrong} were answered wrongly, {result.retransmitted} TCP segments were sent again"
    )


def _whereabouts(lab: Lab, service: Service) -> str:
    return (
        f"The relay stays up until Ctrl-C, and its peers go on sending.\n"
        f"  metrics    {service.metrics}\n"
        f"  namespace  {lab.relay.name}   (its rules: ip netns exec {lab.relay.name} nft list ruleset)\n"
        f"  WireGuard  {lab.wireguard_interface}, {lab.implementation}\n"
        f"  ask it     export EXITPRINT_SOCKET={service.socket}\n"
        f"             exitprint status   (also history, peers, explain, watch, retention)\n"
        f"  mend it    ip netns exec {lab.relay.name} exitprint audit, then load what it says in the same "
        "namespace\n"
        f"             and see a new epoch with a good verdict: exitprint watch"
    )
