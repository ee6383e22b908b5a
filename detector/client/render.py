# SPDX-License-Identifier: Apache-2.0
"""The answers of the inspect socket for people, as renderables of rich."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detector.base.verdicts import CONTRAST_WORDS, words_of
from detector.client.advice import Advice
from detector.predictors import meaning
from detector.terminal import family_label, report_parts, style_of

Answer = Mapping[str, Any]

_BAR = 30
_MOST_EXITS = 16
_STALE = 3  # intervals
_BYTES = 1024


def status_view(status: Answer, advice: Advice, now: datetime) -> RenderableType:
    """The verdict, why, since when, on what evidence, how much was seen, and what to do."""
    parts = [*report_parts(status), Text(_age(status, now), style="dim"), Text()]
    if not status.get("configuration", {}).get("last_reload_successful", True):
        parts.append(
            Text("The configuration file is not accepted: the one before stands, see the log.", "yellow")
        )
    parts.append(Text.assemble(("What to do: ", "bold"), advice.what))
    parts += [
        Padding(Text.assemble((command, "cyan"), (f"  # {why}", "dim")), (0, 0, 0, 4))
        for command, why in advice.commands
    ]
    if advice.runbook:
        parts.append(Padding(Text.assemble(("runbook: ", "dim"), advice.runbook), (0, 0, 0, 4)))
    return Group(*parts)


def age_of(status: Answer, now: datetime) -> float | None:
    """Seconds since the report was made, None without one."""
    return None if not status.get("made") else (now - datetime.fromisoformat(status["made"])).total_seconds()


def _age(status: Answer, now: datetime) -> str:
    age = age_of(status, now)
    if age is None:
        return "no report yet"
    epoch = status["epoch"]
    rules = (
        f"rules unchanged since {epoch['since']} (epoch {epoch['number']})"
        if epoch["number"]
        else "no rules yet"
    )
    old = ", OLD: the service makes no reports" if age > _STALE * (status["interval"] + 1) else ""
    return f"report made {max(age, 0):.0f} s ago{old}, {rules}"


def peers_view(answer: Answer) -> RenderableType:
    """The peers as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    for title in ("peer", "family", "verdict"):
        table.add_column(title, no_wrap=True)
    for title in ("flows", "C", "same site", "log10 E", "busiest exit", "share", "peers on it"):
        table.add_column(title, justify="right", no_wrap=True)
    for peer in answer["peers"]:
        table.add_row(
            peer["pseudonym"] + ("" if peer["present"] else " (gone)"),
            family_label(peer["family"]),
            Text(peer["verdict"], style=style_of(peer["verdict"])),
            f"{peer['flows']:,}",
            _percent(peer["consistency"]),
            _percent(peer["same_destination"]),
            "–" if peer["log10_e"] is None else f"{peer['log10_e']:.1f}",
            peer["exit"] or "–",
            _percent(peer["exit_share"]),
            f"{peer['peers_on_exit']:,}",
        )
    shown = f"{len(answer['peers']):,} of {answer['matching']:,} that match, by {answer['sort']}"
    footing = Text(
        f"{shown}; {answer['peers_with_flows']:,} tunnel addresses with flows. C: share of pairs of flows to "
        "different sites with the same exit; E: evidence that the peer keeps its exit.",
        style="dim",
    )
    return Group(table, footing)


def explain_view(answer: Answer, *, blocks: bool = True) -> RenderableType:
    """One peer: a part for each of its tunnel addresses.

    Args:
        answer: of `explain`.
        blocks: whether the terminal has characters for bars.
    """
    return Group(*_explained(answer, "█" if blocks else "#"))


def _explained(answer: Answer, bar: str) -> Iterator[RenderableType]:
    addresses = answer["tunnel_addresses"]
    yield Text.assemble((answer["pseudonym"], "bold"), f", tunnel addresses: {len(addresses)}")
    for one in addresses:
        yield Text()
        yield _finding(one)
        yield Padding(_chart(one, bar), (1, 0, 1, 2))
        yield Padding(_evidence(one), (0, 0, 0, 2))


def _finding(one: Answer) -> Text:
    verdict = one["verdict"]
    text = Text(f"{family_label(one['family'])}: ")
    text.append(verdict, style=style_of(verdict))
    if one["wide"]:
        return text.append(": a network of tunnel addresses, counted and not judged")
    text.append(f": {words_of(verdict).meaning}.")
    return text if one["present"] else text.append(" It is not on the relay any more.")


def _chart(one: Answer, bar: str) -> RenderableType:
    """Bars for the exits, the longest first."""
    if not one["exits"]:
        return Text("no flows in the window", style="dim")
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    most = one["exits"][0]["flows"]
    for exit_ in one["exits"][:_MOST_EXITS]:
        length = max(1, round(_BAR * exit_["flows"] / most))
        share = exit_["flows"] / max(one["flows"], 1)
        table.add_row(
            exit_["exit"], Text(bar * length, style="blue"), f"{share:6.1%}", f"{exit_['flows']:,} flows"
        )
    rest = one["exits"][_MOST_EXITS:]
    if rest:
        flows = sum(exit_["flows"] for exit_ in rest)
        table.add_row(f"{len(rest)} others", "", f"{flows / max(one['flows'], 1):6.1%}", f"{flows:,} flows")
    size = one["pool_size"]
    even = f"; an even share of {size:,} exits would be {1 / size:.1%}" if size else ""
    return Group(table, Text(f"peers on the busiest exit: {one['peers_on_exit']:,}{even}", style="dim"))


def _evidence(one: Answer) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    for name, label in CONTRAST_WORDS.items():
        contrast = one["contrasts"][name]
        tried = contrast.get("tried", one["votes"])
        unit = "tries" if "tried" in contrast else "votes"
        said = (
            "not seen"
            if contrast["observed"] is None
            else (
                f"{_percent(contrast['observed'])} of pairs, chance {_percent(contrast['chance'])}, "
                f"{tried:,} {unit}"
            )
        )
        table.add_row(f"same exit {label}", said)
    table.add_row("evidence that it keeps its exit", _odds(one))
    for name, said in sorted(one["predictors"].items(), key=_names_another):
        table.add_row(Text(name), Text(f"{_predicted(said)}: {meaning(name)}"))
    return table


def _odds(one: Answer) -> str:
    if one["log10_e"] is None:
        return "too few votes"
    needed = "" if one["log10_e_needed"] is None else f", 10^{one['log10_e_needed']:.1f} would be proof"
    return f"10^{one['log10_e']:.1f} to 1{needed}"


def _names_another(predictor: tuple[str, Answer]) -> tuple[bool, str]:
    """Sorts predictors, those that name the peer's exit first."""
    name, said = predictor
    return not said.get("names_its_exit"), name


def _predicted(said: Answer) -> str:
    if "ratio" in said:
        chance = _percent(said["chance"])
        return f"right for {_percent(said['ratio'])} of {said['tried']:,} flows, chance {chance}"
    return "names its busiest exit" if said["names_its_exit"] else "names another exit"


def holds_view(answer: Answer) -> RenderableType:
    """What is in memory, by process."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    table.add_column("where", no_wrap=True)
    table.add_column("what")
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("room", justify="right", no_wrap=True)
    table.add_column("until")
    where = ""
    for one in answer["holds"]:
        until = one["until"]
        if one["oldest"] is not None:
            until += f"; the oldest began {_span(one['oldest'])} ago"
        count = "not known" if one["count"] is None else f"{one['count']:,}"
        table.add_row(
            one["where"] if one["where"] != where else "",
            one["what"],
            count if one["size"] is None else f"{count} ({one['size'] / _BYTES:,.0f} KiB)",
            "" if one["room"] is None else f"{one['room']:,}",
            until,
        )
        where = one["where"]
    return Group(table, Text(f"as of {answer['made'] or 'no cycle yet'}", style="dim"))


def line_of(status: Answer, now: datetime) -> str:
    """The status in one line, for a log."""
    families = "; ".join(_family_line(name, one) for name, one in status["families"].items())
    waiting = f"; waiting: {status['waiting']}" if status.get("waiting") else ""
    return (
        f"{now.astimezone(UTC).isoformat(timespec='seconds')} {_named(status)} "
        f"(epoch {status['epoch']['number']}, coverage {status.get('coverage', 0):.1%}"
        f"{'; ' if families else ''}{families}{waiting})"
    )


def _family_line(name: str, family: Answer) -> str:
    seen = f"{family['flows']:,} flows of {family['peers']:,} peers"
    return f"{family_label(name)} {_named(family)}, {seen}"


def _named(judged: Answer) -> str:
    return str(judged["verdict"]) + (f" by {judged['predictor']}" if judged.get("predictor") else "")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _span(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


__all__ = ("age_of", "explain_view", "holds_view", "line_of", "peers_view", "status_view")
