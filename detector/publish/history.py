# SPDX-License-Identifier: Apache-2.0
"""What happened and when: changes of verdict, epoch, coverage and state, from one snapshot to the next.

Each is a line of the log and an entry of a short list in memory. Sums over all peers and the places of rules
are all that is in them: nothing says who a peer is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from detector.analysis.changes import Outcome
from detector.analysis.report import FamilyReport
from detector.base.family import Family
from detector.base.verdicts import VERDICT_WORDS, Verdict
from detector.logs import get_logger
from detector.publish.events import MAX_EVENTS, Event, EventKind
from detector.publish.snapshot import Snapshot, rules_at_fault

_log = get_logger()

_COVERAGE_FLOOR = 0.95
_NUMBERS = re.compile(r"\d+")  # a span that goes on growing is no news
_BAD = VERDICT_WORDS[Verdict.UNKNOWN].rank


def follow(before: Snapshot, now: Snapshot) -> Snapshot:
    """The new snapshot with what changed since the one before, and with since when its verdicts stand."""
    events = tuple(changes(before, now))
    since = dict.fromkeys(now.report.families, now.made) if now.report else {}
    if before.report:
        since |= {
            family: before.family_since[family]
            for family, report in before.report.families.items()
            if family in since and _named(report) == _named(_family(now, family))
        }
    return replace(now, family_since=since, news=events, history=(*before.history, *events)[-MAX_EVENTS:])


def changes(before: Snapshot, now: Snapshot) -> Iterator[Event]:
    """What is another than before: causes first, then what they did to the verdicts."""
    yield from _states(before, now)
    yield from _epochs(before, now)
    yield from _coverage(before, now)
    yield from _verdicts(before, now)


def tell(events: Iterable[Event]) -> None:
    """A line of the log for each; what is bad is a warning."""
    for event in events:
        told = {
            "family": event.family.value if event.family else "",
            "from": event.before,
            "to": event.after,
            "reasons": ", ".join(event.reasons),
            "rules_at_fault": "; ".join(event.rules),
        }
        log = _log.warning if event.is_bad else _log.info
        log(f"{event.kind} changed", **{name: text for name, text in told.items() if text}, **event.evidence)


def _states(before: Snapshot, now: Snapshot) -> Iterator[Event]:
    if _NUMBERS.sub("", before.waiting) != _NUMBERS.sub("", now.waiting):
        was, is_ = before.waiting or "watching", now.waiting or "watching"
        yield Event(now.made, EventKind.STATE, None, was, is_, is_bad=bool(now.waiting))
    if before.reload.good != now.reload.good:
        words = {True: "configuration accepted", False: "configuration refused"}
        was, is_ = words[before.reload.good], words[now.reload.good]
        yield Event(now.made, EventKind.STATE, None, was, is_, is_bad=not now.reload.good)
    for what, was_, is__ in (
        ("tunnel addresses without room", before.refused_peers, now.refused_peers),
        ("rules not understood", before.not_understood, now.not_understood),
    ):
        if was_ != is__:
            yield Event(
                now.made, EventKind.STATE, None, f"{was_:,} {what}", f"{is__:,} {what}", is_bad=is__ > was_
            )


def _epochs(before: Snapshot, now: Snapshot) -> Iterator[Event]:
    if before.epoch != now.epoch:
        why = "The NAT rules changed." if before.epoch else "The NAT rules were read."
        yield Event(now.made, EventKind.EPOCH, None, str(before.epoch), str(now.epoch), why=why)
    for family, change in now.change.items():
        old = before.change.get(family)
        known = change.outcome is not Outcome.UNKNOWN  # it takes some flows of the peers to tell
        if known and (old is None or (old.since, old.outcome) != (change.since, change.outcome)):
            why = str(change.as_dict()["why"])
            yield Event(now.made, EventKind.EPOCH, family, "", f"mapping {change.outcome}", why=why)


def _coverage(before: Snapshot, now: Snapshot) -> Iterator[Event]:
    if now.report is None:
        return
    was, is_ = before.report.coverage if before.report else 1.0, now.report.coverage
    if (was < _COVERAGE_FLOOR) != (is_ < _COVERAGE_FLOOR):
        evidence = {"coverage": round(is_, 4)}
        low = is_ < _COVERAGE_FLOOR
        yield Event(
            now.made, EventKind.COVERAGE, None, f"{was:.1%}", f"{is_:.1%}", evidence=evidence, is_bad=low
        )


def _verdicts(before: Snapshot, now: Snapshot) -> Iterator[Event]:
    for family, report in (now.report.families if now.report else {}).items():
        old = _family(before, family)
        was, is_ = _named(old), _named(report)
        if was == is_ and (old is None or old.reasons == report.reasons):
            continue
        if not report.in_use and (old is None or not old.in_use):
            continue
        yield Event(
            now.made,
            EventKind.VERDICT,
            family,
            was,
            is_,
            report.reasons,
            _evidence(report),
            rules_at_fault(report),
            report.why,
            VERDICT_WORDS[report.verdict].rank >= _BAD,
        )


def _family(now: Snapshot, family: Family) -> FamilyReport | None:
    return now.report.families.get(family) if now.report else None


def _named(report: FamilyReport | None) -> str:
    if report is None:
        return "nothing"
    return report.verdict.value + (f" by {report.predictor}" if report.predictor else "")


def _evidence(report: FamilyReport) -> dict[str, float]:
    found: dict[str, float] = {"flows": report.flows, "peers": report.peers, "peers_judged": report.judged}
    found |= {"leaking_share": round(report.leaking_share, 4), "leak_bits": round(report.leak_bits, 2)}
    found |= {
        f"same_exit_{name}": round(one.observed, 4) for name, one in report.contrasts.items() if one.peers
    }
    if report.predictor and report.predictor in report.explained:
        found["explained"] = round(report.explained[report.predictor].ratio, 4)
    return found
