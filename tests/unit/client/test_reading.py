# SPDX-License-Identifier: Apache-2.0
"""How the service's answers read, and what is advised, without a service."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from detector.base.errors import HostError, NotYet
from detector.base.verdicts import VERDICTS
from detector.client import watching
from detector.client.advice import advice_for
from detector.client.render import explain_view, holds_view, line_of, peers_view, status_view
from detector.config.model import Config
from detector.publish.inspect.handlers import handlers
from detector.publish.snapshot import About, Snapshot
from tools.bench.oncall import snapshot_of

PEER = "peer-00000007"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    """A relay where every tenth of 60 peers keeps its exit."""
    return snapshot_of(60, votes=8)


def answer(snapshot: Snapshot, request: str, **arguments: Any) -> dict[str, Any]:
    """What the socket would answer, as it arrives."""
    made = handlers(lambda: snapshot, lambda: About(Config(relay="r"), "kprobe"))[request](arguments)
    arrived = json.loads(json.dumps(made))
    assert isinstance(arrived, dict)
    return arrived


def text_of(view: RenderableType, width: int = 120) -> str:
    """What a person sees through a pipe."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_advice(verdict: str) -> None:
    """Each verdict says what to do; a leak names the rules' audit, and every runbook is a file."""
    advice = advice_for({"verdict": verdict, "families": {}})
    assert advice.what
    leaks = verdict in {"predictable", "exclusive", "pinned", "destination_linked"}
    assert any(command == "exitprint audit" for command, _ in advice.commands) == leaks
    assert advice.runbook is None or Path(advice.runbook).is_file()


def test_advice_follows_what_is_in_the_way() -> None:
    """Waiting, rules that are not understood and lost flows each have their own."""
    lost = {"ipv4": {"unknown_because": ["coverage"]}}
    assert "waits" in advice_for({"verdict": "unknown", "waiting": "wg0", "families": {}}).what
    assert "not understood" in advice_for({"verdict": "unlinkable", "rules_not_understood": 1}).what
    assert "CoverageLow" in str(advice_for({"verdict": "unknown", "families": lost}).runbook)


def test_an_old_report_is_called_old(snapshot: Snapshot) -> None:
    """The age is in the status, and a service that makes no reports is told from one that does."""
    status = answer(snapshot, "status")
    made = datetime.fromisoformat(status["made"])
    fresh, old = (
        text_of(status_view(status, advice_for(status), made + timedelta(seconds=s))) for s in (4, 100)
    )
    assert "report made 4 s ago" in fresh
    assert ("OLD" in fresh, "100 s ago, OLD" in old) == (False, True)


def test_a_service_without_a_report_can_be_asked() -> None:
    """Before the first cycle everything has an answer, and a reading."""
    nothing = Snapshot()
    status = answer(nothing, "status")
    assert "no report yet" in text_of(status_view(status, advice_for(status), NOW))
    assert "0 tunnel addresses" in text_of(peers_view(answer(nothing, "peers")))
    assert "no cycle yet" in text_of(holds_view(answer(nothing, "holds")))
    assert line_of(status, NOW).startswith("2026-01-02T03:04:05+00:00 unknown (epoch 0,")


def test_refused_configuration_is_said(snapshot: Snapshot) -> None:
    """A person sees that the file is not what is in use."""
    status = answer(snapshot, "status")
    status["configuration"]["last_reload_successful"] = False
    assert "not accepted" in text_of(status_view(status, advice_for(status), NOW))


def test_one_peer_as_a_chart(snapshot: Snapshot) -> None:
    """A pinned peer has one bar and its evidence, one that is not has many; plain bars where asked for."""
    pinned = text_of(explain_view(answer(snapshot, "explain", pseudonym=PEER)))
    other = text_of(explain_view(answer(snapshot, "explain", pseudonym="peer-00000001"), blocks=False))
    assert "IPv4: pinned: it keeps its exit" in pinned
    assert pinned.count("█" * 30) == 2
    assert "would be proof" in pinned
    assert "█" not in other
    assert other.count("#" * 15) > 4


def test_many_exits_are_summed_up() -> None:
    """The chart has sixteen bars at most, and the others together."""
    many = snapshot_of(30, votes=40)
    assert " others " in text_of(explain_view(answer(many, "explain", pseudonym="peer-00000001")))


def test_watch_tells_changes_only() -> None:
    """More flows are no change; a verdict, an epoch and a service that is gone are, once each."""

    def one(verdict: str, epoch: int, flows: int) -> dict[str, Any]:
        family: dict[str, Any] = {
            "verdict": verdict,
            "predictor": None,
            "unknown_because": [],
            "flows": flows,
            "peers": 2,
        }
        head = {"verdict": verdict, "predictor": None, "waiting": "", "rules_not_understood": 0}
        return head | {"coverage": 1.0, "epoch": {"number": epoch}, "families": {"ipv4": family}}

    seen: list[watching.Now] = [
        one("pinned", 1, 5),
        one("pinned", 1, 9),
        one("unknown", 2, 0),
        "gone",
        "gone",
        one("unknown", 2, 3),
    ]
    told = list(watching.changes(iter(seen)))
    assert [seen.index(now) for now in told] == [0, 2, 3, 5]
    assert "unknown (epoch 2, coverage 100.0%; IPv4 unknown, 0 flows of 2 peers)" in watching.text_line(
        told[1]
    )
    assert json.loads(watching.json_line("gone")) == {"error": "gone"}


def test_watch_waits_for_a_service_that_is_away() -> None:
    """An answer that does not come is told and asked for again; a refusal ends it."""

    def asks() -> Iterator[Any]:
        yield NotYet("nobody there")
        yield {"verdict": "unknown"}
        yield HostError("not you")

    ask = asks()

    def once() -> dict[str, Any]:
        said = next(ask)
        if isinstance(said, Exception):
            raise said
        assert isinstance(said, dict)
        return said

    followed = watching.follow(once, 0.0)
    assert list(itertools.islice(followed, 2)) == ["nobody there", {"verdict": "unknown"}]
    with pytest.raises(HostError):
        next(followed)


def test_watch_on_a_terminal(snapshot: Snapshot) -> None:
    """The live view is the status, and says when the service is away."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    watching.show_live(iter([answer(snapshot, "status"), "nobody there"]), console)
    assert isinstance(console.file, io.StringIO)
    assert "What to do" in console.file.getvalue()
    assert "nobody there" in console.file.getvalue()
