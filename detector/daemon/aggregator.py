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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from itertools import takewhile
from types import FrameType

from detector import logs
from detector.analysis.observation import PredictorTrials
from detector.analysis.report import Report
from detector.analysis.verdict import judge
from detector.base.errors import EXIT_HOST, UsageError
from detector.base.family import Family, pack
from detector.base.outcomes import Outcome
from detector.config.model import Config
from detector.config.reload import Reload
from detector.config.tls import WebConfig
from detector.counts.canaries import places
from detector.counts.epoch import Epoch, SlotTrials
from detector.counts.load import Load, load_of
from detector.counts.observing import Observed, PoolRanges, floods
from detector.counts.previous_epoch import PreviousEpoch
from detector.counts.roster import Member
from detector.counts.window import Counts, Window
from detector.daemon import codec, messages, privileges, warm_up
from detector.daemon.channel import Channel, Closed, Stalled, aggregator_end
from detector.daemon.codec import Malformed
from detector.daemon.confinement import confine_aggregator
from detector.daemon.counting import SHAPE, KernelCounts
from detector.daemon.edges import Clock, CountsSource, Link
from detector.daemon.memory import resident_bytes
from detector.daemon.messages import (
    AggregatorSpec,
    Alive,
    ExitRanges,
    Missed,
    NewConfig,
    NewWeb,
    Peers,
    PredictorTrial,
    Released,
    Rules,
    State,
    Stop,
    ToAggregator,
    ToSensor,
    Trials,
)
from detector.daemon.notify import BEAT
from detector.kernel.bpf import RunTime
from detector.kernel.drain import Drained
from detector.logs import get_logger
from detector.publish import history
from detector.publish.discretion import discreet
from detector.publish.exporter import Exposition
from detector.publish.http import server as web
from detector.publish.http.listening import page_of
from detector.publish.http.request import Hosts
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
_SILENT = 2  # intervals, and so many seconds more, after which a sensor that says nothing is missed
_SILENT_SECONDS = 3.0


Moment = tuple[Snapshot, About, web.State, web.State]
"""What a page is made from."""


class Stopped(BaseException):
    """A signal or the sensor asks us to end."""


class Aggregator:
    """One relay's counts and what they mean.

    Args:
        config: what the service was told.
        hook: where the kernel program is attached.
        counts: what it counts.
        channel: to the sensor.
        clock: the module `time`.
        resident: bytes of this process in memory.

    Attributes:
        about: what does not change.
        epoch: the evidence under the rules that stand.
        snapshot: what was published last.
        server: what serves the pages, None before it does.
    """

    server: web.Server | None = None

    def __init__(
        self,
        config: Config,
        hook: str,
        counts: CountsSource,
        channel: Link[ToAggregator, ToSensor],
        clock: Clock = time,
        resident: Callable[[], int] = resident_bytes,
    ) -> None:
        self._config = config
        self._counts = counts
        self._channel = channel
        self._clock = clock
        self._resident = resident
        self._pane = 1
        self._state = State("", True, 0, 0, {}, 0, 0)
        self._heard, self._heard_at = clock.monotonic(), clock.time()
        self._reload = Reload(at=clock.time())
        self._before = PreviousEpoch()
        self.epoch = self._new_epoch(0)
        self._set_control()
        self.about = About(config, hook)
        self.snapshot = Snapshot()
        self._good = clock.monotonic()
        self._shown: Moment | None = None
        self._pages: dict[bool, bytes] = {}

    def _new_epoch(self, number: int) -> Epoch:
        """No evidence: a mapping that has changed says nothing of the one before."""
        window = Window(self._config.window, self._config.tables.panes, SHAPE, self._clock.monotonic())
        return Epoch(number, self._clock.time(), window)

    def _set_control(self) -> None:
        self._counts.set_control(self._clock.monotonic(), self._config.session_gap, self._pane)

    def collect(self) -> None:
        """Take over what the kernel counted and what the sensor says.

        The order matters: drain first, then hear. Whoever was counted has been told of by then, because the
        sensor tells of a slot before the kernel counts for it.

        Raises:
            Closed: the sensor is gone.
            Malformed: it says what is no message.
        """
        drained = self._counts.drain()
        received = list(self._channel.receive())
        ahead = list(takewhile(lambda message: not isinstance(message, Rules), received))
        for message in ahead:
            self._add(message)
        self._take(drained, missed=any(isinstance(message, Missed) for message in received))
        for message in ahead:
            self._handle(message)
        for message in received[len(ahead) :]:
            if isinstance(message, Rules):
                self._begin_epoch(message)
            self._add(message)
            self._handle(message)

    def _take(self, drained: Drained, *, missed: bool = False) -> None:
        """Count what was drained; where peers' flows may have passed for nobody's, as unattributed."""
        epoch = self.epoch
        counts = self._counts.attribute(drained, epoch.roster, epoch.exits)
        epoch.window.add(_as_missed(counts) if missed else counts)
        turned = epoch.window.turn(self._clock.monotonic())
        if turned:
            epoch.forget()
            if self._counts.exits_crowded():
                self._counts.renumber_exits()
        self._pane += turned
        self._set_control()

    def _add(self, message: ToAggregator) -> None:
        if isinstance(message, Peers):
            self.epoch.roster.leave(message.left)
        if isinstance(message, Peers | Rules):
            self._counts.begin_sessions(self.epoch.roster.add([_member(one) for one in message.added]))

    def _handle(self, message: ToAggregator) -> None:
        match message:
            case Peers():
                self._retire(message.retired)
            case State():
                self._state = message
                self._heard, self._heard_at = self._clock.monotonic(), self._clock.time()
            case Trials() if message.epoch == self.epoch.number:
                self.epoch.trials = {
                    family: [_trial(one) for one in message.trials if one.family is family]
                    for family in Family
                }
            case NewWeb():
                self._let_in(message.config)
            case NewConfig():
                self._adopt(message.config, message.reload)
            case Stop():
                raise Stopped

    def _let_in(self, config: WebConfig) -> None:
        """Go on with another `web_config_file`, which the sensor has read."""
        if self.server is None:
            return
        try:
            self.server.access = web_access(config)
        except (OSError, ValueError) as error:
            _log.error("web_config_file was not reloaded, what was there stands", reason=type(error).__name__)

    def _adopt(self, config: Config, reload: Reload) -> None:
        """Go on with another configuration; the sensor has seen to it that it differs in nothing fixed."""
        if (config.log_format, config.log_level) != (self._config.log_format, self._config.log_level):
            logs.configure("aggregator", config.log_format, config.log_level)
        self._config, self._reload = config, reload
        self.about = replace(self.about, config=config)

    def _retire(self, slots: Sequence[int]) -> None:
        """The kernel counts for these slots no more: take the last counts over and let the slots go."""
        if slots:
            self._take(self._counts.drain())
            self.epoch.roster.retire(slots)
            self._before.release(slots)
            self._counts.release(slots)
            self._channel.post(Released(tuple(slots)))

    def _begin_epoch(self, message: Rules) -> None:
        """The rules have changed; what was counted until now is the old mapping's."""
        self._counts.renumber_exits()  # there may be others now, and those of before give room
        self._take(self._counts.drain())
        ended = self.epoch
        until = self._clock.monotonic() + self._config.window
        self._before.remember(ended.observed(), ended.roster, ended.pools, ended.number, until)
        self.epoch = self._new_epoch(message.epoch)
        self._pane += self._config.tables.panes  # so that the kernel's memories hold nothing that is current
        self._set_control()
        self.epoch.ambiguous = message.ambiguous
        self.epoch.exclusive = frozenset(message.exclusive)
        self.epoch.lasting = frozenset(message.lasting)
        self.epoch.pools = [_pool(told) for told in message.pools]

    def cycle(self) -> None:
        """Collect, judge, publish.

        A fault in judging does not end the watch: the report that stands grows old, and says so. One in
        collecting does, since what was taken from the kernel is lost then.

        Raises:
            Closed: the sensor is gone.
            Malformed: it says what is no message.
        """
        started = self._clock.monotonic()
        self.collect()
        collected = self._clock.monotonic()
        try:
            self._judge(started, collected)
            history.tell(self.snapshot.news)
        except Exception:
            self.snapshot = replace(self.snapshot, failures=self.snapshot.failures + 1)
            _log.error("a cycle failed", exc_info=True)

    def _judge(self, started: float, collected: float) -> None:
        counts = self.epoch.window.total()
        observed = self.epoch.observed(counts)
        watching = self._state.watching and not self._silence()
        report = judge([one.observation for one in observed], watching=watching)
        judged = self._clock.monotonic()
        self._publish(report, observed, counts, {"collect": collected - started, "judge": judged - collected})

    def _silence(self) -> str:
        """That the sensor says nothing any more, empty while it does.

        It follows WireGuard and the rules: without it, what is counted may be of other rules, or nobody's.
        """
        silent = self._clock.monotonic() - self._heard
        if silent <= _SILENT * self._config.interval + _SILENT_SECONDS:
            return ""
        return f"the sensor has said nothing for {silent:.0f} s"

    def _publish(
        self, report: Report, observed: list[Observed], counts: Counts, durations: Mapping[str, float]
    ) -> None:
        self._good = self._clock.monotonic()
        fill = self._counts.take_fill()
        before, epoch, told = self.snapshot, self.epoch, self._state
        now = self._clock.time()
        since = before.since if before.report and before.report.verdict is report.verdict else now
        made = Snapshot(
            report=report,
            since=since,
            made=now,
            cycles=before.cycles + 1,
            failures=before.failures,
            durations=durations,
            outcomes=self._counts.outcomes(),
            drained_rows=self._counts.drained_rows,
            fill={**fill, "peers": epoch.roster.present, "window": len(counts.flows)},
            refused_peers=told.refused,
            resident={"sensor": told.resident, "aggregator": self._resident()},
            run_time=RunTime(told.runs, told.run_nanoseconds),
            loads={one.observation.family: self._load(one) for one in observed},
            epoch=epoch.number,
            epoch_since=epoch.since,
            change=self._before.compare(
                observed, epoch.roster, epoch.pools, epoch.number, self._clock.monotonic()
            ),
            not_understood=epoch.ambiguous,
            waiting=self._silence() or told.waiting,
            sensor_seen=self._heard_at,
            reload=self._reload,
            peers=self._views(report, observed),
            holds=self._holds(fill),
            canaries=places(counts, epoch.roster, epoch.exits, epoch.pools),
            floods=floods(counts, epoch.roster),
        )
        self.snapshot = history.follow(before, made)

    def _load(self, one: Observed) -> Load:
        """How flows are spread over the exits of a family, as everybody may see it."""
        floor = self._config.anonymity_floor
        return discreet(load_of(one.observation, self.epoch.pools, floor), floor)

    def _views(self, report: Report, observed: list[Observed]) -> tuple[PeerView, ...]:
        """The peers, as references to what was judged."""
        judged = [(one, report.families[one.observation.family]) for one in observed]
        roster = self.epoch.roster
        return tuple(
            PeerView(one, family, family.columns, roster.names, roster.are_present(one.rows))
            for one, family in judged
            if family.columns is not None
        )

    def _holds(self, fill: Mapping[str, int]) -> tuple[Holding, ...]:
        epoch, kept = self.epoch, len(self._before)
        held = epoch.window.held(self._clock.monotonic())
        return holdings(
            self._config,
            self._state.held,
            epoch.roster,
            epoch.exits,
            held,
            fill,
            kept,
            len(self.snapshot.history),
        )

    def rehearse(self) -> None:
        """Judge a relay that is made up, so that all that this needs is imported; nothing is to be kept.

        Only for an aggregator that is thrown away. It takes no counts from the kernel.
        """
        self.epoch.pools = warm_up.pools()
        self.epoch.roster.add(warm_up.members())
        self._take(warm_up.drained())
        self.epoch.window.add(warm_up.evidence(SHAPE))
        started = self._clock.monotonic()
        epoch, until = self.epoch, started + self._config.window
        self._before.remember(epoch.observed(), epoch.roster, epoch.pools, 0, until)
        self._judge(started, started)

    def healthy(self) -> web.State:
        """Whether reports are being made."""
        age = self._clock.monotonic() - self._good
        late = age > _LATE * self._config.interval + _LATE
        return not late, f"no report for {age:.0f} s" if late else "reports are being made"

    def ready(self) -> web.State:
        """Whether there is a report, nothing is waited for, and the sensor lives."""
        waiting = self._silence() or self.snapshot.waiting
        if self.snapshot.report is None or not self.snapshot.epoch:
            return False, waiting or "no report yet"
        return not waiting, waiting or "watching"

    def page(self, refreshing: bool) -> bytes:
        """The status page; the same object as long as nothing has changed."""
        moment = self.snapshot, self.about, self.healthy(), self.ready()
        if not _same(moment, self._shown):
            self._shown, self._pages = moment, {}
        if refreshing not in self._pages:
            view = View(*moment, self._clock.time(), refreshing)
            self._pages[refreshing] = render(view).encode()
        return self._pages[refreshing]


def _same(one: Moment, other: Moment | None) -> bool:
    """Whether two moments are one: snapshots are compared by identity, they are never changed."""
    return other is not None and one[0] is other[0] and one[1] is other[1] and one[2:] == other[2:]


def _as_missed(counts: Counts) -> Counts:
    """The same, with what was nobody's as unattributed."""
    outcomes = counts.outcomes.copy()
    outcomes[:, Outcome.UNATTRIBUTED] += outcomes[:, Outcome.NOT_A_PEER]
    outcomes[:, Outcome.NOT_A_PEER] = 0
    return replace(counts, outcomes=outcomes)


def _member(told: messages.Member) -> Member:
    return Member(told.slot, told.family, told.is_network, told.pseudonym)


def _trial(told: PredictorTrial) -> SlotTrials:
    sums = PredictorTrials(told.predictor, told.rule, told.tried, told.hit, told.chance, told.hypotheses)
    return SlotTrials(sums, told.flagged)


def _pool(told: ExitRanges) -> PoolRanges:
    ends = [(ip_address(first), ip_address(last)) for first, last in told.ranges]
    size = sum(int(last) - int(first) + 1 for first, last in ends)
    return PoolRanges(
        told.family, size, tuple((pack(first), pack(last)) for first, last in ends), told.origin
    )


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.alarm(_PATIENCE)  # the kernel ends us then, whatever hinders us
    raise Stopped


def main(descriptor: int) -> int:
    """Run until a signal or until the sensor ends; returns the exit status."""
    with os.fdopen(descriptor, "rb") as file:
        spec = codec.decode(AggregatorSpec, file.read())
    logs.configure("aggregator", spec.config.log_format, spec.config.log_level)
    parent = os.getppid()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what came before is heard now
        _watch(spec)
    except Stopped:
        if os.getppid() == parent:
            return 0
        _log.error("the service ends", reason="the sensor has ended")
    except (Closed, Stalled, Malformed) as error:
        _log.error("the service ends", reason=error.what)
    return EXIT_HOST


def _watch(spec: AggregatorSpec) -> None:
    """Give up root's rights, serve, and go on until something ends it.

    Raises:
        Stopped: we were asked to end.
        Closed, Stalled, Malformed: the sensor is gone, takes in nothing, or says what is no message.
    """
    config = spec.config
    channel = aggregator_end(socket.socket(fileno=spec.channel), config.tables.peers)
    access = None if spec.web is None else web_access(spec.web)
    _rehearse(Aggregator(config, spec.hook, KernelCounts(spec.maps, config.tables), channel))
    privileges.drop_privileges(spec.user)
    privileges.disable_core_dumps()
    privileges.die_with_parent()
    aggregator = Aggregator(config, spec.hook, KernelCounts(spec.maps, config.tables), channel)
    pages = _pages(aggregator)
    listener = socket.socket(fileno=spec.listener)
    page = page_of(listener, secured=access is not None and access.context is not None)
    aggregator.about = replace(aggregator.about, page=page)
    confine_aggregator()  # before there are threads
    aggregator.server = web.serve(listener, pages, access, hosts_of(config))
    if spec.inspect is not None:
        who = Access(spec.access.owner, spec.access.group, spec.access.mode)
        inspect.serve(socket.socket(fileno=spec.inspect), _answers(aggregator), who)
    _loop(aggregator, channel)


def hosts_of(config: Config) -> Hosts:
    """The names by which we may be asked: the host's own, the relay's, and those of the configuration."""
    own = socket.gethostname()
    return Hosts(
        frozenset(name.lower() for name in (own, own.partition(".")[0], config.relay, *config.hosts))
    )


def web_access(config: WebConfig) -> web.Access:
    """Who may come in, as `web_config_file` says it."""
    from detector.publish.http.access import WebAccess  # noqa: PLC0415  (5 MB that only this case needs)

    return WebAccess(config)


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


def _loop(aggregator: Aggregator, channel: Channel[ToAggregator, ToSensor]) -> None:
    following = time.monotonic()
    while True:
        aggregator.cycle()
        following = max(following + aggregator.about.config.interval, time.monotonic())
        channel.post(Alive())
        while (left := following - time.monotonic()) > 0:
            posting = [channel] if channel.is_posting else []
            readable, writable, _ = select.select([channel], posting, [], min(left, BEAT))
            if not readable and not writable:
                channel.post(Alive())
            if writable:
                channel.flush()
            if readable:
                aggregator.collect()


if __name__ == "__main__":
    logs.leave(main(int(sys.argv[1])))
