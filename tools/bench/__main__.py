# SPDX-License-Identifier: Apache-2.0
"""``make bench``: all measured in one run; a table on standard error, JSON on standard output."""

from __future__ import annotations

import json
import platform
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tools.bench import cost, scale
from tools.bench.relay import bench_relay


def _rows(results: dict[str, Any], path: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in results.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{path}{name} / ")
        else:
            rows.append((path + name, f"{value:,.3g}" if isinstance(value, float) else str(value)))
    return rows


@click.command()
@click.option("--rounds", default=10, show_default=True, help="Alternating rounds of the rates.")
@click.option("--flows", default=100_000, show_default=True, help="New flows in a round.")
@click.option("--peers", "crowds", multiple=True, type=int, default=cost.CROWDS, show_default=True)
@click.option(
    "--short", is_flag=True, help="Two small crowds, one round: whether it works, not what it costs."
)
def main(rounds: int, flows: int, crowds: tuple[int, ...], short: bool) -> None:
    """Measure the costs of the service in throw-away namespaces. Needs root."""
    if short:
        rounds, flows, crowds = 1, 20_000, (cost.FEW, cost.MANY)
    console = Console(stderr=True)
    with console.status("building a relay") as status, bench_relay(max(*crowds, cost.MANY)) as relay:
        results: dict[str, Any] = {
            "kernel": platform.release(),
            "rates": {
                f"{peers:,} peers": cost.rates(relay, rounds, flows, peers, status.update) for peers in crowds
            },
            "program": cost.program_time(relay, 3, flows, crowds, status.update),
        }
        if not short:
            results |= {
                "memory": cost.memory(relay, flows, status.update),
                "refresh": cost.refresh(relay, 10_000, status.update),
                "scale": scale.rows(status.update),
            }
    table = Table("figure", "value", box=None)
    for row in _rows(results):
        table.add_row(*row)
    console.print(table)
    click.echo(json.dumps(results))


if __name__ == "__main__":
    main()
