# SPDX-License-Identifier: Apache-2.0
"""The sensor: the one process that knows peers. It listens on nothing and keeps CAP_NET_ADMIN alone.

It reads WireGuard and the NAT rules, keeps the kernel's tables of tunnel addresses and pools current, and
tells the aggregator slots, pseudonyms and how well predictors of the address do. It is the service's main
process: `start` becomes it, and the aggregator is its child.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from detector import logs
from detector.base.errors import EXIT_HOST, ExitprintError
from detector.config.follow import WebFollower
from detector.config.model import Config
from detector.config.reload import Merged, Reload, SighupPipe, merge, read_config
from detector.daemon import codec, legacy, privileges
from detector.daemon.channel import Channel, Closed, Stalled, TooLong, sensor_end
from detector.daemon.codec import Malformed
from detector.daemon.confinement import confine_sensor
from detector.daemon.edges import Clock, Link, PeersReader, RulesReader, TableWriter, VotesReader
from detector.daemon.memory import resident_bytes
from detector.daemon.messages import (
    Alive,
    ExitRanges,
    Member,
    Missed,
    NewConfig,
    NewWeb,
    Peers,
    Released,
    Rules,
    SensorSpec,
    State,
    Stop,
    ToAggregator,
    ToSensor,
    Trials,
    for_aggregator,
)
from detector.daemon.notices import Notices
from detector.daemon.notify import Supervisor
from detector.daemon.slots import Changes, Slot, SlotTable
from detector.daemon.trying import Trier
from detector.daemon.warnings import Warnings
from detector.daemon.writing import KernelTables
from detector.kernel import bpf
from detector.logs import get_logger
from detector.nat.mapping import Mapping as NatMapping
from detector.nat.mapping import read_mapping
from detector.wireguard.model import Snapshot
from detector.wireguard.read import read_peers

_log = get_logger()

_ACCESS = "the peers of the WireGuard interface"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 1.5  # seconds that the aggregator has to end by itself
_LEAST_REST = 0.2  # seconds between two looks
_HALF_PATIENCE = 30.0  # seconds that it may leave half a message lying


@dataclass(frozen=True, slots=True)
class Edges:
    """What the sensor reaches the world with.

    Attributes:
        votes: reads the exits of the slots' last votes.
        rules, peers: read the NAT rules and WireGuard.
        tables: what the kernel program looks up.
        clock: the module `time`.
        resident: bytes of this process in memory.
    """

    tables: TableWriter
    votes: VotesReader
    rules: RulesReader = read_mapping
    peers: PeersReader = read_peers
    clock: Clock = time
    resident: Callable[[], int] = resident_bytes


_EARLIEST = 1.0  # seconds from one look at WireGuard to the next
_GLANCE = 0.5  # seconds between two looks at how many flows belong to nobody


class Sensor:
    """Follows WireGuard and the rules.

    Attributes:
        slots: what stands for whom; it stays in this process.
        web: follows `web_config_file`, None where there is none.
        supervisor: hears that both processes go on.
    """

    web: WebFollower | None = None
    supervisor: Supervisor

    def __init__(self, config: Config, edges: Edges, channel: Link[ToSensor, ToAggregator]) -> None:
        self._config = config
        self._edges = edges
        self.supervisor = Supervisor({}, edges.clock.monotonic())
        self._channel = channel
        self.slots = SlotTable(config.tables.peers, config.canaries.by_address(), config.window)
        if config.canaries.peers:
            _log.info("canaries are declared", count=len(config.canaries.peers), names=config.canaries.names)
        self._written: dict[int, Slot] = {}
        self._tunnels: frozenset[int] = frozenset()
        self._mapping = NatMapping.nothing()
        self._epoch = 0
        self._refused = 0
        self._strange, self._peers_read, self._patience = 0, 0.0, _EARLIEST
        self._watching = self._looked = False
        self._trier = Trier(config.tables.peers)
        self._aged = edges.clock.monotonic()
        self._warnings = Warnings()
        self._reload = Reload(at=edges.clock.time())

    @property
    def config(self) -> Config:
        """What is followed now."""
        return self._config

    def reload(self, path: Path) -> None:
        """Read the configuration again; one that is not accepted changes nothing.

        Raises:
            Closed: the aggregator is gone.
        """
        try:
            merged = merge(self._config, read_config(path))
        except ExitprintError as error:
            _log.error("the configuration was not reloaded, the one before stands", reason=str(error))
            self._reload = replace(self._reload, good=False)
        else:
            self._reload = Reload(True, self._edges.clock.time(), merged.restart)
            self._adopt(merged)
        self._channel.send(NewConfig(for_aggregator(self._config), self._reload))

    def _adopt(self, merged: Merged) -> None:
        self._config = merged.config
        if {"log_format", "log_level"} & set(merged.changed):
            logs.configure("sensor", merged.config.log_format, merged.config.log_level)
        if "exits" in merged.changed:
            self._mapping = NatMapping.nothing()  # so that they are looked at again
        _log.info("configuration reloaded", changed=merged.changed)
        if merged.restart:
            _log.warning("configuration keys that need a restart were not taken over", keys=merged.restart)

    def step(self) -> None:
        """Look once at everything and pass on what has changed.

        Raises:
            Closed: the aggregator is gone.
        """
        self._follow_web()
        rules, peers = self._follow_rules() or "", self._follow_peers()
        self._try_predictors()
        ran = self._edges.tables.run_time()
        self._channel.send(
            State(
                waiting=peers or rules,
                watching=self._watching,
                refused=self._refused,
                resident=self._edges.resident(),
                held=self.slots.held(),
                runs=ran.runs,
                run_nanoseconds=ran.nanoseconds,
            )
        )

    def _try_predictors(self) -> None:
        clock, trier, epoch = self._edges.clock, self._trier, self._epoch
        begun = clock.monotonic()
        if begun - self._aged >= self._config.window / self._config.tables.panes:
            self._aged = begun
            trier.samples.age()
        trier.see(self._edges.votes(self.slots.limit))
        trials = trier.tried(self.slots.slots(), self._mapping.choices, begun)
        if trials is None or not epoch:
            return
        trier.rest(begun, clock.monotonic())
        try:
            self._channel.send(Trials(epoch, trials))
        except TooLong:  # sums alone fit: there are some for each rule
            self._channel.send(Trials(epoch, tuple(replace(one, flagged=None) for one in trials)))

    def is_wanted(self) -> bool:
        """Whether flows of nobody have come in since the last look: somebody may be new.

        One that was looked for in vain is looked for ever later, an interval at most.
        """
        if self._edges.clock.monotonic() - self._peers_read < self._patience:
            return False
        return self._edges.tables.unattributed() > self._strange

    def hear(self, wait: float) -> None:
        """Listen to the aggregator for so many seconds.

        Raises:
            Closed: it is gone.
            Malformed: it says what is no message, or lets go of slots that it was not asked to.
        """
        for message in self._channel.receive(wait):
            if isinstance(message, Alive):
                self.supervisor.heard(self._edges.clock.monotonic())
            if isinstance(message, Released):
                try:
                    self.slots.release(message.slots)
                except ValueError as error:
                    raise Malformed(f"the aggregator releases what it may not: {error}") from None

    def _follow_web(self) -> None:
        try:
            changed = self.web and self.web.changed()
        except ExitprintError as error:
            self._warnings.warn_once(
                "web_config_file", "web_config_file is not accepted, what was there stands", error
            )
            return
        self._warnings.resolve("web_config_file")
        if changed:
            self._channel.send(NewWeb(changed))
            _log.info("web_config_file read again")

    def _follow_rules(self) -> str | None:
        try:
            mapping = self._edges.rules(self._config)
        except ExitprintError as error:
            # What was known of the rules still stands: a tool that fails once is no change of the rules.
            self._warnings.warn_once("rules", "the NAT rules cannot be read", error)
            return str(error)
        self._warnings.resolve("rules")
        if self._epoch and mapping.identity == self._mapping.identity:
            return None
        self._epoch += 1
        self._mapping = mapping
        self._trier.clear()
        unfit = self._edges.tables.set_pools(mapping.ranges)
        if unfit:
            _log.warning("more exit ranges than the kernel program predicts for", left_out=unfit)
        for where, reason in mapping.not_understood:
            _log.warning("a rule about source NAT is not understood", where=where, reason=reason)
        _log.info("nat rules read", epoch=self._epoch, rules=mapping.rules, pools=len(mapping.pools))
        self._send_rules(mapping)
        return None

    def _send_rules(self, mapping: NatMapping) -> None:
        told = Rules(
            epoch=self._epoch,
            ambiguous=len(mapping.not_understood),
            exclusive=tuple(sorted(mapping.exclusive)),
            lasting=tuple(sorted(mapping.lasting)),
            pools=tuple(
                ExitRanges(
                    pool.family,
                    pool.origin,
                    tuple((str(one.first), str(one.last)) for one in pool.ranges),
                )
                for pool in mapping.pools
            ),
            added=self._members(self.slots.slots()),
        )
        try:
            self._channel.send(told)
        except TooLong as error:
            # Evidence of the rules of before must not go on; without pools it is judged by what is seen.
            _log.warning("more exit ranges than can be judged by", reason=error.what)
            self._channel.send(replace(told, pools=()))

    def _follow_peers(self) -> str:
        """Look at WireGuard; returns what is waited for, empty for nothing."""
        self._watching = False
        before, self._strange = self._strange, self._edges.tables.unattributed()
        self._peers_read = self._edges.clock.monotonic()
        try:
            snapshot = self._edges.peers(self._config.wireguard)
        except ExitprintError as error:
            self._warnings.warn_once("peers", "the WireGuard interfaces cannot be listed", error)
            return str(error)
        self._tell_interfaces(snapshot)
        changes = self.slots.update(snapshot, self._edges.clock.monotonic())
        self._refused = changes.refused
        in_vain = self._strange > before and not changes.added
        self._patience = min(2 * self._patience, self._config.interval) if in_vain else _EARLIEST
        if changes.refused:
            self._warnings.warn_once(
                "slots", "more tunnel addresses than tables.peers has room for", None, changes.refused
            )
        else:
            self._warnings.resolve("slots")
        self._apply(changes)
        # Last: until its peers are written, flows of an interface are nobody's, not unattributed.
        self._write_tunnels(snapshot)
        self._watching = not snapshot.waiting
        return str(snapshot.waiting or next(iter(snapshot.unread.values()), ""))

    def _tell_interfaces(self, snapshot: Snapshot) -> None:
        self._warnings.resolve("peers")
        if snapshot.waiting:
            self._warnings.warn_once("waiting", "waiting for WireGuard", snapshot.waiting)
        else:
            self._warnings.resolve("waiting")
        for name, error in snapshot.unread.items():
            self._warnings.warn_once(
                f"interface {name}", f"{_ACCESS} {name} cannot be read; what was known stands", error
            )
        for part in snapshot.interfaces:
            self._warnings.resolve(f"interface {part.interface.name}")

    def _write_tunnels(self, snapshot: Snapshot) -> None:
        current = frozenset(part.interface.ifindex for part in snapshot.interfaces)
        if snapshot.unread:
            current |= self._tunnels
        new = current - self._tunnels
        for ifindex in new:
            self._edges.tables.set_tunnel(ifindex)
        if new and self._looked:
            self._channel.send(Missed())
        self._looked = True
        for ifindex in self._tunnels - current:
            self._edges.tables.remove_tunnel(ifindex)
        self._tunnels = current

    def _apply(self, changes: Changes) -> None:
        """Retire before adding: an address may be in both. The aggregator hears of it before it counts."""
        for slot in (*changes.retired, *changes.left, *changes.moved):
            self._erase(slot.number)
        gone = changes.retired + changes.left
        if changes.added or gone or changes.ended:
            retired = tuple(slot.number for slot in changes.retired) + changes.ended
            left = tuple(slot.number for slot in changes.left)
            self._channel.send(Peers(self._members(changes.added), retired, left))
        if changes.added or gone or changes.moved:
            _log.info(
                "peers changed",
                added=len(changes.added),
                removed=len(gone),
                moved=len(changes.moved),  # to an interface of the same name that was made anew
                now=len(self.slots),
            )
        self._trier.give(changes.added)
        for slot in (*changes.added, *changes.moved):
            self._edges.tables.set_peer(slot.ifindex, slot.allowed.address, slot.allowed.prefix, slot.number)
            self._written[slot.number] = slot

    def _erase(self, number: int) -> None:
        slot = self._written.pop(number)
        self._edges.tables.remove_peer(slot.ifindex, slot.allowed.address, slot.allowed.prefix)

    def _members(self, added: Sequence[Slot]) -> tuple[Member, ...]:
        """Slots as the aggregator is told of them."""
        return tuple(
            Member(slot.number, slot.allowed.family, slot.allowed.is_network, slot.pseudonym)
            for slot in added
        )


class _Stopped(BaseException):
    """A signal asked us to end."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise _Stopped


def _capabilities(maps: Mapping[str, int]) -> list[int]:
    """What the sensor keeps: CAP_BPF too where the kernel asks for it to change a table (before 5.19)."""
    wanted = [privileges.CAP_NET_ADMIN]
    child = os.fork()
    if not child:
        status = 1
        try:
            privileges.keep_only(wanted)
            status = 0 if bpf.is_allowed(maps["networks4"]) else 1
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        wanted.append(privileges.CAP_BPF)
    return wanted


def main(descriptor: int) -> int:
    """Run until a signal or until the aggregator ends; returns the exit status."""
    with os.fdopen(descriptor, "rb") as file:
        spec = codec.decode(SensorSpec, file.read())
    config = spec.config
    logs.configure("sensor", config.log_format, config.log_level)
    for number in _SIGNALS:
        signal.signal(number, _stop)
    privileges.disable_core_dumps()
    privileges.keep_only(_capabilities(spec.maps))
    hangup = SighupPipe()
    channel = sensor_end(socket.socket(fileno=spec.channel), config.tables.peers)
    tables = KernelTables(spec.maps, config.tables)
    saves = legacy.unread if spec.legacy is None else legacy.Reader(socket.socket(fileno=spec.legacy))
    rules = partial(read_mapping, legacy_saves=saves)
    sensor = Sensor(config, Edges(tables, tables.last_votes, rules), channel)
    sensor.web = WebFollower.of(config, spec.web)
    sensor.supervisor = Supervisor(os.environ, time.monotonic())
    notices = Notices()
    confine_sensor()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what came before is heard now
        _loop(sensor, channel, hangup, notices, Path(spec.path))
    except _Stopped:
        sensor.supervisor.stopping()
        _log.info("stopping")
        return _end_aggregator(spec.aggregator, channel)
    except (Closed, Stalled, Malformed) as error:
        status = _end_aggregator(spec.aggregator, channel)
        _log.error("the service ends", reason=error.what, aggregator_status=status)
    return EXIT_HOST


def _loop(
    sensor: Sensor,
    channel: Channel[ToSensor, ToAggregator],
    hangup: SighupPipe,
    notices: Notices,
    path: Path,
) -> None:
    following = time.monotonic()
    while True:
        begun = time.monotonic()
        sensor.step()
        # A look on a notice leaves others their time: it takes a fifth of ours at most.
        rested = time.monotonic() + max(_LEAST_REST, 4 * (time.monotonic() - begun))
        following = max(following + sensor.config.interval, time.monotonic())
        while (left := following - time.monotonic()) > 0:
            waiting = [channel.fileno(), hangup.fileno()]
            if rested <= time.monotonic():
                waiting += notices.filenos()
            else:
                left = min(left, rested - time.monotonic())
            select.select(waiting, [], [], max(min(left, _GLANCE), 0.0))
            sensor.hear(0.0)
            if rested <= time.monotonic() and (notices.taken() or sensor.is_wanted()):
                following = time.monotonic()
            sensor.supervisor.beat(time.monotonic())
            if channel.stalled() > _HALF_PATIENCE:
                raise Stalled("the aggregator has left half a message lying")
            if hangup.taken():
                sensor.reload(path)
                following = time.monotonic()
            if sensor.is_wanted():
                following = time.monotonic()


def _end_aggregator(process: int, channel: Channel[ToSensor, ToAggregator]) -> int:
    """Ask the aggregator to end; one that does not hears of it from the kernel when we have ended.

    Returns:
        Its exit status: negative for a signal, 0 where it is still there.
    """
    channel.finish(Stop())
    limit = time.monotonic() + _PATIENCE
    while time.monotonic() < limit:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return 0


if __name__ == "__main__":
    logs.leave(main(int(sys.argv[1])))
