# SPDX-License-Identifier: Apache-2.0
"""``python -m tools.bench.analyze``: what `exitprint analyze` takes for a line, beside awk on the same file.

User time of the whole command, imports and judgement included, in turns with an awk that counts fields: an
absolute time says little on a machine that does other things. No root needed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from time import gmtime, strftime

import click

FORMS = ("events", "listing", "syslog")
_START = 1_780_000_000.0
_SITES = 20_000
_BATCH = 10_000


def _flows(lines: int, peers: int, exits: int) -> Iterator[tuple[float, str, str, str, int, int]]:
    """Time, tunnel address, site, exit, source port and service of each flow; the sites are Zipf's."""
    draw = random.Random(1)  # noqa: S311 - repeatable on purpose
    now = _START
    sites = [str(IPv4Address(draw.randrange(0x0B000000, 0x7E000000))) for _ in range(_SITES)]
    for _ in range(lines):
        now += draw.expovariate(lines / 86_400)
        number = draw.randrange(peers)
        peer = f"10.64.{number >> 8}.{number & 255}"
        site = sites[min(int(draw.paretovariate(0.8)) - 1, _SITES - 1)]
        service = draw.choice((443, 443, 443, 53, 80))
        yield (
            now,
            peer,
            site,
            f"203.0.113.{68 + draw.randrange(exits)}",
            draw.randrange(1024, 65_536),
            service,
        )


def _line(form: str, flow: tuple[float, str, str, str, int, int]) -> str:
    now, peer, site, exit_, port, service = flow
    there = f"src={peer} dst={site} sport={port} dport={service}"
    back = f"src={site} dst={exit_} sport={service} dport={port}"
    if form == "listing":
        return f"tcp      6 431999 ESTABLISHED {there} {back} [ASSURED] mark=0 use=1\n"
    new = f"[NEW] tcp      6 120 SYN_SENT {there} [UNREPLIED] {back}\n"
    if form == "syslog":
        return f"{strftime('%b %d %H:%M:%S', gmtime(now))} gw conntrack[9387]: {new}"
    return f"[{now:.6f}]\t    {new}"


def write(path: Path, form: str, lines: int, peers: int, exits: int = 59) -> None:
    """A listing of so many lines."""
    with path.open("w") as file:
        batch: list[str] = []
        for flow in _flows(lines, peers, exits):
            batch.append(_line(form, flow))
            if len(batch) == _BATCH:
                file.write("".join(batch))
                batch.clear()
        file.write("".join(batch))


def cost(command: list[str]) -> tuple[float, int]:
    """User seconds and peak memory in bytes of a command that is to succeed."""
    with Path(os.devnull).open("w") as nowhere:
        pid = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{command[0]} failed")
    return usage.ru_utime, usage.ru_maxrss * 1024


def measure(
    lines: int, rounds: int, peers: int, told: Callable[[str], None] = lambda _what: None
) -> dict[str, dict[str, float]]:
    """By form: lines a second of user time, the share of awk's speed, peak memory."""
    awk = next(found for name in ("mawk", "gawk", "awk") if (found := shutil.which(name)))
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            path = Path(folder) / form
            told(f"writing {lines:,} lines: {form}")
            write(path, form, lines, peers)
            analyzed, awked, peak = [], [], 0
            for number in range(rounds):
                told(f"{form}, round {number + 1} of {rounds}")
                seconds, memory = cost([sys.executable, "-m", "detector", "analyze", str(path), "--json"])
                analyzed.append(seconds)
                peak = max(peak, memory)
                awked.append(cost([awk, "{n+=NF} END{print n}", str(path)])[0])
            path.unlink()
            results[form] = {
                "lines": lines,
                "lines_per_second": lines / statistics.median(analyzed),
                "awk_lines_per_second": lines / statistics.median(awked),
                "share_of_awk": statistics.median(
                    fast / slow for fast, slow in zip(awked, analyzed, strict=True)
                ),
                "peak_bytes": peak,
            }
    return results


@click.command()
@click.option("--lines", default=1_000_000, show_default=True, help="Lines of each form.")
@click.option("--rounds", default=3, show_default=True, help="Rounds in turns.")
@click.option("--peers", default=2_000, show_default=True, help="Tunnel addresses.")
def main(lines: int, rounds: int, peers: int) -> None:
    """Measure `exitprint analyze` beside awk; JSON on standard output."""
    click.echo(json.dumps(measure(lines, rounds, peers, lambda what: click.echo(what, err=True)), indent=2))


if __name__ == "__main__":
    main()
