# SPDX-License-Identifier: Apache-2.0
"""The status page as a whole."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from detector import __version__
from detector.analysis.report import FamilyReport, Report
from detector.base.verdicts import LEAKS, VERDICT_WORDS, Verdict, plain
from detector.counts.load import Load
from detector.publish.page import runbooks
from detector.publish.page.detector_state import state_section
from detector.publish.page.families import family_section
from detector.publish.page.history import history_section
from detector.publish.page.html import Markup, element, join
from detector.publish.page.labels import ago, moment
from detector.publish.page.pictures import sign
from detector.publish.snapshot import About, Snapshot, rules_at_fault

# Read now: the process that serves it may not be able to look there later.
_STYLE = (Path(__file__).parent / "style.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

# Nothing is loaded, run, framed or sent; the one style sheet is the one whose hash this is.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

REFRESH = 30  # seconds
_DOT = {
    "critical": "#b3202c",
    "warning": "#c77700",
    "info": "#1d5fa8",
    "ok": "#1c6b3f",
    "unknown": "#5b4a96",
}


@dataclass(frozen=True, slots=True)
class View:
    """What a page is made from.

    Attributes:
        healthy, ready: what /-/healthy and /-/ready say.
        clock: now, in seconds since 1970.
        refreshing: the page loads itself again after `REFRESH` seconds.
    """

    now: Snapshot
    about: About
    healthy: tuple[bool, str]
    ready: tuple[bool, str]
    clock: float
    refreshing: bool = False


def render(view: View) -> str:
    """The page."""
    relay = view.about.config.relay
    report = view.now.report
    verdict = report.verdict if report else Verdict.UNKNOWN
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="refresh", content=REFRESH) if view.refreshing else None,
        element("title", f"{plain(verdict)} · {relay} · exitprint"),
        element("link", rel="icon", href=_icon(VERDICT_WORDS[verdict].severity)),
        element("style", Markup(_STYLE)),
    )
    body = element(
        "body",
        element("a", "To the verdict", href="#verdict", class_="skip"),
        _header(view),
        _main(view),
        _footer(),
    )
    return "<!doctype html>" + element("html", head, body, lang="en")


def _icon(severity: str) -> str:
    dot = element("circle", cx=8, cy=8, r=7, fill=_DOT[severity])
    picture = element("svg", dot, xmlns="http://www.w3.org/2000/svg", viewBox="0 0 16 16")
    return "data:image/svg+xml," + quote(picture)


def _header(view: View) -> Markup:
    links = [
        ("/metrics", "Metrics"),
        ("#history", "History"),
        ("#detector", "Detector"),
        ("#runbooks", "Runbooks"),
    ]
    links.append(("/", "Stop reloading") if view.refreshing else ("/?reload", f"Reload every {REFRESH} s"))
    items = [element("li", element("a", text, href=to)) for to, text in links]
    return element(
        "header",
        element("h1", element("span", "exitprint on ", class_="brand"), view.about.config.relay),
        element("nav", element("ul", *items), aria_label="Page"),
    )


def _main(view: View) -> Markup:
    now = view.now
    return element(
        "main",
        None if view.healthy[0] else _notice(f"What follows is old: {view.healthy[1]}."),
        _notice(f"Waiting: {now.waiting}.") if now.waiting else None,
        _verdict(now.report, now, view.clock),
        history_section(now.history, view.clock),
        *_families(view),
        state_section(now, view.about, view.healthy, view.ready),
        _runbooks(),
    )


def _notice(text: str) -> Markup:
    return element("p", sign("warning", 20), element("span", text), class_="notice line", role="status")


def _verdict(report: Report | None, now: Snapshot, clock: float) -> Markup:
    verdict = report.verdict if report else Verdict.UNKNOWN
    words = VERDICT_WORDS[verdict]
    headline = words.headline if report else "Not known yet: there is no report yet"
    title = element("h2", headline, id="verdict-text")
    return element(
        "div",
        element("div", sign(words.severity, 32), title, class_="line"),
        element("p", _since(report, now, clock), class_="since"),
        element("p", report.why) if report and report.why else None,
        *_rules_at_fault(report),
        _next_steps(verdict),
        class_=f"verdict {words.severity}",
        id="verdict",
        role="region",
        aria_labelledby="verdict-text",
    )


def _rules_at_fault(report: Report | None) -> list[Markup]:
    """Where the rules stand whose peers leak, by family."""
    families = report.families.items() if report else ()
    found = [(family, rule) for family, one in families for rule in rules_at_fault(one)]
    return [
        element("p", f"Rule at fault, {family.label}: ", element("code", rule), class_="fault")
        for family, rule in found
    ]


def _since(report: Report | None, now: Snapshot, clock: float) -> Markup:
    if report is None:
        return Markup("The first report comes within one interval.")
    parts: list[str | None] = ["Verdict ", element("strong", plain(report.verdict), class_="term")]
    if report.predictor:
        parts += [" by ", element("strong", report.predictor, class_="term")]
    if deciding := _deciding(report):
        parts.append(f" ({deciding.family.label})")
    return join(*parts, " since ", moment(now.since, clock), f"; looked at {ago(clock - now.made)} ago.")


def _deciding(report: Report) -> FamilyReport | None:
    """The family whose verdict is the relay's."""
    return next((one for one in report.families.values() if one.why == report.why), None)


def _next_steps(verdict: Verdict) -> Markup | None:
    book = VERDICT_WORDS[verdict].runbook
    if book is None:
        return None
    link = element("a", f"runbook {book}", href=runbooks.address(book))
    if verdict not in LEAKS:
        return element("p", "What to do: ", link, ".")
    audit = element("code", "exitprint audit")
    mend = join("; on the relay, ", audit, " names the NAT rule at fault and what to write instead.")
    return element("p", "What to do: ", link, mend)


def _families(view: View) -> list[Markup]:
    report = view.now.report
    if report is None:
        return []
    floor = view.about.config.anonymity_floor
    deciding = _deciding(report)
    return [
        family_section(one, view.now.loads.get(family, Load()), floor, decides=one is deciding)
        for family, one in report.families.items()
    ]


def _runbooks() -> Markup:
    items = [element("li", element("a", name, href=runbooks.address(name))) for name in runbooks.TEXTS]
    return element(
        "section",
        element("h2", "Runbooks", id="runbooks"),
        element("ul", *items, class_="links"),
        aria_labelledby="runbooks",
    )


def _footer() -> Markup:
    return element(
        "footer",
        f"exitprint {__version__}. This page holds sums over all peers; no peer, tunnel address or "
        "destination is on it.",
    )
