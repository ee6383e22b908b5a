# SPDX-License-Identifier: Apache-2.0
"""The status page's part on what changed and when, the newest first."""

from __future__ import annotations

from detector.base.moments import moment_of
from detector.base.verdicts import REASON_WORDS, VERDICT_WORDS, Verdict, plain
from detector.publish.events import Event, EventKind
from detector.publish.page.html import Markup, element, join
from detector.publish.page.labels import ago

_SHOWN = 3  # the others are a click away


def history_section(events: tuple[Event, ...], clock: float) -> Markup:
    """The changes, the newest first."""
    items = [element("li", *_entry(event, clock)) for event in reversed(events)]
    older = items[_SHOWN:]
    return element(
        "section",
        element("h2", "What changed", id="history"),
        element(
            "div",
            element("ol", *items[:_SHOWN], class_="history")
            if items
            else element("p", "Nothing since the start."),
            element(
                "details",
                element("summary", f"{len(older):,} older"),
                element("ol", *older, class_="history"),
            )
            if older
            else None,
            element("p", "Kept in memory alone, and gone when the service ends.", class_="kept"),
            class_="card",
        ),
        aria_labelledby="history",
    )


def _entry(event: Event, clock: float) -> list[Markup | None]:
    when = moment_of(event.at)
    stamp = element("time", f"{when:%Y-%m-%d %H:%M:%S} UTC", datetime=when.isoformat(timespec="seconds"))
    about = event.family.label if event.family else "Relay"
    return [
        element("p", stamp, f" ({ago(clock - event.at)} ago)", class_="when"),
        element("p", f"{about}: ", _what(event)),
        *(element("p", f"{REASON_WORDS[reason].missing.capitalize()}.") for reason in event.reasons),
        element("p", event.why) if event.kind is EventKind.EPOCH and event.why else None,
        *(element("p", "Rule at fault: ", element("code", rule)) for rule in event.rules),
    ]


def _what(event: Event) -> Markup:
    if event.kind is EventKind.VERDICT:
        return join(_verdict(event.before), " → ", _verdict(event.after))
    word = {EventKind.EPOCH: "NAT rules, epoch ", EventKind.COVERAGE: "coverage ", EventKind.STATE: ""}[
        event.kind
    ]
    if event.family:
        word = ""
    return join(word, f"{event.before} → {event.after}" if event.before else event.after)


def _verdict(text: str) -> Markup:
    name, by, predictor = text.partition(" by ")
    if name not in tuple(Verdict):
        return join(text)
    term = element("strong", plain(name), class_=f"term {VERDICT_WORDS[Verdict(name)].severity}")
    return join(term, by, predictor)
