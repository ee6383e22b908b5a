# SPDX-License-Identifier: Apache-2.0
"""The command `exitprint`: thin, each subcommand is a function of the package that it belongs to."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from detector import __version__
from detector.errors import ExitprintError


class _Commands(click.Group):
    """Commands whose `ExitprintError` becomes one message and its exit status."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ExitprintError as error:
            console = Console(stderr=True, highlight=False, soft_wrap=True)
            console.print(f"[red]exitprint:[/] {error.what}", markup=True)
            if error.hint:
                console.print(f"  {error.hint}", markup=False)
            sys.exit(error.status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="exitprint")
def main() -> None:
    """Tells whether the exit address that a WireGuard peer gets says who the peer is."""


@main.command()
@click.option("--config", "path", type=click.Path(path_type=Path), required=True, help="The YAML file.")
def run(path: Path) -> None:
    """Run the service."""
    from detector.config_file import load_config  # noqa: PLC0415  (each command imports what it needs)
    from detector.service.start import run as start  # noqa: PLC0415

    start(load_config(path))
