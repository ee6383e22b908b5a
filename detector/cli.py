# SPDX-License-Identifier: Apache-2.0
"""The command `exitprint`: thin, a subcommand lives in the package that it is about."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from detector import __version__
from detector.base.encodings import tolerate
from detector.base.errors import ExitprintError
from detector.base.journal import is_journal, priority

# Name -> where the click command is. Only the one that is asked for is imported.
_ELSEWHERE = {
    "analyze": "detector.conntrack.command:analyze",
    "audit": "detector.nat.audit_command:audit_command",
    "canary": "detector.canary.command:canary",
    "check-config": "detector.config.command:check_config",
    "doctor": "detector.doctor.command:doctor",
    "lab": "detector.lab.wiring:lab",
    "explain": "detector.client.commands:explain",
    "history": "detector.client.commands:history",
    "holds": "detector.client.commands:retention",
    "peers": "detector.client.commands:peers",
    "status": "detector.client.commands:status",
    "report": "detector.client.commands:report",
    "retention": "detector.client.commands:retention",
    "watch": "detector.client.commands:watch",
    "simulate": "detector.simulate.command:simulate",
}

# Names of before, which go on working and are not listed.
_ALIASES = {"holds"}


class _Commands(click.Group):
    """Subcommands, imported when asked for; an `ExitprintError` becomes a message and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE} - _ALIASES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = _ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        # A shell starts what goes to the background with SIGINT ignored; whoever sends it there means it.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except ExitprintError as error:
            _tell(error)
            sys.exit(error.status)


def _tell(error: ExitprintError) -> None:
    """An error as a person reads it, on standard error; in the journal each line is one."""
    lines = [*error.what.split("\n"), *([f"  {error.hint}"] if error.hint else [])]
    if is_journal(sys.stderr):
        for line in lines:
            click.echo(priority("error") + line, err=True)
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("exitprint:", style="red", end=" ")
    console.print("\n".join(lines), markup=False)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="exitprint")
def main() -> None:
    """Tells whether the exit address that a WireGuard peer gets says who the peer is."""
    tolerate(sys.stdout, sys.stderr)


@main.command()
@click.option("--config", "path", type=click.Path(path_type=Path), required=True, help="The YAML file.")
def run(path: Path) -> None:
    """Run the service."""
    from detector.config.file import load_config  # noqa: PLC0415
    from detector.daemon.start import run as start  # noqa: PLC0415

    start(load_config(path), path.absolute())
