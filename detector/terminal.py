# SPDX-License-Identifier: Apache-2.0
"""Reports for people, on a terminal or through a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detector.base.family import Family
from detector.base.verdicts import CONTRAST_WORDS, Severity, words_of

Report = Mapping[str, Any]

_STYLES = {
    Severity.CRITICAL: "bold red",
    Severity.WARNING: "yellow",
    Severity.INFO: "cyan",
    Severity.OK: "green",
    Severity.UNKNOWN: "magenta",
}


def style_of(verdict: str) -> str:
    """The style of a verdict, by its severity."""
    return _STYLES[words_of(verdict).severity]


def family_label(family: str) -> str:
    """What people call a family; a name that is none stays as it is."""
    return Family(family).label if family in tuple(Family) else family


def show_report(report: Report) -> None:
    """Print a report on standard output."""
    Console(highlight=False).print(Group(*report_parts(report)))


def report_parts(report: Report) -> Iterator[RenderableType]:
    """A report, piece by piece from top to bottom."""
    yield _verdict("The relay is ", report)
    if report.get("why"):
        yield Padding(Text(report["why"]), (0, 0, 1, 2))
    if report.get("families"):
        yield _table(report["families"])
        yield from _rules(report["families"])
    yield from _changes(report)
    yield Text(_footing(report), style="dim")


def _rules(families: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    """What the peers are by the pool, and so by the rule, that serves them, where there are several."""
    for name, family in families.items():
        pools = family.get("pools", ())
        if len(pools) < 2 or not any(pool["flagged"] for pool in pools):
            continue
        for pool in pools:
            where = f"  {family_label(name)}, {pool['size']:,} exits of {pool['origin'] or 'a pool'}: "
            found = pool["peers_by_verdict"].items()
            yield Text(where + (", ".join(f"{count:,} peers {verdict}" for verdict, count in found) or "–"))


def _changes(report: Report) -> Iterator[RenderableType]:
    """What the last change of the rules did."""
    for name, change in report.get("epoch", {}).get("change", {}).items():
        yield Text(f"  {family_label(name)}: {change['why']}")


def _verdict(before: str, judged: Mapping[str, Any]) -> Text:
    text = Text(before).append(judged["verdict"], style=style_of(judged["verdict"]))
    if judged.get("predictor"):
        text.append(f" by {judged['predictor']}")
    return text


def _table(families: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2), show_edge=False, header_style="bold")
    table.add_column("")
    for family in families:
        table.add_column(family_label(family))
    for row in zip(*(_column(family) for family in families.values()), strict=True):
        label = row[0][0]
        table.add_row(label, *(cell for _, cell in row))
    return table


def _column(family: Mapping[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    yield "verdict", _verdict("", family)
    yield "seen", f"{family['flows']:,} flows of {family['peers']:,} peers"
    yield "exits in use", f"{family['exits']:,} of {family['pool_size']:,}"
    for contrast, label in CONTRAST_WORDS.items():
        yield f"same exit {label}", _contrast(family["contrasts"][contrast])
    yield "best explained by", _explained(family["explained"])
    yield "peers on an exit", _spread(family["anonymity_set"])
    yield "leak", f"{family['leak_bits']} bits"


def _contrast(contrast: Mapping[str, Any]) -> str:
    if not contrast["trials"]:
        return "not seen"
    return f"{contrast['observed']:.1%} (chance {contrast['chance']:.1%})"


def _explained(explained: Mapping[str, Mapping[str, float]]) -> str:
    if not explained:
        return "–"
    name, best = max(explained.items(), key=lambda one: one[1]["ratio"] - one[1]["chance"])
    return f"{name} {best['ratio']:.1%} (chance {best['chance']:.1%})"


def _spread(sets: Mapping[str, float | None]) -> str:
    return "–" if sets["min"] is None else f"{sets['min']:g} at least, {sets['median']:g} in the median"


def _footing(report: Report) -> str:
    parts = [f"coverage {report['coverage']:.1%}" if "coverage" in report else "no evidence yet"]
    if report.get("hook"):
        parts.append(f"hook {report['hook']}")
    if report.get("since"):
        parts.append(f"since {report['since']}")
    if report.get("rules_not_understood"):
        parts.append(f"{report['rules_not_understood']} rules not understood, see the log")
    if report.get("waiting"):
        parts.append(f"waiting: {report['waiting']}")
    return ", ".join(parts)
