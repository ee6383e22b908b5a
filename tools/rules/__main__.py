# SPDX-License-Identifier: Apache-2.0
"""Writes the files of rules: `python -m tools.rules`, for the project or with an operator's own names."""

from __future__ import annotations

from pathlib import Path

import click

from tools.rules import Parameters, files

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
_USUAL = Parameters()


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=DEPLOY, help="The folder.")
@click.option("--fleet-label", default=_USUAL.fleet, show_default=True, help="Says which fleet.")
@click.option("--relay-label", default=_USUAL.relay, show_default=True, help="Says which relay.")
@click.option("--job", default=_USUAL.job, show_default=True, help="Scrapes exitprint.")
@click.option("--coverage", default=_USUAL.coverage, show_default=True, help="Least share of flows counted.")
@click.option("--many", default=_USUAL.many, show_default=True, help="Leaking relays told of in one message.")
@click.option("--runbooks", default=_USUAL.runbooks, show_default=True, help="Address of the runbooks.")
def main(
    out: Path, fleet_label: str, relay_label: str, job: str, coverage: float, many: int, runbooks: str
) -> None:
    """Write the recording rules and alerts."""
    try:
        parameters = Parameters(fleet_label, relay_label, job, coverage, many, runbooks=runbooks.rstrip("/"))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files(parameters).items():
        (out / name).write_text(text)


if __name__ == "__main__":
    main()
