# SPDX-License-Identifier: Apache-2.0
"""The history: what is a change, what is said and logged of it, and that it stays short and about nobody."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from detector import logs
from detector.analysis.changes import Change, Outcome
from detector.analysis.report import FamilyReport, Report
from detector.analysis.verdict import judge
from detector.base.family import Family
from detector.base.verdicts import Reason, Verdict
from detector.config.reload import Reload
from detector.publish.events import MAX_EVENTS, Event, EventKind
from detector.publish.history import changes, follow, tell
from detector.publish.snapshot import Snapshot, rules_at_fault
from tests.unit.publish.page.moments import observed

RULE = "ip exits postrouting handle 2"


def report_of(mapping: str, **changed: object) -> Report:
    """A report on one family, changed."""
    report = judge([replace(observed(mapping), pool_origins=(RULE,))])
    family = replace(report.families[Family.IPV4], **changed)  # type: ignore[arg-type]
    return replace(report, families={Family.IPV4: family}, verdict=family.verdict)


LEAKING, RANDOM = report_of("persistent"), report_of("random")


def family(report: Report) -> FamilyReport:
    """Its one family."""
    return report.families[Family.IPV4]


def at(made: float, report: Report | None = RANDOM, **changed: object) -> Snapshot:
    """A moment."""
    return Snapshot(report=report, made=made, epoch=1, **changed)  # type: ignore[arg-type]


def test_nothing_new_is_no_event() -> None:
    """The same verdicts with more flows change nothing, and their beginning stays."""
    before = follow(Snapshot(epoch=1), at(10.0))
    now = follow(before, at(20.0, report_of("random", flows=99)))
    assert now.news == ()
    assert now.history == before.history
    assert now.family_since == {Family.IPV4: 10.0}


def test_a_verdict_that_changes_is_told_with_its_evidence_and_its_rule() -> None:
    """From, to, when, why, on what evidence, and the rule at fault; the time since then is new."""
    now = follow(follow(Snapshot(epoch=1), at(10.0)), at(20.0, LEAKING))
    (event,) = now.news
    told = event.as_dict()
    assert (told["kind"], told["family"]) == ("verdict", "ipv4")
    assert (told["from"], told["to"]) == ("unlinkable", "predictable by kernel_persistent")
    assert told["time"] == "1970-01-01T00:00:20+00:00"
    assert told["rules_at_fault"] == [RULE]
    assert event.evidence["explained"] == 1.0
    assert event.evidence["same_exit_any"] == 1.0
    assert event.is_bad
    assert now.family_since == {Family.IPV4: 20.0}
    (back,) = follow(now, at(30.0)).news
    assert (back.before, back.after, back.rules) == (event.after, event.before, ())
    assert not back.is_bad


def test_another_reason_is_an_event_and_another_predictor_too() -> None:
    """Unknown for another reason, or predictable by another function, is news."""
    short = report_of("random", verdict=Verdict.UNKNOWN, reasons=(Reason.TOO_FEW_PEERS,))
    lost = report_of("random", verdict=Verdict.UNKNOWN, reasons=(Reason.COVERAGE,))
    (event,) = changes(at(1.0, short), at(2.0, lost))
    assert (event.before, event.after, event.reasons) == ("unknown", "unknown", (Reason.COVERAGE,))
    assert event.is_bad
    (other,) = changes(at(1.0, LEAKING), at(2.0, report_of("persistent", predictor="linear")))
    assert other.after == "predictable by linear"


def test_a_family_that_carries_nothing_is_no_news() -> None:
    """A family without a flow is not told of, until it has one and when it has none any more."""
    idle = report_of("random", verdict=Verdict.UNKNOWN, in_use=False)
    assert list(changes(Snapshot(epoch=1), at(1.0, idle))) == []
    assert len(list(changes(at(1.0, idle), at(2.0)))) == 1
    assert len(list(changes(at(1.0), at(2.0, idle)))) == 1


@pytest.mark.parametrize(("coverage", "news"), [(0.95, 0), (0.9499, 1)])
def test_coverage_is_told_where_it_crosses_what_a_verdict_needs(coverage: float, news: int) -> None:
    """Both ways, and not for each flow that is lost."""
    low = replace(RANDOM, coverage=coverage)
    assert len(list(changes(at(1.0), at(2.0, low)))) == news
    assert len(list(changes(at(1.0, low), at(2.0)))) == news
    assert list(changes(at(1.0, low), at(2.0, replace(low, coverage=coverage - 1e-6 * news)))) == []


CHANGE = Change(Outcome.REDRAWN, 1, 24, 0.0, 0.02, 0.0, None, None, 1.0, 1.0)


def test_epochs_and_what_they_did_are_told() -> None:
    """The number, and for each family what became of the mapping, once."""
    fresh = Snapshot(report=RANDOM, made=2.0, epoch=2)
    (epoch,) = changes(at(1.0), fresh)
    assert (epoch.kind, epoch.family, epoch.before, epoch.after) == (EventKind.EPOCH, None, "1", "2")
    compared = replace(fresh, change={Family.IPV4: CHANGE})
    (did,) = changes(fresh, compared)
    assert (did.family, did.after) == (Family.IPV4, "mapping redrawn")
    assert "drew the mapping anew" in did.why
    assert list(changes(compared, compared)) == []
    early = replace(fresh, change={Family.IPV4: replace(CHANGE, outcome=Outcome.UNKNOWN)})
    assert list(changes(fresh, early)) == []
    assert [event.before for event in changes(early, compared)] == [""]
    later = replace(compared, change={Family.IPV4: replace(CHANGE, since=2)})
    assert len(list(changes(compared, later))) == 1


@pytest.mark.parametrize(
    ("changed", "after", "is_bad"),
    [
        ({"waiting": "no WireGuard interface"}, "no WireGuard interface", True),
        ({"reload": Reload(good=False)}, "configuration refused", True),
        ({"refused_peers": 2}, "2 tunnel addresses without room", True),
        ({"not_understood": 1}, "1 rules not understood", True),
    ],
)
def test_states_are_told_both_ways(changed: dict[str, object], after: str, is_bad: bool) -> None:
    """What is wrong, and that it is over."""
    (event,) = changes(at(1.0), replace(at(2.0), **changed))  # type: ignore[arg-type]
    assert (event.kind, event.after, event.is_bad) == (EventKind.STATE, after, is_bad)
    (over,) = changes(replace(at(1.0), **changed), at(2.0))  # type: ignore[arg-type]
    assert (over.before, over.is_bad) == (after, False)


def test_a_wait_that_goes_on_is_told_once() -> None:
    """Only the seconds differ: no news."""
    waits = [at(float(second), waiting=f"nothing for {second} s") for second in (40, 50)]
    assert list(changes(*waits)) == []


def test_the_history_is_short() -> None:
    """The oldest make room."""
    now = follow(Snapshot(), at(0.0))
    for number in range(1, MAX_EVENTS + 5):
        now = follow(now, at(float(number), (RANDOM, LEAKING)[number % 2]))
    assert len(now.history) == MAX_EVENTS
    assert now.history[-1].at == MAX_EVENTS + 4
    assert now.history[0].at == 5.0


def test_every_event_is_a_line_of_the_log() -> None:
    """With from, to, rule and evidence; what is bad is a warning."""
    stream = io.StringIO()
    logs.configure("aggregator", "json", stream=stream)
    tell(follow(follow(Snapshot(epoch=1), at(10.0)), at(20.0, LEAKING)).news)
    tell([Event(1.0, EventKind.EPOCH, None, "1", "2")])
    bad, plain = map(json.loads, stream.getvalue().splitlines())
    assert (bad["event"], bad["level"], bad["family"]) == ("verdict changed", "warning", "ipv4")
    assert (bad["from"], bad["to"]) == ("unlinkable", "predictable by kernel_persistent")
    assert (bad["rules_at_fault"], bad["explained"]) == (RULE, 1.0)
    assert (plain["event"], plain["level"], plain["to"]) == ("epoch changed", "info", "2")
    assert "family" not in plain


def test_no_address_is_in_an_event() -> None:
    """Neither an exit nor anything of a peer is told, whatever the report has."""
    told = json.dumps([event.as_dict() for event in follow(Snapshot(), at(1.0, LEAKING)).history])
    assert not [exit_ for exit_ in observed("persistent").exits if str(exit_) in told]


def test_a_rule_is_at_fault_where_half_of_its_peers_show_a_leak() -> None:
    """Half is enough, less is not; a harmless verdict has no fault, and a rule without a place no name."""
    (pool,) = family(LEAKING).pools
    half = replace(pool, judged=10, by_verdict={Verdict.PREDICTABLE: 5})
    less = replace(pool, judged=10, by_verdict={Verdict.PREDICTABLE: 4})
    nowhere = replace(half, origin="")
    assert rules_at_fault(replace(family(LEAKING), pools=(half, half, less))) == (RULE,)
    assert rules_at_fault(replace(family(LEAKING), pools=(less, nowhere))) == ()
    assert rules_at_fault(replace(family(RANDOM), pools=(half,))) == ()
