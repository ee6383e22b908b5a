# SPDX-License-Identifier: Apache-2.0
"""Sensor and aggregator over the loaded kernel program, stepped by hand, so that no clock decides."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from detector.base.family import Address, Family
from detector.config.model import Config, Tables
from detector.daemon.aggregator import Aggregator
from detector.daemon.channel import aggregator_end, sensor_end
from detector.daemon.counting import KernelCounts
from detector.daemon.sensor import Edges, Sensor
from detector.daemon.writing import KernelTables
from detector.kernel.loader import load
from detector.lab.namespaces import entered
from detector.lab.relay import Lab
from detector.publish.snapshot import samples

SMALL = Tables(peers=256, pairs=65536, destinations=65536, ports=65536, panes=4)


class Stepped:
    """The service's two halves on a lab's relay."""

    def __init__(self, lab: Lab, sensor: Sensor, aggregator: Aggregator) -> None:
        self._lab = lab
        self.sensor, self.aggregator = sensor, aggregator

    def step(self) -> None:
        """What happens in one interval, with a report at its end."""
        with entered(self._lab.relay):
            self.sensor.step()
        self.aggregator.cycle()
        self.sensor.hear(0.0)

    def pairs(self) -> Counter[tuple[Address, Address]]:
        """Flows in the window by (tunnel address, exit address); peers have one address in each family."""
        tunnel = {
            (slot.pseudonym, slot.allowed.family): slot.allowed.address for slot in self.sensor.slots.slots()
        }
        found: Counter[tuple[Address, Address]] = Counter()
        for one in self.aggregator.epoch.observed():
            names = self.aggregator.epoch.roster.pseudonyms(one.rows)
            seen = one.observation
            for peer, exit_, flows in zip(seen.peer, seen.exit, seen.flows, strict=True):
                found[tunnel[names[peer], seen.family], seen.exits[exit_]] += int(flows)
        return found

    def rows(self, family: Family) -> list[tuple[str, int]]:
        """Pseudonym and flows of every row of a family, in the order in which they came."""
        one = next(one for one in self.aggregator.epoch.observed() if one.observation.family is family)
        flows = [0] * len(one.rows)
        for peer, count in zip(one.observation.peer, one.observation.flows, strict=True):
            flows[peer] += int(count)
        return list(zip(self.aggregator.epoch.roster.pseudonyms(one.rows), flows, strict=True))

    def trials(self) -> int:
        """Everything that was tried for a contrast or for the destination predictor, in the window."""
        return sum(
            int(trials.tried.sum())
            for one in self.aggregator.epoch.observed()
            for trials in (
                one.observation.same_destination,
                one.observation.same_port,
                one.observation.destination_predictor,
            )
        )

    def metric(self, name: str) -> Mapping[tuple[str, ...], float]:
        """The samples of a metric, as of the last step."""
        return dict(samples(self.aggregator.snapshot, self.aggregator.about)[name])


@contextmanager
def stepped(lab: Lab, **keys: Any) -> Iterator[Stepped]:
    """Load the program on a lab's relay, and see everything once."""
    config = replace(Config(wireguard=(lab.wireguard_interface,), tables=SMALL, window=3600.0), **keys)
    with entered(lab.relay):
        loaded = load(config.hook, config.tables, config.session_gap)
    one, other = socket.socketpair()
    with one, other:
        slots, maps = config.tables.peers, loaded.descriptors
        tables = KernelTables(maps, config.tables)
        sensor = Sensor(config, Edges(tables, tables.last_votes), sensor_end(one, slots))
        counts = KernelCounts(maps, config.tables)
        aggregator = Aggregator(config, loaded.hook, counts, aggregator_end(other, slots))
        try:
            both = Stepped(lab, sensor, aggregator)
            both.step()
            yield both
        finally:
            loaded.close()


def allow(lab: Lab, interface: str, key: str, *allowed: str) -> None:
    """Give a peer of a relay's interface these allowed-ips alone; its session goes on."""
    _wg(lab, interface, key, "allowed-ips", ",".join(allowed))


def remove(lab: Lab, interface: str, key: str) -> None:
    """Remove a peer; one that comes back after that has to shake hands first."""
    _wg(lab, interface, key, "remove")


def _wg(lab: Lab, interface: str, key: str, *what: str) -> None:
    assert lab.run(lab.relay, ["wg", "set", interface, "peer", key, *what]).returncode == 0
