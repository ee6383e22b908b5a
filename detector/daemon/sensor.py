# SPDX-License-Identifier: Apache-2.0
"""The sensor: the one process that knows peers. It listens on nothing and keeps CAP_NET_ADMIN alone.

It reads WireGuard and the NAT rules, keeps the kernel's tables of tunnel addresses and pools current, and
tells the aggregator slots, pseudonyms and predicted exits. It is the service's main process: `start` becomes
it, and the aggregator is its child.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from detector import logs
from detector.base.errors import EXIT_HOST, ExitprintError
from detector.config.follow import WebFollower
from detector.config.model import Config
from detector.config.reload import Merged, Reload, SighupPipe, merge, read_config
from detector.daemon import privileges
from detector.daemon.channel import Channel, Closed
from detector.daemon.memory import resident_bytes
from detector.daemon.slots import Changes, Slot, SlotTable
from detector.daemon.warnings import Warnings
from detector.kernel import tables
from detector.kernel.peer_table import PeerTable
from detector.logs import get_logger
from detector.nat.mapping import Mapping as NatMapping
from detector.nat.mapping import read_mapping
from detector.wireguard.model import Snapshot
from detector.wireguard.read import read_peers

_log = get_logger()

_ACCESS = "the peers of the WireGuard interface"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 1.5  # seconds that the aggregator has to end by itself


@dataclass(frozen=True, slots=True)
class Spec:
    """What `start` hands over.

    Attributes:
        maps: descriptors of the kernel tables that the sensor writes.
        channel: descriptor of the socket to the aggregator.
        aggregator: its process number.
        path: the configuration file.
    """

    config: Config
    maps: Mapping[str, int]
    channel: int
    aggregator: int
    path: Path


class Sensor:
    """Follows WireGuard and the rules.

    Attributes:
        slots: what stands for whom; it stays in this process.
        web: follows `web_config_file`, None where there is none.
    """

    web: WebFollower | None = None

    def __init__(self, config: Config, maps: Mapping[str, int], channel: Channel) -> None:
        self._config = config
        self._maps = maps
        self._channel = channel
        self.slots = SlotTable(config.tables.peers, config.canaries.by_address())
        if config.canaries.peers:
            _log.info("canaries are declared", count=len(config.canaries.peers), names=config.canaries.names)
        self._table = PeerTable(maps, config.tables)
        self._written: dict[int, Slot] = {}
        self._tunnels: frozenset[int] = frozenset()
        self._mapping = NatMapping.nothing()
        self._epoch = 0
        self._refused = 0
        self._warnings = Warnings()
        self._reload = Reload(at=time.time())

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
            self._reload = Reload(True, time.time(), merged.restart)
            self._adopt(merged)
        told = {"config": self._config.to_json(), "reload": self._reload.as_message()}
        self._channel.send({"kind": "config", **told})

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
        rules, peers = self._follow_rules() or "", self._follow_peers() or ""
        self._channel.send(
            {
                "kind": "state",
                "waiting": peers or rules,
                "watching": not peers,
                "refused": self._refused,
                "rss": resident_bytes(),
                "holds": self.slots.held(),
            }
        )

    def hear(self, wait: float) -> None:
        """Listen to the aggregator for so many seconds.

        Raises:
            Closed: it is gone.
        """
        for message in self._channel.receive(wait):
            if message["kind"] == "released":
                self.slots.release(message["slots"])

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
            self._channel.send({"kind": "web", "config": changed})
            _log.info("web_config_file read again")

    def _follow_rules(self) -> str | None:
        try:
            mapping = read_mapping(self._config)
        except ExitprintError as error:
            # What was known of the rules still stands: a tool that fails once is no change of the rules.
            self._warnings.warn_once("rules", "the NAT rules cannot be read", error)
            return str(error)
        self._warnings.resolve("rules")
        if self._epoch and mapping.identity == self._mapping.identity:
            return None
        self._epoch += 1
        self._mapping = mapping
        unfit = tables.set_pools(self._maps, mapping.ranges)
        if unfit:
            _log.warning("more exit ranges than the kernel program predicts for", left_out=unfit)
        for where, reason in mapping.not_understood:
            _log.warning("a rule about source NAT is not understood", where=where, reason=reason)
        _log.info("nat rules read", epoch=self._epoch, rules=mapping.rules, pools=len(mapping.pools))
        added = self._rows(self.slots.slots())
        self._channel.send({"kind": "rules", "epoch": self._epoch, **mapping.as_message(), "added": added})
        return None

    def _follow_peers(self) -> str | None:
        try:
            snapshot = read_peers(self._config.wireguard)
        except ExitprintError as error:
            self._warnings.warn_once("peers", "the WireGuard interfaces cannot be listed", error)
            return str(error)
        self._tell_interfaces(snapshot)
        changes = self.slots.update(snapshot)
        self._refused = changes.refused
        if changes.refused:
            self._warnings.warn_once(
                "slots", "more tunnel addresses than tables.peers has room for", None, changes.refused
            )
        else:
            self._warnings.resolve("slots")
        self._apply(changes)
        # Last: until its peers are written, flows of an interface are nobody's, not unattributed.
        self._write_tunnels(snapshot)
        return str(snapshot.waiting) if snapshot.waiting else None

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
        for ifindex in current - self._tunnels:
            tables.set_tunnel(self._maps, ifindex)
        for ifindex in self._tunnels - current:
            tables.remove_tunnel(self._maps, ifindex)
        self._tunnels = current

    def _apply(self, changes: Changes) -> None:
        """Retire before adding: an address may be in both. The aggregator hears of it before it counts."""
        for slot in (*changes.retired, *changes.moved):
            self._erase(slot.number)
        if changes.added or changes.retired:
            retired = [slot.number for slot in changes.retired]
            self._channel.send({"kind": "peers", "added": self._rows(changes.added), "retired": retired})
        if changes.added or changes.retired or changes.moved:
            _log.info(
                "peers changed",
                added=len(changes.added),
                removed=len(changes.retired),
                moved=len(changes.moved),  # to an interface of the same name that was made anew
                now=len(self.slots),
            )
        for slot in (*changes.added, *changes.moved):
            self._table.set(slot.ifindex, slot.allowed.address, slot.allowed.prefix, slot.number)
            self._written[slot.number] = slot

    def _erase(self, number: int) -> None:
        slot = self._written.pop(number)
        self._table.remove(slot.ifindex, slot.allowed.address, slot.allowed.prefix)

    def _rows(self, added: Sequence[Slot]) -> list[list[Any]]:
        """Slots as the aggregator is told of them."""
        everyone = [slot.allowed.address for slot in self.slots.slots() if not slot.allowed.is_network]
        predictions = self._mapping.predict([slot.allowed for slot in added], everyone)
        return [
            [slot.number, slot.allowed.family, slot.allowed.is_network, slot.pseudonym, said]
            for slot, said in zip(added, predictions, strict=True)
        ]


class _Stopped(BaseException):
    """A signal asked us to end."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise _Stopped


def main(descriptor: int) -> int:
    """Run until a signal or until the aggregator ends; returns the exit status."""
    with os.fdopen(descriptor) as file:
        raw = json.load(file)
    spec = Spec(
        Config.from_json(raw["config"]), raw["maps"], raw["channel"], raw["aggregator"], Path(raw["path"])
    )
    logs.configure("sensor", spec.config.log_format, spec.config.log_level)
    for number in _SIGNALS:
        signal.signal(number, _stop)
    privileges.disable_core_dumps()
    privileges.keep_only([privileges.CAP_NET_ADMIN])
    hangup = SighupPipe()
    channel = Channel(socket.socket(fileno=spec.channel), "aggregator")
    sensor = Sensor(spec.config, spec.maps, channel)
    sensor.web = WebFollower.of(spec.config, raw["web"])
    try:
        _loop(sensor, channel, hangup, spec.path)
    except _Stopped:
        _log.info("stopping")
        return _end_aggregator(spec.aggregator, channel)
    except Closed as closed:
        status = _end_aggregator(spec.aggregator, channel)
        _log.error("the service ends", reason=closed.what, aggregator_status=status)
    return EXIT_HOST


def _loop(sensor: Sensor, channel: Channel, hangup: SighupPipe, path: Path) -> None:
    following = time.monotonic()
    while True:
        sensor.step()
        following = max(following + sensor.config.interval, time.monotonic())
        while (left := following - time.monotonic()) > 0:
            select.select([channel.fileno(), hangup.fileno()], [], [], left)
            sensor.hear(0.0)
            if hangup.taken():
                sensor.reload(path)
                following = time.monotonic()


def _end_aggregator(process: int, channel: Channel) -> int:
    """Ask the aggregator to end; one that does not hears of it from the kernel when we have ended.

    Returns:
        Its exit status: negative for a signal, 0 where it is still there.
    """
    channel.finish({"kind": "stop"})
    limit = time.monotonic() + _PATIENCE
    while time.monotonic() < limit:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
