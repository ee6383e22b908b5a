# SPDX-License-Identifier: Apache-2.0
"""The answers of the service for people, as renderables of rich. All of it reads at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import cast

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from detector.base.answers import (
    EventAnswer,
    ExplainAnswer,
    ExplainedPeerAnswer,
    FamilyAnswer,
    HistoryAnswer,
    JudgedAnswer,
    PeerAnswer,
    PeersAnswer,
    PredictedAnswer,
    ReportAnswer,
    RetentionAnswer,
    StatusAnswer,
)
from detector.base.verdicts import CONTRAST_WORDS, REASON_WORDS, Reason, words_of
from detector.client.advice import Advice
from detector.predictors import meaning
from detector.terminal import (
    evidence_parts,
    family_label,
    headline,
    named,
    percent,
    style_of,
    verdict_parts,
)

_BAR = 24
_MOST_EXITS = 16
_STALE = 3  # intervals
_BYTES = 1024
_LAST = 4  # changes that `watch` shows


def status_view(status: StatusAnswer, advice: Advice, now: datetime) -> RenderableType:
    """The verdict, why, since when, on what evidence, how much was seen, and what to do."""
    families = cast(dict[str, FamilyAnswer], status["families"])
    return Group(
        *verdict_parts(cast(ReportAnswer, status), _since(status["since"], now)),
        *_rules_at_fault(status),
        *evidence_parts(families),
        *_changes(status),
        *_floods(status),
        Text(_footing(status), style="dim"),
        Text(_age(status, now), style="dim"),
        Text(),
        *_refused(status),
        *_advice(advice),
    )


def watch_view(
    status: StatusAnswer, events: Iterable[EventAnswer], advice: Advice, now: datetime
) -> RenderableType:
    """What fits a terminal of 80 by 24: verdict, since when, what to do first, and what changed last."""
    families = status["families"].items()
    return Group(
        Text(f"{status['relay']}, {now:%Y-%m-%d %H:%M:%S} UTC", style="dim"),
        headline(status["verdict"]),
        named(status["verdict"], status["predictor"]).append(_since(status["since"], now), style="default"),
        Text(),
        *_advice(advice),
        Text(),
        *(_line(_family_text(name, one)) for name, one in families),
        *map(_line, _rules_at_fault(status)),
        _line(Text(_footing(status), style="dim")),
        _line(Text(_age(status, now), style="dim")),
        *_refused(status),
        Text(),
        *(_line(_event_head(event)) for event in list(events)[-_LAST:]),
    )


def _floods(status: StatusAnswer) -> Iterator[Text]:
    for one in status.get("floods", []):
        who, share = one["pseudonym"], percent(one["share"])
        yield Text(
            f"{family_label(one['family'])}: {who} has {share} of the flows that the tables had no room for, "
            f"{one['flows']:,}; see exitprint explain {who}",
            style="yellow",
        )


def _line(text: Text) -> Text:
    """One line, cut where the terminal ends."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _family_text(name: str, family: JudgedAnswer) -> Text:
    text = Text(f"{family_label(name)}  ").append_text(named(family["verdict"], family["predictor"]))
    text.append(f", {family['flows']:,} flows of {family['peers']:,} peers", style="default")
    missing = [REASON_WORDS[Reason(one)].missing for one in family["unknown_because"] if one in tuple(Reason)]
    return text.append(f": {missing[0]}", style="dim") if missing else text


def _since(since: str | None, now: datetime) -> str:
    if not since:
        return ""
    began = datetime.fromisoformat(since).astimezone(UTC)
    day = "" if began.date() == now.astimezone(UTC).date() else f"{began:%Y-%m-%d} "
    return f" since {day}{began:%H:%M:%S} UTC ({_span((now - began).total_seconds())})"


def _rules_at_fault(status: StatusAnswer) -> Iterator[Text]:
    for name, family in status["families"].items():
        for rule in family.get("rules_at_fault", []):
            yield Text.assemble((f"  rule at fault, {family_label(name)}: ", "bold"), rule)


def _changes(status: StatusAnswer) -> Iterator[RenderableType]:
    """What the last change of the rules did."""
    for name, change in status["epoch"]["change"].items():
        yield Padding(Text(f"{family_label(name)}: {change['why']}"), (0, 0, 0, 2))


def _refused(status: StatusAnswer) -> Iterator[RenderableType]:
    if not status["configuration"]["last_reload_successful"]:
        yield Text(
            "The configuration file is not accepted: the one before stands, see the log.", style="yellow"
        )


def _advice(advice: Advice) -> Iterator[RenderableType]:
    yield Text.assemble(("What to do first: ", "bold"), advice.what)
    for command, why in advice.commands:
        yield Padding(Text.assemble((f"{command:<{_COMMAND}}", "cyan"), (f"  # {why}", "dim")), (0, 0, 0, 4))
    if advice.runbook:
        yield _line(Text.assemble(("    runbook: ", "dim"), advice.runbook))


_COMMAND = len("exitprint audit")


def _footing(status: StatusAnswer) -> str:
    coverage = status.get("coverage")
    parts = ["no evidence yet" if coverage is None else f"coverage {coverage:.1%}"]
    parts.append(f"hook {status['hook'] or 'none yet'}")
    if status["rules_not_understood"]:
        parts.append(f"{status['rules_not_understood']} rules not understood, see the log")
    if status["waiting"]:
        parts.append(f"waiting: {status['waiting']}")
    return ", ".join(parts)


def age_of(status: StatusAnswer, now: datetime) -> float | None:
    """Seconds since the report was made, None without one."""
    return None if not status["made"] else (now - datetime.fromisoformat(status["made"])).total_seconds()


def is_old(status: StatusAnswer, now: datetime) -> bool:
    """Whether the service makes no reports any more, or made none yet."""
    age = age_of(status, now)
    return age is None or age > _STALE * (status["interval"] + 1)


def _age(status: StatusAnswer, now: datetime) -> str:
    age = age_of(status, now)
    if age is None:
        return "no report yet"
    epoch = status["epoch"]
    rules = (
        f"epoch {epoch['number']}: same rules since {epoch['since']}" if epoch["number"] else "no rules yet"
    )
    old = ", OLD: the service makes no reports" if is_old(status, now) else ""
    return f"report made {max(age, 0):.0f} s ago{old}; {rules}"


def history_view(answer: HistoryAnswer, now: datetime) -> RenderableType:
    """What changed, the newest last."""
    parts: list[RenderableType] = []
    for event in answer["events"]:
        parts.append(_event_head(event))
        parts += [Padding(Text(line, style="dim"), (0, 0, 0, 4)) for line in _event_lines(event)]
    if not parts:
        parts.append(Text("Nothing changed since the service started."))
    kept = f"{len(answer['events'])} changes, {answer['room']} at most are kept, in memory alone"
    return Group(*parts, Text(f"{kept}; it is {now:%Y-%m-%d %H:%M:%S} UTC", style="dim"))


def _event_head(event: EventAnswer) -> Text:
    at = datetime.fromisoformat(event["time"]).astimezone(UTC)
    text = Text(f"{at:%m-%d %H:%M:%S}  ", style="dim")
    text.append(f"{family_label(event['family']) if event['family'] else 'relay'}  ", style="default")
    if event["kind"] == "coverage" or (event["kind"] == "epoch" and not event["family"]):
        text.append(f"{event['kind']} ", style="default")
    if event["from"]:
        text.append(f"{event['from']} → ", style="default")
    return text.append(
        event["to"], style=style_of(event["to"].split()[0]) if event["kind"] == "verdict" else ""
    )


def _event_lines(event: EventAnswer) -> Iterator[str]:
    for reason in event["reasons"]:
        yield REASON_WORDS[Reason(reason)].missing if reason in tuple(Reason) else reason
    if event["kind"] == "verdict":
        yield _evidence_text(event["evidence"])
    elif event["why"]:
        yield event["why"]
    for rule in event["rules_at_fault"]:
        yield f"rule at fault: {rule}"


def _evidence_text(evidence: dict[str, float]) -> str:
    parts = (
        [f"{evidence['flows']:,.0f} flows of {evidence['peers']:,.0f} peers"] if "flows" in evidence else []
    )
    for contrast, label in CONTRAST_WORDS.items():
        if (share := evidence.get(f"same_exit_{contrast}")) is not None:
            parts.append(f"same exit {label} {share:.1%}")
    if "explained" in evidence:
        parts.append(f"explained {evidence['explained']:.1%}")
    if evidence.get("leak_bits"):
        parts.append(f"{evidence['leak_bits']:g} bits")
    return ", ".join(parts)


def peers_view(answer: PeersAnswer, width: int) -> RenderableType:
    """The peers as a table of whole columns: as many as fit, and always the pseudonym.

    Args:
        answer: of `peers`.
        width: columns of the terminal.
    """
    rows = [_peer_cells(peer) for peer in answer["peers"]]
    shown = _fitting(rows, width)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    for column in shown:
        table.add_column(column, no_wrap=True, justify="left" if column in _LEFT else "right")
    for row in rows:
        table.add_row(*(Text(row[name], style=_cell_style(name, row[name])) for name in shown))
    told = f"{len(answer['peers']):,} of {answer['matching']:,} that match, by {answer['sort']}"
    footing = f"{told}; {answer['peers_with_flows']:,} tunnel addresses with flows."
    footing += "".join(f" {term}: {means}." for term, means in _TERMS.items() if term in shown)
    if left := [name for name in _PRIORITY if name not in shown]:
        footing += f" A wider terminal also shows: {', '.join(left)}."
    return Group(table, Text(footing, style="dim"))


def _peer_cells(peer: PeerAnswer) -> dict[str, str]:
    """The columns, in the order in which they stand."""
    return {
        "peer": peer["pseudonym"] + ("" if peer["present"] else " (gone)"),
        "family": family_label(peer["family"]),
        "verdict": peer["verdict"],
        "flows": f"{peer['flows']:,}",
        "C": percent(peer["consistency"]),
        "same site": percent(peer["same_destination"]),
        "log10 E": "–" if peer["log10_e"] is None else f"{peer['log10_e']:.1f}",
        "busiest exit": peer["exit"] or "–",
        "share": percent(peer["exit_share"]),
        "peers on it": f"{peer['peers_on_exit']:,}",
    }


def _fitting(rows: list[dict[str, str]], width: int) -> list[str]:
    """The columns that fit, the most needed first, in the order in which they stand."""
    sizes = {name: max([len(name), *(len(row[name]) for row in rows)]) + 2 for name in _PRIORITY}
    shown: set[str] = set()
    used = 0
    for name in _PRIORITY:
        if shown and used + sizes[name] > width:
            break
        shown.add(name)
        used += sizes[name]
    return [name for name in _COLUMNS if name in shown]


def _cell_style(column: str, text: str) -> str:
    return style_of(text) if column == "verdict" else ""


_LEFT = ("peer", "family", "verdict")
_COLUMNS = (*_LEFT, "flows", "C", "same site", "log10 E", "busiest exit", "share", "peers on it")
_PRIORITY = (*_LEFT, "flows", "C", "peers on it", "busiest exit", "same site", "share", "log10 E")
_TERMS = {
    "C": "share of pairs of flows to different sites with the same exit",
    "log10 E": "evidence that the peer keeps its exit",
}


def explain_view(answer: ExplainAnswer, *, blocks: bool = True) -> RenderableType:
    """One peer: a part for each of its tunnel addresses.

    Args:
        answer: of `explain`.
        blocks: whether the terminal has characters for bars.
    """
    return Group(*_explained(answer, "█" if blocks else "#"))


def _explained(answer: ExplainAnswer, bar: str) -> Iterator[RenderableType]:
    addresses = answer["tunnel_addresses"]
    yield Text.assemble((answer["pseudonym"], "bold"), f", tunnel addresses: {len(addresses)}")
    for one in addresses:
        yield Text()
        yield _finding(one)
        yield Padding(_chart(one, bar), (1, 0, 1, 2))
        yield Padding(_evidence(one), (0, 0, 0, 2))


def _finding(one: ExplainedPeerAnswer) -> Text:
    verdict = one["verdict"]
    text = Text(f"{family_label(one['family'])}: ")
    text.append(verdict, style=style_of(verdict))
    if one["wide"]:
        return text.append(": a network of tunnel addresses, counted and not judged")
    text.append(f": {words_of(verdict).meaning}.")
    return text if one["present"] else text.append(" It is not on the relay any more.")


def _chart(one: ExplainedPeerAnswer, bar: str) -> RenderableType:
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


def _evidence(one: ExplainedPeerAnswer) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    for name, label in CONTRAST_WORDS.items():
        contrast = one["contrasts"][name]
        tried = contrast.get("tried", one["votes"])
        unit = "tries" if "tried" in contrast else "votes"
        said = (
            "not seen"
            if contrast["observed"] is None
            else (
                f"{percent(contrast['observed'])} of pairs, chance {percent(contrast['chance'])}, "
                f"{tried:,} {unit}"
            )
        )
        table.add_row(f"same exit {label}", said)
    table.add_row("evidence that it keeps its exit", _odds(one))
    for predictor, result in sorted(one["predictors"].items(), key=_names_another):
        table.add_row(Text(predictor), Text(f"{_predicted(result)}: {meaning(predictor)}"))
    return table


def _odds(one: ExplainedPeerAnswer) -> str:
    if one["log10_e"] is None:
        return "too few votes"
    needed = "" if one["log10_e_needed"] is None else f", 10^{one['log10_e_needed']:.1f} would be proof"
    return f"10^{one['log10_e']:.1f} to 1{needed}"


def _names_another(predictor: tuple[str, PredictedAnswer]) -> tuple[bool, str]:
    """Sorts predictors, those that name the peer's exit first."""
    name, said = predictor
    return not said.get("names_its_exit"), name


def _predicted(said: PredictedAnswer) -> str:
    if "ratio" in said:
        chance = percent(said["chance"])
        return f"right for {percent(said['ratio'])} of {said['tried']:,} flows, chance {chance}"
    return "names its busiest exit" if said["names_its_exit"] else "names another exit"


def retention_view(answer: RetentionAnswer) -> RenderableType:
    """What is in memory, by process: two lines for each kind of thing."""
    parts: list[RenderableType] = []
    where = ""
    for one in answer["holds"]:
        if one["where"] != where:
            where = one["where"]
            parts.append(Text(where, style="bold"))
        count = "not known" if one["count"] is None else f"{one['count']:,}"
        room = "" if one["room"] is None else f" of {one['room']:,}"
        size = "" if one["size"] is None else f", {one['size'] / _BYTES:,.0f} KiB"
        until = one["until"]
        if one["oldest"] is not None:
            until += f"; the oldest began {_span(one['oldest'])} ago"
        parts.append(
            Padding(Text.assemble(f"{one['what']}: ", (f"{count}{room}{size}", "bold")), (0, 0, 0, 2))
        )
        parts.append(Padding(Text(until, style="dim"), (0, 0, 0, 4)))
    return Group(*parts, Text(f"as of {answer['made'] or 'no cycle yet'}", style="dim"))


def line_of(status: StatusAnswer, now: datetime) -> str:
    """The status in one line, for a log."""
    families = "; ".join(_family_line(name, one) for name, one in status["families"].items())
    waiting = f"; waiting: {status['waiting']}" if status.get("waiting") else ""
    return (
        f"{now.astimezone(UTC).isoformat(timespec='seconds')} {_named(status)} "
        f"(epoch {status['epoch']['number']}, coverage {percent(status['coverage'])}"
        f"{'; ' if families else ''}{families}{waiting})"
    )


def _family_line(name: str, family: JudgedAnswer) -> str:
    seen = f"{family['flows']:,} flows of {family['peers']:,} peers"
    return f"{family_label(name)} {_named(family)}, {seen}"


def _named(judged: StatusAnswer | JudgedAnswer) -> str:
    return str(judged["verdict"]) + (f" by {judged['predictor']}" if judged.get("predictor") else "")


def _span(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


__all__ = (
    "age_of",
    "explain_view",
    "history_view",
    "is_old",
    "line_of",
    "peers_view",
    "retention_view",
    "status_view",
    "watch_view",
)
