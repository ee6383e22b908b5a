# SPDX-License-Identifier: Apache-2.0
"""Reports for people, on a terminal or through a pipe: plain words first, terms and numbers behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detector.base.answers import (
    AnonymityAnswer,
    ContrastAnswer,
    ExplainedAnswer,
    FamilyAnswer,
    ReportAnswer,
)
from detector.base.family import Family
from detector.base.verdicts import CONTRAST_WORDS, Severity, words_of

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


def show_report(report: ReportAnswer, remarks: Iterable[str] = ()) -> None:
    """Print a report on standard output, with remarks in its last line."""
    console = Console(highlight=False)
    console.print(Group(*verdict_parts(report), *evidence_parts(report.get("families", {}))))
    footing = [f"coverage {percent(report['coverage'])}"]
    if unread := report.get("rules_not_understood", 0):
        footing.append(f"{unread:,} rules not understood")
    console.print(Text(", ".join([*footing, *remarks]), style="dim"))


def headline(verdict: str) -> Text:
    """What a relay's verdict says, in plain words."""
    return Text(words_of(verdict).headline, style=style_of(verdict))


def named(verdict: str, predictor: str | None) -> Text:
    """A verdict by its name, with its predictor."""
    text = Text(verdict, style=style_of(verdict))
    return text.append(f" by {predictor}", style="default") if predictor else text


def verdict_parts(report: ReportAnswer, since: str = "") -> Iterator[RenderableType]:
    """The verdict in plain words, by its name, and why."""
    yield headline(report["verdict"])
    yield Text("The relay is ").append_text(named(report["verdict"], report["predictor"])).append(since)
    if report.get("why"):
        yield Padding(Text(report["why"]), (0, 0, 1, 2))


def evidence_parts(families: Mapping[str, FamilyAnswer]) -> Iterator[RenderableType]:
    """The numbers, a column for each family, and what the peers are by rule."""
    if families:
        yield _table(families)
        yield from _rules(families)


def _rules(families: Mapping[str, FamilyAnswer]) -> Iterator[RenderableType]:
    """What the peers are by the pool, and so by the rule, that serves them, where there are several."""
    for name, family in families.items():
        pools = family.get("pools", [])
        if len(pools) < 2 or not any(pool["flagged"] for pool in pools):
            continue
        for pool in pools:
            where = f"  {family_label(name)}, {pool['size']:,} exits of {pool['origin'] or 'a pool'}: "
            found = pool["peers_by_verdict"].items()
            yield Text(where + (", ".join(f"{count:,} peers {verdict}" for verdict, count in found) or "–"))


def _table(families: Mapping[str, FamilyAnswer]) -> Table:
    table = Table(box=None, padding=(0, 2), show_edge=False, header_style="bold")
    table.add_column("")
    for family in families:
        table.add_column(family_label(family))
    for row in zip(*(_column(family) for family in families.values()), strict=True):
        label = row[0][0]
        table.add_row(label, *(cell for _, cell in row))
    return table


def _column(family: FamilyAnswer) -> Iterator[tuple[str, RenderableType]]:
    yield "verdict", named(family["verdict"], family["predictor"])
    yield "seen", f"{family['flows']:,} flows of {family['peers']:,} peers"
    yield "exits in use", f"{family['exits']:,} of {family['pool_size']:,}"
    for contrast, label in CONTRAST_WORDS.items():
        yield f"same exit {label}", _contrast(family["contrasts"].get(contrast))
    yield "best explained by", _explained(family["explained"])
    yield "peers on an exit", _spread(family["anonymity_set"])
    yield "leak", f"{family['leak_bits']} bits"


def _contrast(contrast: ContrastAnswer | None) -> str:
    if contrast is None or not contrast["trials"]:
        return "not seen"
    return f"{percent(contrast['observed'])} (chance {percent(contrast['chance'])})"


def _explained(explained: Mapping[str, ExplainedAnswer]) -> str:
    if not explained:
        return "–"
    name, best = max(explained.items(), key=lambda one: (one[1]["ratio"] or 0.0) - (one[1]["chance"] or 0.0))
    return f"{name} {percent(best['ratio'])} (chance {percent(best['chance'])})"


def _spread(sets: AnonymityAnswer) -> str:
    return "–" if sets["min"] is None else f"{sets['min']:g} at least, {sets['median']:g} in the median"


def percent(share: float | None) -> str:
    """A share for people."""
    return "–" if share is None else f"{share:.1%}"
