# SPDX-License-Identifier: Apache-2.0
"""The status page's part on the detector itself: whether what the page says can be relied on."""

from __future__ import annotations

from dataclasses import dataclass

from detector import __version__
from detector.kernel.tables import LOSSES, Outcome, capacities
from detector.publish.page import runbooks
from detector.publish.page.html import Markup, element, join
from detector.publish.page.labels import moment
from detector.publish.page.pictures import percent, sign
from detector.publish.snapshot import About, Snapshot

_NEARLY_FULL = 0.8
_COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class _Fact:
    """One row: what it is about, what holds, whether that is well, and what to read if not."""

    about: str
    text: str
    good: bool | None = None
    runbook: str = ""


def state_section(now: Snapshot, about: About, healthy: tuple[bool, str], ready: tuple[bool, str]) -> Markup:
    """The detector, fact by fact."""
    facts = [
        _Fact("Reports", _sentence(healthy[1]), healthy[0], "ExitprintDetectorDown"),
        _Fact("Watching", _sentence(ready[1]), ready[0], "ExitprintNoVerdict"),
        *_counting(now),
        *_tables(now, about),
        _rules(now),
        _Fact("Cycles", f"{now.cycles:,} good, {now.failures:,} failed", not now.failures),
        _Fact("Memory", _memory(now)),
        _Fact("Hook", about.hook),
        _Fact("Version", __version__),
    ]
    return element(
        "section",
        element("h2", "The detector", id="detector"),
        element(
            "div",
            element("dl", *map(_row, facts), class_="state"),
            _since(now),
            class_="card",
        ),
        aria_labelledby="detector",
    )


def _row(fact: _Fact) -> Markup:
    link: Markup | None = None
    if fact.good is False and fact.runbook in runbooks.TEXTS:
        link = join(" ", element("a", "Runbook", href=runbooks.address(fact.runbook)))
    text = join(fact.text, link)
    if fact.good is not None:
        word = "" if fact.good else "Attention: "
        severity = "ok" if fact.good else "warning"
        text = element("span", sign(severity, 20), element("span", word, text), class_="mark")
    return element("div", element("dt", fact.about), element("dd", text))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _total(now: Snapshot, outcome: Outcome) -> int:
    return sum(count for (_, one), count in now.outcomes.items() if one is outcome)


def _counting(now: Snapshot) -> list[_Fact]:
    coverage = now.report.coverage if now.report else 1.0
    lost = {reason: _total(now, outcome) for reason, outcome in LOSSES.items()}
    missed = ", ".join(f"{count:,} ({reason})" for reason, count in lost.items() if count)
    unattributed = _total(now, Outcome.UNATTRIBUTED)
    return [
        _Fact(
            "Coverage",
            f"{percent(coverage)} of the flows in the window were counted",
            coverage >= _COVERAGE,
            "ExitprintCoverageLow",
        ),
        _Fact("Counted", f"{_total(now, Outcome.COUNTED):,} flows since the start"),
        _Fact("Lost", f"{missed or 'nothing'} since the start", not missed, "ExitprintEventsLost"),
        _Fact("Nobody's", f"{unattributed:,} flows that belong to no known peer"),
    ]


def _tables(now: Snapshot, about: About) -> list[_Fact]:
    facts = [
        _Fact(
            f"Table of {name}",
            f"{now.fill[name]:,} of {size:,} ({percent(now.fill[name] / size)})",
            now.fill[name] < _NEARLY_FULL * size,
            "ExitprintTableNearlyFull",
        )
        for name, size in capacities(about.config.tables).items()
        if name in now.fill
    ]
    if now.refused_peers:
        refused = f"{now.refused_peers:,} tunnel addresses have no room in the table"
        facts.append(_Fact("Refused", refused, good=False, runbook="ExitprintTableNearlyFull"))
    return facts


def _rules(now: Snapshot) -> _Fact:
    if not now.epoch:
        return _Fact("NAT rules", "not read yet", good=False, runbook="ExitprintNoVerdict")
    odd = f"; {now.not_understood:,} not understood, see exitprint audit" if now.not_understood else ""
    return _Fact("NAT rules", f"epoch {now.epoch:,}{odd}", not now.not_understood)


def _memory(now: Snapshot) -> str:
    parts = [f"{process} {size / 1e6:.0f} MB" for process, size in now.resident.items() if size]
    return ", ".join(parts) or "not measured yet"


def _since(now: Snapshot) -> Markup | None:
    if not now.epoch_since:
        return None
    begun = moment(now.epoch_since, now.made)
    return element("p", "The evidence begins with the NAT rules as they are since ", begun, ".")
