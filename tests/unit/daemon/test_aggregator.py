# SPDX-License-Identifier: Apache-2.0
"""The aggregator with its edges in hand: what it does in which order, and what it says of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detector import logs
from detector.base.errors import HostError
from detector.base.family import Family
from detector.base.verdicts import Reason, Verdict
from detector.config.model import Config, Tables
from detector.config.reload import Reload
from detector.config.tls import WebConfig
from detector.daemon import aggregator as room
from detector.daemon.aggregator import Aggregator, Stopped
from detector.daemon.channel import Closed
from detector.daemon.messages import (
    ExitRanges,
    Member,
    Missed,
    NewConfig,
    NewWeb,
    Peers,
    Released,
    Rules,
    State,
    Stop,
)
from detector.publish.inspect.handlers import handlers
from detector.publish.snapshot import samples, status
from tests.unit.daemon.fakes import GONE, Clock, KernelCounts, Link

CONFIG = Config(relay="r", interval=10.0, window=3600.0, tables=Tables(peers=64, panes=4))
STATE = State("", True, 0, 123, {"keys": 1}, 5, 6)
EXITS = [f"203.0.113.{last}" for last in range(1, 9)]
POOL = ExitRanges(Family.IPV4, "here", ((EXITS[0], EXITS[-1]),))


def member(slot: int, name: str = "") -> Member:
    """A peer."""
    return Member(slot, Family.IPV4, False, name or f"peer-{slot}")


class Bench:
    """An aggregator, its sensor's end of the channel, its clock and its kernel."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.clock, self.kernel = Clock(), KernelCounts()
        self.sensor, mine = Link.pair()
        self.link = mine
        self.it = Aggregator(config, "kprobe", self.kernel, mine, self.clock, lambda: 42)

    def tell(self, *messages: Any) -> None:
        """The sensor says something."""
        for message in messages:
            self.sensor.send(message)

    def begin(self, *slots: int, epoch: int = 1) -> None:
        """The sensor has read rules and these peers."""
        self.tell(Rules(epoch, 0, (), (), (POOL,), tuple(map(member, slots))), STATE)

    def flows(self, *slots: int) -> None:
        """Each of these peers spreads over the exits."""
        self.kernel.pending += [(slot, exit_, 1) for slot in slots for exit_ in EXITS]

    def cycle(self, seconds: float = 10.0) -> None:
        """One interval."""
        self.clock.now += seconds
        self.it.cycle()

    @property
    def counted(self) -> int:
        """IPv4 flows in the window."""
        return int(sum(self.it.epoch.observed()[0].observation.flows))

    def metric(self, name: str) -> float:
        """The one sample of a metric."""
        ((_, value),) = samples(self.it.snapshot, self.it.about)[name]
        return value


def test_what_was_told_before_the_drain_is_counted() -> None:
    """Flows of a peer that is told of in the same breath are its own, to the last one."""
    bench = Bench()
    bench.begin(1, 2)
    bench.cycle()
    bench.tell(Peers((member(3),), ()))
    bench.flows(1, 2, 3)
    bench.cycle()
    assert bench.counted == 24
    now = bench.it.snapshot
    assert (now.cycles, now.fill["peers"], now.resident) == (2, 3, {"sensor": 123, "aggregator": 42})
    assert bench.it.ready() == (True, "watching")
    assert bench.it.healthy() == (True, "reports are being made")


def test_a_slot_is_released_after_its_last_flows_were_taken() -> None:
    """Retire: drain, let go, clear, and only then say so; what it did stays in the window."""
    bench = Bench()
    bench.begin(1, 2)
    bench.cycle()
    bench.flows(1)
    bench.tell(Peers((), (1,)))
    bench.kernel.calls.clear()
    bench.flows(1)  # between the message and the drain
    bench.cycle()
    assert bench.kernel.calls == ["drain", "drain", "release [1]"]
    assert bench.link.sent == [Released((1,))]
    assert bench.counted == 16
    bench.flows(1)
    bench.cycle()
    assert bench.counted == 16
    assert samples(bench.it.snapshot, bench.it.about)["events_lost"]
    assert dict(samples(bench.it.snapshot, bench.it.about)["events_lost"])["unattributed",] == 8


def test_a_slot_that_is_used_again_is_somebody_else() -> None:
    """Evidence of two peers that had one slot does not mix."""
    bench = Bench()
    bench.begin(1)
    bench.cycle()
    bench.flows(1)
    bench.cycle()
    bench.tell(Peers((), (1,)))
    bench.cycle()
    bench.tell(Peers((member(1, "peer-new"),), ()))
    bench.kernel.pending = [(1, EXITS[0], 5)]
    bench.cycle()
    (one, _) = bench.it.epoch.observed()
    flows = [0] * one.observation.peers
    for peer, count in zip(one.observation.peer, one.observation.flows, strict=True):
        flows[peer] += int(count)
    assert sorted(zip(bench.it.epoch.roster.pseudonyms(one.rows), flows, strict=True)) == [
        ("peer-1", 8),
        ("peer-new", 5),
    ]


def test_new_rules_begin_with_no_evidence() -> None:
    """An epoch: what was drained before belongs to the old one, the pane jumps, the number is told."""
    bench = Bench()
    bench.begin(1, 2)
    bench.cycle()
    bench.flows(1, 2)
    bench.cycle()
    first, pane = bench.it.epoch, bench.kernel.control[2]
    bench.flows(1)
    bench.tell(Rules(2, 3, (Family.IPV4,), (), (POOL,), (member(1), member(2))), STATE)
    bench.flows(2)  # told of before they were drained: still the old rules'
    bench.cycle()
    assert int(sum(first.observed()[0].observation.flows)) == 32
    assert bench.counted == 0
    assert bench.kernel.control[2] >= pane + CONFIG.tables.panes
    assert (bench.it.epoch.number, bench.it.epoch.ambiguous) == (2, 3)
    assert [one.observation.exclusive_map for one in bench.it.epoch.observed()] == [True, False]
    bench.flows(1)
    bench.cycle()
    assert bench.counted == 8
    assert (bench.metric("rules_epoch"), bench.metric("rules_not_understood")) == (2, 3)


def test_a_prefix_of_any_size_is_a_pool() -> None:
    """A /64 and the whole of IPv6 are two numbers each."""
    bench = Bench()
    wide = ExitRanges(
        Family.IPV6, "x", (("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"), ("fc00::", "fdff::"))
    )
    bench.tell(Rules(1, 0, (), (), (POOL, wide), ()), STATE)
    bench.cycle()
    sizes = [one.observation.pool_sizes for one in bench.it.epoch.observed()]
    assert sizes[0] == (8,)
    assert sizes[1][0] > 1 << 64


def test_panes_turn_and_the_window_forgets() -> None:
    """What is older than the window is gone, and so is who has left."""
    bench = Bench()
    bench.begin(1, 2)
    bench.cycle()
    bench.flows(1)
    bench.tell(Peers((), (1,)))
    bench.cycle()
    for _ in range(6):
        bench.tell(STATE)
        bench.cycle(900.0)
    assert bench.counted == 0
    assert bench.it.epoch.roster.pseudonyms(bench.it.epoch.observed()[0].rows) == ["peer-2"]


def test_a_sensor_that_says_nothing_is_missed_within_three_intervals() -> None:
    """Not ready, unknown since nobody watches, and both metrics say so; after a word from it all is well."""
    bench = Bench()
    bench.begin(*range(1, 41))
    bench.cycle()
    for _ in range(8):
        bench.tell(STATE)
        bench.flows(*range(1, 41))
        bench.cycle()
    seen = bench.metric("sensor_last_seen_timestamp_seconds")
    assert seen == bench.clock.time()
    judged = bench.it.snapshot.report
    assert judged
    bench.cycle()
    bench.cycle()
    assert bench.it.ready() == (True, "watching")
    bench.clock.now += 3.5
    assert bench.it.ready() == (False, "the sensor has said nothing for 24 s")
    bench.cycle(6.0)
    report = bench.it.snapshot.report
    assert report
    assert report.verdict is Verdict.UNKNOWN
    assert all(Reason.NOT_WATCHED in one.reasons for one in report.families.values())
    assert bench.metric("waiting") == 1
    assert bench.metric("sensor_last_seen_timestamp_seconds") == seen
    assert bench.it.healthy()[0]
    bench.tell(STATE)
    bench.cycle()
    assert bench.it.ready() == (True, "watching")
    assert bench.it.snapshot.report
    assert bench.it.snapshot.report.verdict is judged.verdict


def test_what_the_sensor_waits_for_is_told() -> None:
    """Not ready, and why."""
    bench = Bench()
    assert bench.it.ready() == (False, "no report yet")
    bench.cycle()
    assert bench.it.ready() == (False, "no report yet")
    bench.begin(1)
    bench.tell(replace(STATE, waiting="WireGuard interface not there: wg0", watching=False, refused=4))
    bench.cycle()
    assert bench.it.ready() == (False, "WireGuard interface not there: wg0")
    assert (bench.metric("peers_refused"), bench.metric("waiting")) == (4, 1)


def test_a_cycle_that_fails_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report that stands grows old and is said to be, failures are counted, and then it goes on."""
    logs.configure("aggregator", "json")
    bench = Bench()
    bench.begin(1)
    bench.cycle()
    made = bench.it.snapshot.made
    with monkeypatch.context() as broken:
        broken.setattr(room, "judge", None)
        bench.flows(1)
        for _ in range(4):
            bench.tell(STATE)
            bench.cycle()
    assert (bench.it.snapshot.failures, bench.it.snapshot.made) == (4, made)
    assert bench.it.healthy() == (False, "no report for 40 s")
    assert b"What follows is old: no report for 40 s" in bench.it.page(False)
    bench.cycle()
    assert bench.it.healthy()[0]
    assert bench.counted == 8
    assert capsys.readouterr().err.count("a cycle failed") == 4


def test_a_page_is_made_once_for_each_report() -> None:
    """However often it is asked for; another report or another state is another page."""
    bench = Bench()
    bench.begin(1)
    bench.cycle()
    page, reloading = bench.it.page(False), bench.it.page(True)
    assert bench.it.page(False) is page
    assert reloading is not page
    bench.clock.now += 1
    assert bench.it.page(True) is reloading
    bench.clock.now += 60
    late = bench.it.page(False)
    assert late is not page
    assert b"no report for 61 s" in late
    bench.tell(STATE)
    bench.cycle()
    assert bench.it.page(False) not in (page, late)


def test_a_lost_sensor_ends_it() -> None:
    """What was said before is still handled; then it is told that nobody is there."""
    bench = Bench()
    bench.begin(1)
    bench.link.broken = GONE
    with pytest.raises(Closed):
        bench.it.cycle()


def test_it_stops_when_it_is_told() -> None:
    """After what was said before."""
    bench = Bench()
    bench.tell(STATE, Stop())
    with pytest.raises(Stopped):
        bench.it.collect()


def test_another_configuration_is_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    """Interval, floor and log; what was read and when is told."""
    bench = Bench()
    wanted = replace(CONFIG, interval=1.0, relay="other", log_level="debug")
    bench.tell(NewConfig(wanted, Reload(True, 99.0, ("hook",))))
    bench.begin(1)
    bench.cycle()
    assert bench.it.about.config.interval == 1.0
    assert status(bench.it.snapshot, bench.it.about)["relay"] == "other"
    assert bench.metric("config_restart_needed") == 1
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {(line["event"], line["level"]) for line in logged} == {("epoch changed", "info")}


class _Server:
    access: object = "before"


@pytest.mark.parametrize(("made", "after"), [(lambda _: "new", "new"), (None, "before")])
def test_another_web_file_is_taken_over_if_it_can_be(
    monkeypatch: pytest.MonkeyPatch, made: Callable[[object], object] | None, after: str
) -> None:
    """A key that does not fit changes nothing; without a server there is nothing to change."""

    def broken(_: object) -> object:
        raise ValueError

    monkeypatch.setattr(room, "web_access", made or broken)
    bench = Bench()
    bench.tell(NewWeb(WebConfig()))
    bench.it.collect()
    server: Any = _Server()
    bench.it.server = server
    bench.tell(NewWeb(WebConfig()))
    bench.it.collect()
    assert server.access == after


def test_who_comes_back_goes_on_and_begins_a_session() -> None:
    """A slot that is kept has its row again when its address is back."""
    bench = Bench()
    bench.begin(0, 1)
    bench.flows(0, 1)
    bench.cycle()
    bench.tell(Peers((), (), (0,)))
    bench.cycle()
    bench.tell(Peers((member(0),), (), ()))
    bench.flows(0)
    bench.cycle()
    assert "begin [0]" in bench.kernel.calls
    rows = bench.it.epoch.window.total().flows.keys >> np.uint64(32)
    assert (set(rows.tolist()), bench.it.epoch.roster.rows) == ({0}, 2)


def test_the_rehearsal_leaves_nothing_that_needs_a_kernel() -> None:
    """A made-up relay is judged and told of, page, metrics and every answer."""
    bench = Bench()
    room._rehearse(bench.it)
    report = bench.it.snapshot.report
    assert report
    assert report.verdict is not Verdict.UNKNOWN
    answers = handlers(lambda: bench.it.snapshot, lambda: bench.it.about)
    assert "rehearsal" in json.dumps(answers["peers"]({}))
    assert bench.kernel.calls == []


def test_a_stalled_sensor_is_an_error_that_says_so() -> None:
    """What ends the service is one line."""
    bench = Bench()
    bench.link.broken = HostError("the sensor begins a message of 9 bytes")
    with pytest.raises(HostError, match="9 bytes"):
        bench.it.collect()


def test_flows_of_an_interface_that_was_not_watched_yet_are_missed() -> None:
    """What was nobody's while it was there costs coverage; what is nobody's otherwise does not."""
    for said, expected in ((STATE, 1.0), (Missed(), 0.8)):
        bench = Bench()
        bench.begin(1, 2)
        bench.cycle()
        bench.flows(1, 2)
        bench.kernel.strangers = 4
        bench.tell(said)
        bench.cycle()
        assert bench.it.snapshot.report
        assert bench.it.snapshot.report.coverage == expected
