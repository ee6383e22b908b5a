# SPDX-License-Identifier: Apache-2.0
"""`exitprint canary run` and `reflect`: the outside measure over a fleet."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import HostError, UsageError
from detector.base.family import Family
from detector.canary.linking import Comparison, Mismatches, Place, Places, Sight, compare, places
from detector.canary.plan import Plan, RelayPlan, read_plan
from detector.canary.reflect import reflect as serve
from detector.canary.tunnel import ask, way

_PREFIX = "exitprint_outside_"


@click.group("canary")
def canary() -> None:
    """Measure from outside which relays are linkable with each other, with canaries of your own."""


@canary.command("reflect")
@click.option("--address", "addresses", multiple=True, default=("0.0.0.0", "::"), help="Listen here.")  # noqa: S104
@click.option("--port", default=8080, show_default=True)
def reflect(addresses: Sequence[str], port: int) -> None:
    """Tell whoever asks the address that the question came from. Nothing is kept."""
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(addresses, port))
    except OSError as error:
        raise HostError(f"cannot listen on port {port}: {error.strerror}") from None


@canary.command("run")
@click.option("--config", "file", required=True, type=click.Path(path_type=Path), help="What to measure.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Go on where a run stopped; deleted at the end."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a picture into this SVG file.")
@click.option("--textfile", type=click.Path(path_type=Path), help="Write metrics for node_exporter there.")
def run(file: Path, state: Path | None, as_json: bool, plot: Path | None, textfile: Path | None) -> None:
    """Send a few requests of every canary through every relay, and say what is linked. Needs root.

    The exit that the reflector saw is compared with what each relay says of the canary's place, where
    `metrics` of the relay is given: a difference means another NAT behind the relay.
    """
    plan = read_plan(file)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    sights = measure(plan, state, console)
    found = places(sights, plan.relays)
    results = {family: compare(found, plan, family) for family in Family if family in plan.reflector}
    said = mismatches(found, plan.relays)
    if plot is not None:
        _write(plot, picture(found, plan))
    if textfile is not None:
        _write(textfile, metrics(found, results, said, time.time()))
    if as_json:
        click.echo(json.dumps(as_dict(found, results, said)))
    else:
        show(found, results, said, plan, Console(highlight=False))
    if state is not None:
        state.unlink(missing_ok=True)


def measure(plan: Plan, state: Path | None, console: Console) -> list[Sight]:
    """Every canary through every relay; what the state file has already is not asked again."""
    sights = _remembered(state)
    done = {(one.relay, one.canary) for one in sights}
    ways = [(relay, canary) for canary in plan.canaries for relay in plan.relays]
    for number, (relay, canary) in enumerate(ways, 1):
        if (relay.name, canary.name) in done:
            continue
        console.print(f"{number} of {len(ways)}: {canary.name} through {relay.name}")
        with way(relay, canary) as inside:
            for family, source in canary.addresses.items():
                if family not in plan.reflector or family not in relay.pools:
                    continue
                seen = [
                    str(exit_)
                    for _ in range(plan.requests)
                    for reflector in plan.reflector[family]
                    if (exit_ := ask(inside, source, reflector, plan)) is not None
                ]
                if not seen:
                    console.print(f"  no answer over {family.value}", style="yellow")
                sights.append(Sight(relay.name, canary.name, family, tuple(seen)))
        _remember(state, sights)
        time.sleep(plan.pause / max(len(plan.relays), 1))
    return sights


def _remembered(state: Path | None) -> list[Sight]:
    if state is None or not state.exists():
        return []
    try:
        rows = json.loads(state.read_text())["sights"]
        return [Sight(relay, canary, Family(family), tuple(exits)) for relay, canary, family, exits in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{state}: not the state of a run", "delete it to begin anew") from None


def _remember(state: Path | None, sights: Sequence[Sight]) -> None:
    if state is None:
        return
    new = state.with_suffix(f"{state.suffix}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"sights": [one.as_row() for one in sights]}, file)
    new.replace(state)


def mismatches(found: Places, relays: Sequence[RelayPlan]) -> Mismatches:
    """What was seen against what relays with `metrics` say of themselves."""
    result = Mismatches()
    for relay in relays:
        said = _said(relay.metrics) if relay.metrics else {}
        for key, place in found.items():
            if key[0] == relay.name:
                result.add(key, place, said.get((key[1], key[2])))
    return result


def _said(url: str) -> dict[tuple[str, Family], tuple[float, float]]:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  only who compares needs it

    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  (the operator's own configuration)
            page = answer.read().decode()
    except (OSError, ValueError) as error:
        raise HostError(f"{url} does not answer: {error}", "leave `metrics` out to measure alone") from None
    ends: dict[tuple[str, Family], dict[str, float]] = {}
    for family in text_string_to_metric_families(page):
        for end in ("low", "high"):
            if family.name == f"exitprint_canary_position_{end}_ratio":
                for sample in family.samples:
                    key = sample.labels["canary"], Family(sample.labels["family"])
                    ends.setdefault(key, {})[end] = sample.value
    return {key: (both["low"], both["high"]) for key, both in ends.items() if len(both) == 2}


def as_dict(found: Places, results: Mapping[Family, Comparison], said: Mismatches) -> dict[str, Any]:
    """For --json: places in the pools, never an exit address."""
    return {
        "schema_version": SCHEMA_VERSION,
        "places": [
            {"relay": relay, "canary": name, "family": family.value, **asdict(place)}
            for (relay, name, family), place in found.items()
        ],
        "families": {
            family.value: {
                "linked": [
                    {"relays": list(one), "bits": round(bits, 2)}
                    for one, bits in zip(result.sets, result.bits, strict=True)
                ],
                "untold": list(result.untold),
                "tuples": result.tuples,
            }
            for family, result in results.items()
        },
        "compared_with_relays": said.compared,
        "differ": [
            {"relay": relay, "canary": name, "family": family.value} for relay, name, family in said.differ
        ],
    }


def show(
    found: Places, results: Mapping[Family, Comparison], said: Mismatches, plan: Plan, console: Console
) -> None:
    """The study's table for people."""
    for family, result in results.items():
        table = Table(title=f"{family.value}: place in the pool", title_justify="left")
        table.add_column("canary")
        for relay in plan.relays:
            table.add_column(relay.name, justify="right")
        for canary in plan.canaries:
            cells = (found.get((relay.name, canary.name, family)) for relay in plan.relays)
            table.add_row(canary.name, *map(_cell, cells))
        console.print(table)
        for one, bits in zip(result.sets, result.bits, strict=True):
            console.print(f"linkable with each other, {bits:.1f} bits: {', '.join(one)}", style="bold red")
        if not result.sets:
            console.print("no two relays are linkable with each other", style="green")
        if result.untold:
            console.print(f"too little to tell: {', '.join(result.untold)}", style="yellow")
    if said.compared:
        console.print(f"{said.compared} places compared with what relays say, {len(said.differ)} differ")
    for where, name, family in said.differ:
        console.print(f"  {where} {name} {family.value}: another NAT behind the relay?", style="yellow")


def _cell(place: Place | None) -> str:
    if place is None:
        return "–"
    where = "outside" if place.index is None else f"{place.index}/{place.size}"
    return where if place.stays else f"{where} ?"


def metrics(found: Places, results: Mapping[Family, Comparison], said: Mismatches, now: float) -> str:
    """What node_exporter's textfile collector takes; positions and no address."""
    lines = [f"# TYPE {_PREFIX}run_timestamp_seconds gauge", f"{_PREFIX}run_timestamp_seconds {now:.0f}"]
    for end, at in (("low", 0), ("high", 1)):
        lines.append(f"# TYPE {_PREFIX}position_{end}_ratio gauge")
        for (relay, name, family), place in found.items():
            if place.interval is not None:
                labels = f'relay="{relay}",canary="{name}",family="{family.value}"'
                lines.append(f"{_PREFIX}position_{end}_ratio{{{labels}}} {place.interval[at]!r}")
    lines.append(f"# TYPE {_PREFIX}linked gauge")
    for family, result in results.items():
        linked = {relay for one in result.sets for relay in one}
        for one in dict.fromkeys(key[0] for key in found if key[2] is family):
            if one not in result.untold:
                value = int(one in linked)
                lines.append(f'{_PREFIX}linked{{relay="{one}",family="{family.value}"}} {value}')
    lines += [f"# TYPE {_PREFIX}mismatches gauge", f"{_PREFIX}mismatches {len(said.differ)}"]
    return "\n".join(lines) + "\n"


def picture(found: Places, plan: Plan) -> str:
    """Every pool cut into its exits, a strip a relay, with the canaries' places in their colours."""
    row, left, width = 22, 160, 560
    families = [family for family in Family if any(key[2] is family for key in found)]
    height = 30 + len(families) * (len(plan.relays) * row + 40)
    body = list(_strips(found, plan, families, (row, left, width)))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>\n"])


def _strips(
    found: Places, plan: Plan, families: Sequence[Family], sizes: tuple[int, int, int]
) -> Iterator[str]:
    row, left, width = sizes
    top = 24
    for family in families:
        yield f'<text x="10" y="{top}">{family.value}: where each canary sits in the pool</text>'
        for relay in plan.relays:
            top += row
            yield f'<text x="10" y="{top}">{escape(relay.name)}</text>'
            yield f'<rect x="{left}" y="{top - 11}" width="{width}" height="14" fill="#eee"/>'
            for number, canary in enumerate(plan.canaries):
                place = found.get((relay.name, canary.name, family))
                if place is not None and place.interval is not None:
                    low, high = place.interval
                    hue = 360 * number // len(plan.canaries)
                    yield (
                        f'<rect x="{left + width * low:.1f}" y="{top - 11}" '
                        f'width="{max(width * (high - low), 2):.1f}" '
                        f'height="14" fill="hsl({hue},70%,45%)"><title>{escape(canary.name)}</title></rect>'
                    )
        top += 40


def _write(path: Path, text: str) -> None:
    """All at once, so that nobody reads half of it."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text)
        new.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
