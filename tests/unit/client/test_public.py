# SPDX-License-Identifier: Apache-2.0
"""The report that may be published: bins and floors, and nothing that is of a peer or of the operator."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from detector.base.answers import PublicAnswer
from detector.cli import main
from detector.client import asking
from detector.client.public import binned, public_report, public_text
from detector.config.model import Config
from detector.publish import history
from detector.publish.inspect.handlers import handlers
from detector.publish.snapshot import About, Snapshot
from tools.bench.oncall import snapshot_of


def asked(peers: int = 60, floor: int = 5, **changed: Any) -> tuple[Any, Any]:
    """A status and a history, as they arrive."""
    made = snapshot_of(peers, votes=8)
    now = history.follow(replace(made, report=None, epoch=0), made)
    about = About(Config(relay="se-sto-001", anonymity_floor=floor), "kprobe")
    answers = handlers(lambda: now, lambda: about)
    status, events = (json.loads(json.dumps(answers[name]({}))) for name in ("status", "history"))
    return status | changed, events


def report_of(**options: Any) -> PublicAnswer:
    """The report on it."""
    return public_report(*asked(**options))


@pytest.mark.parametrize(
    ("number", "floor", "said"),
    [
        (0, 5, "fewer than 5"),
        (4, 5, "fewer than 5"),
        (5, 5, "5 to 9"),
        (9, 5, "5 to 9"),
        (10, 5, "10 to 19"),
        (59, 5, "50 to 99"),
        (2160, 5, "2,000 to 4,999"),
        (6, 7, "fewer than 7"),
        (7, 7, "7 to 9"),
        (10, 10, "10 to 19"),
        (1 << 64, 5, "10,000,000,000,000,000,000 to 19,999,999,999,999,999,999"),
    ],
)
def test_bins(number: int, floor: int, said: str) -> None:
    """Below the floor numbers are not told apart; above it a bin holds a range of them."""
    assert binned(number, floor) == said


def test_the_operators_floor_holds_where_it_is_higher() -> None:
    """Five is the least."""
    assert [report_of(floor=floor)["floor"] for floor in (2, 5, 20)] == [5, 5, 20]


def test_shares_and_times_are_coarse() -> None:
    """Steps of five per cent, full hours."""
    report = report_of(since="2026-01-02T03:04:05+00:00", coverage=0.987)
    assert (report["since"], report["coverage"]) == ("2026-01-02 03:00 UTC", 1.0)
    shares = [share for family in report["families"].values() for share in family["contrasts"].values()]
    assert shares
    assert all(share is not None and round(share * 20, 9) % 1 == 0 for share in shares)
    assert re.search(r"\d:\d[1-9]", public_text(report)) is None


def test_shares_of_few_peers_are_left_out() -> None:
    """A share of four peers is a number of peers."""
    status, events = asked()
    for family in status["families"].values():
        family["peers_judged"] = 4
    few = public_report(status, events)["families"]["ipv4"]
    assert (few["leaking_share"], few["contrasts"]) == (None, {})
    status["families"]["ipv6"]["peers_judged"] = 5
    assert public_report(status, events)["families"]["ipv6"]["leaking_share"] is not None


def test_nothing_that_the_service_says_is_passed_on_as_it_is() -> None:
    """Names, addresses, places of rules, paragraphs: planted everywhere, and found nowhere."""
    planted = "peer-xyz 10.64.0.1 203.0.113.7 handle 7"
    status, events = asked()

    def plant(value: Any) -> Any:
        if isinstance(value, str):
            return planted if not re.match(r"\d{4}-\d\d-\d\dT", value) else value
        if isinstance(value, list):
            return [*map(plant, value), planted]
        if isinstance(value, dict):
            return {key: plant(one) for key, one in value.items()}
        return value

    hostile: Any = {**status, **{key: plant(one) for key, one in status.items() if key != "families"}}
    hostile["families"] = {name: plant(one) for name, one in status["families"].items()}
    told: Any = {**events, "events": [plant(event) | {"kind": "verdict"} for event in events["events"]]}
    report = public_report(hostile, told)
    everything = json.dumps(report) + public_text(report)
    assert not [word for word in ("peer-xyz", "10.64", "203.0.113", "handle", "se-sto") if word in everything]


def test_the_text_says_what_it_is_about() -> None:
    """Headline, verdict, families, changes, and that nobody is in it."""
    report = report_of()
    text = public_text(report)
    for part in (
        "Verdict: ",
        "IPv4: ",
        "IPv6: ",
        "peers 50 to 99",
        "same exit to different sites: about ",
        "->",
    ):
        assert part in text
    assert "no peer, address, name or rule" in text
    assert not set(re.findall(r"peer-\d+", text))


def test_without_public_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody publishes by mistake what is for their own eyes."""
    monkeypatch.setattr(asking, "ask", lambda *_, **__: {})
    assert CliRunner().invoke(main, ["report"]).exit_code == 2


def test_before_the_first_report() -> None:
    """Nothing to bin yet."""
    about = About(Config(relay="r"), "")
    answers = handlers(Snapshot, lambda: about)
    status, events = (json.loads(json.dumps(answers[name]({}))) for name in ("status", "history"))
    text = public_text(public_report(status, events))
    assert "since no report" in text
    assert "coverage not known" in text
