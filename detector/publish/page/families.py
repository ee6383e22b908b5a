# SPDX-License-Identifier: Apache-2.0
"""The status page's part on one address family: numbers, contrasts against chance, exits by load."""

from __future__ import annotations

from detector.analysis.report import FamilyReport
from detector.base.family import Family
from detector.base.verdicts import CONTRAST_WORDS, VERDICT_WORDS, Verdict, plain
from detector.counts.load import Column, Load
from detector.publish.page import runbooks
from detector.publish.page.html import Markup, element
from detector.publish.page.pictures import Share, column_name, load_picture, percent, shares_picture

_EFFECT = 0.05  # of a chance-corrected share: what the analysis calls an effect


def family_section(report: FamilyReport, load: Load, floor: int, *, decides: bool) -> Markup:
    """Everything about one family.

    Args:
        report: the judgement on it.
        load: its exits.
        floor: peers that an exit is to have at least.
        decides: the relay's verdict is this one, so its reason has been given already.
    """
    name, label = report.family.value, report.family.label
    severity = VERDICT_WORDS[report.verdict].severity
    heading = element(
        "h2", f"{label} ", element("span", plain(report.verdict), class_=f"term {severity}"), id=name
    )
    if not report.in_use:
        return _section(name, heading, element("p", "No flow of a peer was seen.", class_="why"))
    return _section(
        name,
        heading,
        None if decides else element("p", report.why, class_="why"),
        None if decides else _runbook(report.verdict),
        _numbers(report, load, floor),
        element(
            "div", _contrasts(report), _predictors(report), _exits(report.family, load, floor), class_="cards"
        ),
    )


def _section(name: str, *children: Markup | None) -> Markup:
    return element("section", *children, aria_labelledby=name)


def _runbook(verdict: Verdict) -> Markup | None:
    book = VERDICT_WORDS[verdict].runbook
    if book is None:
        return None
    return element("p", element("a", f"Runbook: {book}", href=runbooks.address(book)), class_="why")


def _of_pool(report: FamilyReport) -> str:
    """How many there are, if that is known, and whether it is a guess."""
    if not report.pool_size:
        return ""
    return f" of {_short(report.pool_size)}" + (", guessed" if report.pool_guessed else "")


def _numbers(report: FamilyReport, load: Load, floor: int) -> Markup:
    others = report.anonymity_set
    rows = [
        ("flows in the window", f"{report.flows:,}"),
        ("peers with flows", f"{report.peers:,}"),
        ("peers judged", f"{report.judged:,}"),
        ("of the judged peers leak", percent(report.leaking_share)),
        (
            "exits in use" + _of_pool(report),
            f"{report.exits:,}",
        ),
        ("bits that one exit tells about the next", f"{report.leak_bits:.1f}"),
        ("peers on an exit, median", f"{others.median:,.0f}" if others else "–"),
        (f"exits with fewer than {floor:,} peers", f"{load.crowded_less:,}"),
    ]
    return element(
        "dl",
        *(element("div", element("dt", what), element("dd", much)) for what, much in rows),
        class_="numbers",
    )


def _short(number: int) -> str:
    """A pool's size: a /64 holds more than anybody reads digit by digit."""
    return f"{number:,}" if number < 10_000_000 else f"2^{number.bit_length() - 1}"


def _contrasts(report: FamilyReport) -> Markup:
    shares = [
        Share(label.capitalize(), one.observed, one.chance, strong=(one.kappa or 0.0) >= _EFFECT)
        for name, label in CONTRAST_WORDS.items()
        if (one := report.contrasts.get(name)) and one.peers
    ]
    title = "How often two flows of one peer share their exit"
    if not shares:
        return _card(title, element("p", "Not enough flows yet to compare.", class_="why"))
    caption = (
        "The bar is what was seen, the upright mark what chance alone gives. Far beyond the mark is a leak."
    )
    return _figure(title, shares_picture(f"{report.family}-contrasts", title, shares), caption)


def _predictors(report: FamilyReport) -> Markup:
    shares = [
        Share(name, one.ratio, one.chance, strong=one.holds)
        for name, one in report.explained.items()
        if one.trials
    ]
    title = "How often a public function names the exit"
    if not shares:
        return _card(title, element("p", "No function could be tried yet.", class_="why"))
    caption = "None of these functions holds a secret. One that is far beyond its mark works on every relay."
    return _figure(title, shares_picture(f"{report.family}-functions", title, shares), caption)


def _exits(family: Family, load: Load, floor: int) -> Markup:
    title = "Exits by load"
    if not load.columns:
        return _card(title, element("p", "No exit carried a flow in the window.", class_="why"), wide=True)
    grouped = load.columns[0].exits > 1
    unit = f"{load.columns[0].exits:,} exits beside each other" if grouped else "one exit"
    caption = (
        f"Each column is {unit}, by address; the dashed line is an even share. "
        + (f"{load.crowded_less:,} exits have fewer than {floor:,} peers" if load.crowded_less else "")
        + (": their columns have the other colour." if load.crowded_less else "")
    )
    picture = load_picture(f"{family}-exits", title, load, floor)
    return _figure(title, picture, caption.strip(), _table(load, floor), wide=True)


def _table(load: Load, floor: int) -> Markup:
    heads = ("Exit", "Flows", "Share", "Peers")
    grouped = load.columns[0].exits > 1
    if grouped:
        heads = ("Exits", "Flows of all", "Share", "Fewest peers on one")
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    body = element("tbody", *(_row(column, load.flows, floor) for column in load.columns))
    return element(
        "details",
        element("summary", "The same as numbers"),
        element(
            "div",
            element("table", head, body),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="Exits by load",
        ),
    )


def _row(column: Column, total: int, floor: int) -> Markup:
    numbers = (
        f"about {column.flows:,}",
        percent(min(column.flows / max(total, 1), 1.0)),
        f"{column.peers:,}",
    )
    if column.withheld:
        numbers = ("–", "–", f"fewer than {floor:,}")
    elif not column.flows:
        numbers = ("0", percent(0.0), "0")
    return element(
        "tr",
        element("th", column_name(column), scope="row"),
        *(element("td", number) for number in numbers),
    )


def _card(title: str, *children: Markup, wide: bool = False) -> Markup:
    return element("div", element("h3", title), *children, class_="card wide" if wide else "card")


def _figure(title: str, picture: Markup, caption: str, *more: Markup, wide: bool = False) -> Markup:
    return _card(title, element("figure", picture, element("figcaption", caption)), *more, wide=wide)
