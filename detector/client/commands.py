# SPDX-License-Identifier: Apache-2.0
"""The commands `status`, `peers`, `explain`, `watch` and `holds`: thin, over the service's local socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from detector.base.family import Family
from detector.base.verdicts import VERDICTS
from detector.client import watching
from detector.client.advice import advice_for
from detector.client.render import explain_view, holds_view, peers_view, status_view
from detector.config.model import INSPECT_SOCKET
from detector.publish.inspect.socket import ask
from detector.publish.peers import SORTS

_LEAST_INTERVAL = 0.2
_WIDE = 140  # columns of a table that goes through a pipe

Command = TypeVar("Command", bound=Callable[..., Any])

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


@click.command(short_help="Is it leaking, why, since when, what to do.")
@_socket
@_json
def status(path: Path, as_json: bool) -> None:
    """Ask the running service for its verdict, why, since when, on what evidence, and what to do."""
    answer = ask(path, "status")
    advice = advice_for(answer)
    _print(answer | {"advice": advice.as_dict()}, status_view(answer, advice, datetime.now(UTC)), as_json)


@click.command(short_help="The riskiest peers, by pseudonym.")
@_socket
@_json
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], show_default=True)
@click.option("--verdict", type=click.Choice([one.value for one in VERDICTS]), help="Only these.")
@click.option("--family", type=click.Choice([one.value for one in Family]), help="Only this family.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def peers(path: Path, as_json: bool, **arguments: Any) -> None:
    """List the peers, the riskiest first, by pseudonym: one line for each tunnel address with flows."""
    answer = ask(path, "peers", **arguments)
    _print(answer, peers_view(answer), as_json, _WIDE)


@click.command(short_help="Everything about one peer.")
@_socket
@_json
@click.argument("pseudonym")
def explain(path: Path, as_json: bool, pseudonym: str) -> None:
    """Show the exits of the peer PSEUDONYM, its contrasts against chance, and what is found."""
    answer = ask(path, "explain", pseudonym=pseudonym)
    _print(answer, explain_view(answer, blocks=_console().encoding.startswith("utf")), as_json)


@click.command(short_help="What the service has in memory now.")
@_socket
@_json
def holds(path: Path, as_json: bool) -> None:
    """Say exactly what the service holds in memory, how much of it, and for how long."""
    answer = ask(path, "holds")
    _print(answer, holds_view(answer), as_json, _WIDE)


@click.command(short_help="The verdict as it changes.")
@_socket
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one for each change.")
@click.option("--interval", type=click.FloatRange(_LEAST_INTERVAL), default=1.0, show_default=True)
def watch(path: Path, as_json: bool, interval: float) -> None:
    """Show the status live; through a pipe, one line for each change. Ends with Ctrl-C."""
    seen = watching.follow(lambda: ask(path, "status"), interval)
    console = _console()
    with suppress(KeyboardInterrupt):
        if console.is_terminal and not as_json:
            watching.show_live(seen, console)
        else:
            line = watching.json_line if as_json else watching.text_line
            for now in watching.changes(seen):
                click.echo(line(now))


def _print(answer: dict[str, Any], view: RenderableType, as_json: bool, width: int = 0) -> None:
    if as_json:
        click.echo(json.dumps(answer))
    else:
        _console(width).print(view)


def _console(width: int = 0) -> Console:
    """Standard output; through a pipe at least so many columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, width))
