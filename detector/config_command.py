# SPDX-License-Identifier: Apache-2.0
"""`exitprint check-config FILE`: whether the service would take a configuration."""

from __future__ import annotations

from pathlib import Path

import click

from detector.config_file import load_config


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Validate a configuration FILE."""
    load_config(file)
    click.echo(f"{file}: valid")
