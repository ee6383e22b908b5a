# SPDX-License-Identifier: Apache-2.0
"""`exitprint check-config FILE`: whether the service would take a configuration.

As a program of its own it prints the configuration for `detector.config.reload`, which cannot validate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import UsageError
from detector.config.file import load_config
from detector.config.web import load_web


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what the file comes to, with every default.")
@click.option("--quiet", is_flag=True, help="Say nothing of a file that is valid.")
def check_config(file: Path, as_json: bool, quiet: bool) -> None:
    """Validate a configuration FILE; durations in the JSON object are seconds."""
    config = load_config(file)
    if config.web_config_file is not None:
        load_web(Path(config.web_config_file), guarded=config.to_be_guarded)
    if not quiet:
        shown = {"schema_version": SCHEMA_VERSION, **json.loads(config.to_json())}
        click.echo(json.dumps(shown) if as_json else f"{file}: valid")


def main(path: str) -> int:
    """Print the configuration as JSON, or what is wrong with it on standard error; the exit status."""
    try:
        config = load_config(Path(path))
    except UsageError as error:
        sys.stderr.write(f"{error.what}\n")
        return error.status
    sys.stdout.write(config.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
