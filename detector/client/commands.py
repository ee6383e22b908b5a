# SPDX-License-Identifier: Apache-2.0
"""The commands of the person on call: thin, over the service's local socket."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from detector.base.errors import HostError, UsageError
from detector.base.family import Family
from detector.base.verdicts import VERDICTS
from detector.client import watching
from detector.client.advice import advice_for
from detector.client.asking import RunningService
from detector.client.checking import CHECK_HELP, check_status
from detector.client.public import public_report, public_text
from detector.client.render import explain_view, history_view, peers_view, retention_view, status_view
from detector.config.model import INSPECT_SOCKET
from detector.publish.peers import SORTS

_LEAST_INTERVAL = 0.2
_WIDE = 180  # columns of a table that goes through a pipe

Command = TypeVar("Command", bound=Callable[..., Any])


def _understood(command: Command) -> Command:
    """Say what is the matter where an answer has another shape than it should: no traceback is for people."""

    @functools.wraps(command)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise HostError(
                f"the service's answer is none that this command understands ({type(error).__name__})",
                "is it the same release? see: exitprint --version",
            ) from None

    return guarded  # type: ignore[return-value]


_socket = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path, readable=False),  # whether it may be used is the service's to say
    envvar="EXITPRINT_SOCKET",
    default=INSPECT_SOCKET,
    show_default=True,
    help="The service's inspect_socket.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command(short_help="Is it leaking, why, since when, what to do.", epilog=CHECK_HELP)
@_socket
@_json
@click.option("--check", is_flag=True, help="Say it by the exit status too, for scripts.")
@_understood
def status(path: Path, as_json: bool, check: bool) -> None:
    """Ask the running service for its verdict, why, since when, on what evidence, and what to do."""
    answer = RunningService(path).status()
    advice, now = advice_for(answer), datetime.now(UTC)
    _print({**answer, "advice": advice.as_dict()}, status_view(answer, advice, now), as_json)
    if check:
        sys.exit(check_status(answer, now))


@click.command(short_help="The riskiest peers, by pseudonym.")
@_socket
@_json
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], show_default=True)
@click.option("--verdict", type=click.Choice([one.value for one in VERDICTS]), help="Only these.")
@click.option("--family", type=click.Choice([one.value for one in Family]), help="Only this family.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@_understood
def peers(path: Path, as_json: bool, **arguments: object) -> None:
    """List the peers, the riskiest first, by pseudonym: one line for each tunnel address with flows."""
    answer = RunningService(path).peers(arguments)
    _print(answer, peers_view(answer, _console(_WIDE).width), as_json, _WIDE)


@click.command(short_help="Everything about one peer.")
@_socket
@_json
@click.argument("pseudonym")
@_understood
def explain(path: Path, as_json: bool, pseudonym: str) -> None:
    """Show the exits of the peer PSEUDONYM, its contrasts against chance, and what is found.

    The beginning of a pseudonym is enough where no other begins so.
    """
    answer = RunningService(path).explain(pseudonym)
    _print(answer, explain_view(answer, blocks=_console().encoding.startswith("utf")), as_json)


@click.command(short_help="What changed, and when.")
@_socket
@_json
@_understood
def history(path: Path, as_json: bool) -> None:
    """List changes of verdict, rules, coverage and state since the service started, the newest last."""
    answer = RunningService(path).history()
    _print(answer, history_view(answer, datetime.now(UTC)), as_json)


@click.command(short_help="A report that is safe to publish.")
@_socket
@_json
@click.option("--public", is_flag=True, help="Leave out and round what could say something of a peer.")
@_understood
def report(path: Path, as_json: bool, public: bool) -> None:
    """Write what is the matter with the relay, for a ticket or a list: numbers in bins, and no address.

    What is for your own eyes alone is `exitprint status`.
    """
    if not public:
        raise UsageError("report without --public is not there", "exitprint status shows everything")
    service = RunningService(path)
    made = public_report(service.status(), service.history())
    click.echo(json.dumps(made) if as_json else public_text(made), nl=as_json)


@click.command(short_help="What the service has in memory now.")
@_socket
@_json
@_understood
def retention(path: Path, as_json: bool) -> None:
    """Say exactly what the service holds in memory, how much of it, and for how long."""
    answer = RunningService(path).retention()
    _print(answer, retention_view(answer), as_json)


@click.command(short_help="The verdict as it changes.")
@_socket
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one for each change.")
@click.option("--interval", type=click.FloatRange(_LEAST_INTERVAL), default=1.0, show_default=True)
@_understood
def watch(path: Path, as_json: bool, interval: float) -> None:
    """Show the status live; through a pipe, one line for each change. Ends with Ctrl-C."""
    service = RunningService(path)
    seen = watching.follow(service.status, interval)
    console = _console()
    with suppress(KeyboardInterrupt):
        if console.is_terminal and not as_json:
            watching.show_live(seen, console, lambda: service.history()["events"])
        else:
            line = watching.json_line if as_json else watching.text_line
            for now in watching.changes(seen):
                click.echo(line(now))


def _print(answer: Mapping[str, object], view: RenderableType, as_json: bool, width: int = 0) -> None:
    if as_json:
        click.echo(json.dumps(answer))
    else:
        _console(width).print(view)


def _console(width: int = 0) -> Console:
    """Standard output; through a pipe at least so many columns, unless COLUMNS says how many."""
    console = Console(highlight=False, markup=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, markup=False, width=max(console.width, width))
