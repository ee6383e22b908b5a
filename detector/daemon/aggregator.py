# SPDX-License-Identifier: Apache-2.0
"""The aggregator: drains the kernel's counts, keeps the window, runs the analysis, and publishes the report.

It runs as a user of its own, with no capability, and is never told a key or a tunnel address. Everything that
people see is made from its `Snapshot`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from types import FrameType
from typing import Any

from detector import logs
from detector.analysis.report import Report
from detector.analysis.verdict import judge
from detector.base.errors import EXIT_HOST, UsageError
from detector.base.family import Family
from detector.config.model import Config
from detector.config.reload import Reload
from detector.config.tls import WebConfig
from detector.counts.canaries import places
from detector.counts.load import load_of
from detector.counts.observing import Observed, PoolRanges, observe
from detector.counts.previous_epoch import PreviousEpoch
from detector.counts.roster import Exits, Member, Roster
from detector.counts.window import Counts, Window
from detector.daemon import privileges, warm_up
from detector.daemon.channel import Channel, Closed, Message
from detector.daemon.counting import SHAPE, KernelCounts
from detector.daemon.memory import resident_bytes
from detector.kernel import bpf
from detector.kernel.drain import Drained
from detector.kernel.tables import set_control
from detector.logs import get_logger
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.inspect import socket as inspect
from detector.publish.inspect.access import Access
from detector.publish.inspect.handlers import handlers
from detector.publish.page.render import View, render
from detector.publish.peers import PeerView
from detector.publish.retention import Holding, holdings
from detector.publish.snapshot import About, Snapshot, samples

_log = get_logger()

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 1  # seconds that ending may take
_LATE = 3  # intervals without a good cycle after which the service is not healthy


class Stopped(BaseException):
    """A signal or the sensor asks us to end."""


class Aggregator:
    """One relay's counts and what they mean.

    Attributes:
        about: what does not change.
        roster: the peers by row.
        snapshot: what was published last.
        server: what serves the pages, None before it does.
    """

    server: web.Server | None = None

    def __init__(self, config: Config, maps: Mapping[str, int], channel: Channel, hook: str) -> None:
        self._config = config
        self._maps = maps
        self._channel = channel
        self._pane = 1
        self._pools: list[PoolRanges] = []
        self._exclusive: frozenset[Family] = frozenset()
        self._epoch, self._epoch_since = 0, time.time()
        self._not_understood = self._refused = self._sensor_rss = 0
        self._waiting, self._watching = "", True
        self._reload = Reload(at=time.time())
        self._sensor_holds: Mapping[str, int] = {}
        self._counts = KernelCounts(maps, config.tables)
        self._before = PreviousEpoch()
        self._forget()
        self._set_control()
        self.about = About(config, hook)
        self.snapshot = Snapshot()
        self._good = time.monotonic()

    def _forget(self) -> None:
        """Begin with no evidence: a mapping that has changed says nothing of the one before."""
        self._exits = Exits()
        self.roster = Roster(self._exits)
        self._window = Window(self._config.window, self._config.tables.panes, SHAPE, time.monotonic())

    def _set_control(self) -> None:
        set_control(self._maps, time.monotonic(), self._config.session_gap, self._pane)

    def collect(self) -> None:
        """Take over what the kernel counted and what the sensor says.

        The order matters: drain first, then hear. Whoever was counted has been told of by then, because the
        sensor tells of a slot before the kernel counts for it.

        Raises:
            Closed: the sensor is gone.
        """
        drained = self._counts.drain()
        messages = list(self._channel.receive())
        ahead = list(takewhile(lambda message: message["kind"] != "rules", messages))
        for message in ahead:
            self._add(message)
        self._take(drained)
        for message in ahead:
            self._hear(message)
        for message in messages[len(ahead) :]:
            if message["kind"] == "rules":
                self._begin_epoch(message)
            self._add(message)
            self._hear(message)

    def _take(self, drained: Drained) -> None:
        self._window.add(self._counts.attribute(drained, self.roster, self._exits))
        turned = self._window.turn(time.monotonic())
        if turned:
            self.roster.forget(self._window.rows())
        self._pane += turned
        self._set_control()

    def _add(self, message: Message) -> None:
        self.roster.add([_member(row) for row in message.get("added", ())])

    def _hear(self, message: Message) -> None:
        if message["kind"] == "peers":
            self._retire(message["retired"])
        elif message["kind"] == "state":
            self._waiting, self._refused = message["waiting"], message["refused"]
            self._watching = message["watching"]
            self._sensor_rss, self._sensor_holds = message["rss"], message.get("holds", {})
        elif message["kind"] == "web":
            self._let_in(message["config"])
        elif message["kind"] == "config":
            self._adopt(Config.from_json(message["config"]), Reload.of(message["reload"]))
        elif message["kind"] == "stop":
            raise Stopped

    def _let_in(self, told: Mapping[str, Any]) -> None:
        """Go on with another `web_config_file`, which the sensor has read."""
        if self.server is None:
            return
        try:
            self.server.access = _access(told)
        except (OSError, ValueError) as error:
            _log.error("web_config_file was not reloaded, what was there stands", reason=type(error).__name__)

    def _adopt(self, config: Config, reload: Reload) -> None:
        """Go on with another configuration; the sensor has seen to it that it differs in nothing fixed."""
        if (config.log_format, config.log_level) != (self._config.log_format, self._config.log_level):
            logs.configure("aggregator", config.log_format, config.log_level)
        self._config, self._reload = config, reload
        self.about = replace(self.about, config=config)

    def _retire(self, slots: list[int]) -> None:
        """The kernel counts for these slots no more: take the last counts over and let the slots go."""
        if slots:
            self._take(self._counts.drain())
            self.roster.retire(slots)
            self._before.release(slots)
            self._counts.release(slots)
            self._channel.send({"kind": "released", "slots": slots})

    def _begin_epoch(self, message: Message) -> None:
        """The rules have changed; what was counted until now is the old mapping's."""
        self._take(self._counts.drain())
        until = time.monotonic() + self._config.window
        self._before.remember(self.observed(), self.roster, self._pools, self._epoch, until)
        self._forget()
        self._pane += self._config.tables.panes  # so that the kernel's memories hold nothing that is current
        self._set_control()
        self._epoch, self._epoch_since = message["epoch"], time.time()
        self._not_understood = message["not_understood"]
        self._exclusive = frozenset(map(Family, message["exclusive"]))
        self._pools = [PoolRanges.of(told) for told in message["pools"]]

    def cycle(self) -> None:
        """Collect, judge, publish.

        A fault in judging does not end the watch: the report that stands grows old, and says so. One in
        collecting does, since what was taken from the kernel is lost then.

        Raises:
            Closed: the sensor is gone.
        """
        started = time.monotonic()
        self.collect()
        collected = time.monotonic()
        try:
            self._judge(started, collected)
        except Exception:
            self.snapshot = replace(self.snapshot, failures=self.snapshot.failures + 1)
            _log.error("a cycle failed", exc_info=True)

    def _judge(self, started: float, collected: float) -> None:
        counts = self._window.total()
        observed = self.observed(counts)
        report = judge([one.observation for one in observed], watching=self._watching)
        judged = time.monotonic()
        self._publish(report, observed, counts, {"collect": collected - started, "judge": judged - collected})

    def observed(self, counts: Counts | None = None) -> list[Observed]:
        """What the analysis is told of each family: the window as it is now, unless its counts are given."""
        counts = counts or self._window.total()
        return [
            observe(
                family, counts, self.roster, self._exits, self._pools, exclusive=family in self._exclusive
            )
            for family in Family
        ]

    def _publish(
        self, report: Report, observed: list[Observed], counts: Counts, durations: Mapping[str, float]
    ) -> None:
        self._good = time.monotonic()
        fill = self._counts.take_fill()
        before = self.snapshot
        since = before.since if before.report and before.report.verdict is report.verdict else time.time()
        self.snapshot = Snapshot(
            report=report,
            since=since,
            made=time.time(),
            cycles=before.cycles + 1,
            failures=before.failures,
            durations=durations,
            outcomes=self._counts.outcomes(),
            drained_rows=self._counts.drained_rows,
            fill={**fill, "peers": self.roster.present, "window": len(counts.pairs.keys)},
            refused_peers=self._refused,
            resident={"sensor": self._sensor_rss, "aggregator": resident_bytes()},
            run_time=bpf.run_time(self._maps["program"]),
            loads={
                one.observation.family: load_of(one.observation, self._pools, self._config.anonymity_floor)
                for one in observed
            },
            epoch=self._epoch,
            epoch_since=self._epoch_since,
            change=self._before.compare(observed, self.roster, self._pools, self._epoch, time.monotonic()),
            not_understood=self._not_understood,
            waiting=self._waiting,
            reload=self._reload,
            peers=self._views(report, observed),
            holds=self._holds(fill),
            canaries=places(counts, self.roster, self._exits, self._pools),
        )

    def _views(self, report: Report, observed: list[Observed]) -> tuple[PeerView, ...]:
        """The peers, as references to what was judged."""
        judged = [(one, report.families[one.observation.family]) for one in observed]
        return tuple(
            PeerView(one, family, family.columns, self.roster.names, self.roster.are_present(one.rows))
            for one, family in judged
            if family.columns is not None
        )

    def _holds(self, fill: Mapping[str, int]) -> tuple[Holding, ...]:
        held = self._window.held(time.monotonic())
        kept = len(self._before)
        return holdings(self._config, self._sensor_holds, self.roster, self._exits, held, fill, kept)

    def rehearse(self) -> None:
        """Judge a relay that is made up, so that all that this needs is imported; nothing is to be kept.

        Only for an aggregator that is thrown away. It takes no counts from the kernel.
        """
        self._pools = warm_up.pools()
        self.roster.add(warm_up.members())
        self._take(warm_up.drained())
        started = time.monotonic()
        self._before.remember(self.observed(), self.roster, self._pools, 0, started + self._config.window)
        self._judge(started, started)

    def healthy(self) -> web.State:
        """Whether reports are being made."""
        age = time.monotonic() - self._good
        late = age > _LATE * self._config.interval + _LATE
        return not late, f"no report for {age:.0f} s" if late else "reports are being made"

    def ready(self) -> web.State:
        """Whether there is a report and nothing is waited for."""
        if self.snapshot.report is None or not self.snapshot.epoch:
            return False, self.snapshot.waiting or "no report yet"
        return not self.snapshot.waiting, self.snapshot.waiting or "watching"

    def page(self, refreshing: bool) -> str:
        """The status page."""
        view = View(self.snapshot, self.about, self.healthy(), self.ready(), time.time(), refreshing)
        return render(view)


def _member(row: list[Any]) -> Member:
    slot, family, is_network, pseudonym, predictions = row
    return Member(slot, Family(family), is_network, pseudonym, predictions)


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(_PATIENCE)  # the kernel ends us then, whatever hinders us
    raise Stopped


def main(descriptor: int) -> int:
    """Run until a signal or until the sensor ends; returns the exit status."""
    with os.fdopen(descriptor) as file:
        spec = json.load(file)
    config = Config.from_json(spec["config"])
    logs.configure("aggregator", config.log_format, config.log_level)
    parent = os.getppid()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        _watch(spec, config)
    except Stopped:
        if os.getppid() == parent:
            return 0
        _log.error("the service ends", reason="the sensor has ended")
    except Closed as closed:
        _log.error("the service ends", reason=closed.what)
    return EXIT_HOST


def _watch(spec: dict[str, Any], config: Config) -> None:
    """Give up root's rights, serve, and go on until something ends it.

    Raises:
        Stopped: we were asked to end.
        Closed: the sensor is gone.
    """
    channel = Channel(socket.socket(fileno=spec["channel"]), "sensor")
    access = None if spec["web"] is None else _access(spec["web"])
    _rehearse(Aggregator(config, spec["maps"], channel, spec["hook"]))
    privileges.drop_privileges(spec["user"])
    privileges.disable_core_dumps()
    privileges.die_with_parent()
    aggregator = Aggregator(config, spec["maps"], channel, spec["hook"])
    pages = _pages(aggregator)
    aggregator.server = web.serve(socket.socket(fileno=spec["listener"]), pages, access)
    if spec["inspect"] is not None:
        inspect.serve(socket.socket(fileno=spec["inspect"]), _answers(aggregator), Access(**spec["access"]))
    _loop(aggregator, channel)


def _access(told: Mapping[str, Any]) -> web.Access:
    from detector.publish.http.access import WebAccess  # noqa: PLC0415  (5 MB that only this case needs)

    return WebAccess(WebConfig.of(told))


def _pages(aggregator: Aggregator) -> web.Pages:
    return web.Pages(
        Exposition(lambda: (aggregator.snapshot, aggregator.about), samples),
        aggregator.healthy,
        aggregator.ready,
        aggregator.page,
    )


def _answers(aggregator: Aggregator) -> dict[str, inspect.Answer]:
    return handlers(lambda: aggregator.snapshot, lambda: aggregator.about)


def _rehearse(aggregator: Aggregator) -> None:
    """Judge and tell all that there is to tell, once, while everything can still be imported."""
    aggregator.rehearse()
    web.rehearse(_pages(aggregator))
    for answer in _answers(aggregator).values():
        with contextlib.suppress(UsageError):  # one that wants arguments
            json.dumps(answer({}))


def _loop(aggregator: Aggregator, channel: Channel) -> None:
    following = time.monotonic()
    while True:
        aggregator.cycle()
        following = max(following + aggregator.about.config.interval, time.monotonic())
        while (left := following - time.monotonic()) > 0:
            if select.select([channel], [], [], left)[0]:
                aggregator.collect()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
