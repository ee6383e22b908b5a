# SPDX-License-Identifier: Apache-2.0
"""How the service's answers read, and what is advised, without a service."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console, RenderableType

from detector.base.answers import SCHEMA_VERSION, PeersAnswer, StatusAnswer
from detector.base.errors import HostError, NotYet, UsageError
from detector.base.family import Family
from detector.base.plain import clean
from detector.base.verdicts import LEAKS, VERDICT_WORDS, VERDICTS, Reason, Verdict
from detector.client import asking, watching
from detector.client.advice import advice_for
from detector.client.checking import check_status
from detector.client.render import (
    explain_view,
    history_view,
    line_of,
    peers_view,
    retention_view,
    status_view,
    watch_view,
)
from detector.config.model import Config
from detector.counts.observing import Flood
from detector.publish import history
from detector.publish.inspect.handlers import handlers
from detector.publish.page import runbooks
from detector.publish.snapshot import About, Snapshot, samples
from tools.bench.oncall import snapshot_of

PEER = "peer-00000007"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PAGE = "http://127.0.0.1:9973"


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    """A relay where every tenth of 60 peers keeps its exit."""
    return snapshot_of(60, votes=8)


def answer(snapshot: Snapshot, request: str, **arguments: Any) -> Any:
    """What the socket would answer, as it arrives."""
    about = About(Config(relay="r"), "kprobe", PAGE)
    return json.loads(json.dumps(handlers(lambda: snapshot, lambda: about)[request](arguments)))


def status_of(snapshot: Snapshot, **changed: Any) -> StatusAnswer:
    """Its status, changed."""
    return cast(StatusAnswer, answer(snapshot, "status") | changed)


def text_of(view: RenderableType, width: int = 120) -> str:
    """What a person sees through a pipe."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_advice(verdict: Verdict) -> None:
    """Each verdict says what to do; a leak names the rules' audit, and every runbook is served."""
    advice = advice_for(status_of(Snapshot(), verdict=verdict.value))
    assert advice.what == VERDICT_WORDS[verdict].first
    assert any(command == "exitprint audit" for command, _ in advice.commands) == (verdict in LEAKS)
    if advice.runbook is not None:
        assert runbooks.named(advice.runbook.removeprefix(PAGE)) is not None


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_advice_and_a_runbook_that_is_served(reason: Reason) -> None:
    """Whatever is in the way of a verdict, a person is told what to do about it."""
    families = {"ipv4": {"unknown_because": [reason.value]}}
    advice = advice_for(status_of(Snapshot(), families=families))
    assert advice.what
    assert advice.commands
    assert runbooks.named(str(advice.runbook).removeprefix(PAGE)) is not None


def test_advice_follows_what_is_in_the_way() -> None:
    """Waiting, rules that are not understood and lost flows each have their own."""
    lost = {"ipv4": {"unknown_because": ["no_flows", "coverage"]}}
    odd = status_of(Snapshot(), verdict="unlinkable", rules_not_understood=1)
    assert "waits" in advice_for(status_of(Snapshot(), waiting="wg0")).what
    assert "not understood" in advice_for(odd).what
    assert "CoverageLow" in str(advice_for(status_of(Snapshot(), families=lost)).runbook)


def test_an_old_report_is_called_old(snapshot: Snapshot) -> None:
    """The age is in the status, and a service that makes no reports is told from one that does."""
    status = status_of(snapshot)
    made = datetime.fromisoformat(str(status["made"]))
    fresh, old = (
        text_of(status_view(status, advice_for(status), made + timedelta(seconds=s))) for s in (33, 34)
    )
    assert "report made 33 s ago;" in fresh
    assert "34 s ago, OLD" in old


def test_a_service_without_a_report_can_be_asked() -> None:
    """Before the first cycle everything has an answer, and a reading."""
    nothing = Snapshot()
    status = status_of(nothing)
    assert "no report yet" in text_of(status_view(status, advice_for(status), NOW))
    assert "0 tunnel addresses" in text_of(peers_view(answer(nothing, "peers"), 80))
    assert "no cycle yet" in text_of(retention_view(answer(nothing, "retention")))
    assert "Nothing changed" in text_of(history_view(answer(nothing, "history"), NOW))
    assert line_of(status, NOW).startswith("2026-01-02T03:04:05+00:00 unknown (epoch 0,")


def test_refused_configuration_is_said(snapshot: Snapshot) -> None:
    """A person sees that the file is not what is in use."""
    status = status_of(snapshot)
    status["configuration"]["last_reload_successful"] = False
    assert "not accepted" in text_of(status_view(status, advice_for(status), NOW))


def test_who_floods_the_tables_is_named_on_the_relay_alone(snapshot: Snapshot) -> None:
    """The status names the peer; the metric says that there is one, and nobody's name."""
    flooded = replace(snapshot, floods=(Flood(Family.IPV4, PEER, 900, 1000),))
    status = status_of(flooded)
    said = text_of(status_view(status, advice_for(status), NOW))
    assert f"IPv4: {PEER} has 90.0% of the flows that the tables had no room for, 900" in said
    told = samples(flooded, About(Config(relay="r"), "kprobe", PAGE))
    assert told["flood"] == [((Family.IPV4,), 1.0), ((Family.IPV6,), 0.0)]
    assert PEER not in str(told)
    calm = status_of(snapshot)
    assert "no room" not in text_of(status_view(calm, advice_for(calm), NOW))


def test_plain_words_come_first_and_since_stands_with_the_verdict(snapshot: Snapshot) -> None:
    """The first line says it without a term; the second has the term and since when."""
    status = status_of(snapshot)
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    status["since"] = since.isoformat()
    later = status_view(status, advice_for(status), since + timedelta(days=2))
    assert "since 2026-01-02 03:04:05 UTC (48 h)" in text_of(later)
    lines = text_of(status_view(status, advice_for(status), since + timedelta(seconds=90))).splitlines()
    assert lines[0] == VERDICT_WORDS[Verdict(status["verdict"])].headline
    assert lines[1] == f"The relay is {status['verdict']} since {since:%H:%M:%S} UTC (90 s)"


@pytest.mark.parametrize("width", [40, 60, 61, 80, 81, 94, 133, 134, 150, 161, 162, 180])
def test_a_pseudonym_is_never_cut(width: int) -> None:
    """However narrow the terminal and however long the words, the name can be copied whole."""
    long = "peer-" + "w" * 19
    peer = {"pseudonym": long, "family": "ipv6", "verdict": "destination_linked", "present": False}
    peer |= {"flows": 12_345_678, "votes": 5, "consistency": 1.0, "same_destination": 1.0, "log10_e": -123.4}
    peer |= {"exit": "2001:db8:1234:5678:9abc:def0:1234:5678", "exit_share": 1.0, "peers_on_exit": 12_345}
    listed = {"peers": [peer], "matching": 1, "peers_with_flows": 1, "sort": "risk"}
    text = text_of(peers_view(cast(PeersAnswer, listed), width), width)
    assert f"{long} (gone)" in text
    assert max(map(len, text.splitlines())) <= width
    assert ("destination_linked" in text) == (width >= 61)
    assert ("A wider terminal" in " ".join(text.split())) == (width < 162)
    assert ("2001:db8:1234:5678:9abc:def0:1234:5678" in text) == (width >= 134)


def test_watch_fits_a_small_terminal(snapshot: Snapshot) -> None:
    """At 80 by 24: verdict, since when, what to do first, its runbook, and what changed last."""
    before = replace(snapshot, report=None, epoch=0)
    now = history.follow(before, replace(snapshot, epoch=1))
    many = replace(now, history=now.history * 40)
    status = status_of(many)
    when = datetime.fromisoformat(str(status["made"]))
    view = watch_view(status, answer(many, "history")["events"], advice_for(status), when)
    text = text_of(view, 80)
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 80
    for part in (status["verdict"], " since ", "What to do first", f"{PAGE}/runbooks/", "IPv6", " → "):
        assert part in text


def test_one_peer_as_a_chart(snapshot: Snapshot) -> None:
    """A pinned peer has one bar and its evidence, one that is not has many; plain bars where asked for."""
    pinned = text_of(explain_view(answer(snapshot, "explain", pseudonym=PEER)))
    other = text_of(explain_view(answer(snapshot, "explain", pseudonym="peer-00000001"), blocks=False))
    assert "IPv4: pinned: it keeps its exit" in pinned
    assert pinned.count("█" * 24) == 2
    assert "would be proof" in pinned
    assert "█" not in other
    assert other.count("#" * 12) > 4


def test_the_beginning_of_a_pseudonym_is_enough(snapshot: Snapshot) -> None:
    """One that nobody else begins with finds the peer; several are named, four at most; none is an error."""
    assert answer(snapshot, "explain", pseudonym=PEER)["pseudonym"] == PEER
    with pytest.raises(UsageError, match=r"several pseudonyms begin so: peer-00000000, .* \.\.\."):
        answer(snapshot, "explain", pseudonym="peer-")
    with pytest.raises(UsageError, match="no peer has this pseudonym"):
        answer(snapshot, "explain", pseudonym="peer-9")
    few = snapshot_of(12)
    assert answer(few, "explain", pseudonym="peer-00000007")["pseudonym"] == "peer-00000007"
    with pytest.raises(UsageError, match="so: peer-00000010, peer-00000011;"):
        answer(few, "explain", pseudonym="peer-0000001")


def test_many_exits_are_summed_up() -> None:
    """The chart has sixteen bars at most, and the others together."""
    many = snapshot_of(30, votes=40)
    assert " others " in text_of(explain_view(answer(many, "explain", pseudonym="peer-00000001")))


@pytest.mark.parametrize(
    ("seconds", "verdict", "waiting", "expected"),
    [
        (33, "unlinkable", "", 0),
        (33, "single_exit", "", 0),
        (33, "session_sticky", "", 0),
        (33, "pinned", "", 1),
        (33, "destination_linked", "", 1),
        (33, "exclusive", "", 2),
        (33, "predictable", "", 2),
        (33, "unknown", "", 3),
        (34, "unlinkable", "", 3),
        (34, "predictable", "", 3),
        (33, "unlinkable", "no WireGuard interface", 3),
    ],
)
def test_the_exit_status_for_scripts(
    snapshot: Snapshot, seconds: int, verdict: str, waiting: str, expected: int
) -> None:
    """Four states; what is old or waits is not known, whatever the verdict was."""
    status = status_of(snapshot, verdict=verdict, waiting=waiting)
    made = datetime.fromisoformat(str(status["made"]))
    assert check_status(status, made + timedelta(seconds=seconds)) == expected


def test_what_arrives_cannot_steer_the_terminal() -> None:
    """Escapes, control characters and marks that turn a line round are replaced, at every depth."""
    hostile = {"re\x1blay": ["a\x1b[2Jb", {"c": "x\u202ey", "n": 5, "none": None}], "ok": "Zürich 日本"}
    harmless = {
        "re\ufffdlay": ["a\ufffd[2Jb", {"c": "x\ufffdy", "n": 5, "none": None}],
        "ok": "Zürich 日本",
    }
    assert clean(hostile) == harmless


def test_a_service_of_another_release_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer in another version is not misread."""
    monkeypatch.setattr(asking, "ask", lambda *_, **__: {"schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(HostError, match="the service speaks version"):
        asking.RunningService(Path("/nowhere")).status()


def one(snapshot: Snapshot, verdict: str, epoch: int, flows: int) -> StatusAnswer:
    """A status with one family."""
    family: dict[str, object] = {
        "verdict": verdict,
        "predictor": None,
        "unknown_because": [],
        "flows": flows,
        "peers": 2,
    }
    status = status_of(snapshot, verdict=verdict, coverage=1.0, families={"ipv4": family})
    status["epoch"]["number"] = epoch
    return status


def test_watch_tells_changes_only() -> None:
    """More flows are no change; a verdict, an epoch and a service that is gone are, once each."""
    nothing = Snapshot()
    seen: list[watching.Now] = [
        one(nothing, "pinned", 1, 5),
        one(nothing, "pinned", 1, 9),
        one(nothing, "unknown", 2, 0),
        "gone",
        "gone",
        one(nothing, "unknown", 2, 3),
    ]
    told = list(watching.changes(iter(seen)))
    assert [seen.index(now) for now in told] == [0, 2, 3, 5]
    line = "unknown (epoch 2, coverage 100.0%; IPv4 unknown, 0 flows of 2 peers)"
    assert line in watching.text_line(told[1])
    assert json.loads(watching.json_line("gone")) == {"error": "gone"}


def test_watch_waits_for_a_service_that_is_away() -> None:
    """An answer that does not come is told and asked for again; a refusal ends it."""
    status = status_of(Snapshot())

    def asks() -> Iterator[Any]:
        yield NotYet("nobody there")
        yield status
        yield HostError("not you")

    ask = asks()

    def once() -> StatusAnswer:
        said = next(ask)
        if isinstance(said, Exception):
            raise said
        return cast(StatusAnswer, said)

    followed = watching.follow(once, 0.0)
    assert list(itertools.islice(followed, 2)) == ["nobody there", status]
    with pytest.raises(HostError):
        next(followed)


def test_watch_on_a_terminal(snapshot: Snapshot) -> None:
    """The live view is the status, and says when the service is away."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    watching.show_live(iter([status_of(snapshot), "nobody there"]), console, list)
    assert isinstance(console.file, io.StringIO)
    assert "What to do first" in console.file.getvalue()
    assert "nobody there" in console.file.getvalue()


def test_runbooks_are_where_the_configuration_says() -> None:
    """One setting moves every link: an operator's own wiki, or the relay's copies where nothing is set."""
    wiki = "https://wiki.example.net/exitprint"
    own = advice_for(status_of(Snapshot(), waiting="WireGuard")).runbook
    named = advice_for({**status_of(Snapshot(), waiting="WireGuard"), "runbooks": wiki}).runbook
    assert str(own).startswith(f"{PAGE}/runbooks/")
    assert named == f"{wiki}/{str(own).rpartition('/')[2]}"
