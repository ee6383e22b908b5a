# SPDX-License-Identifier: Apache-2.0
"""What the service holds in memory at this moment, counted where it is held, and how long it stays there."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detector.config.model import Config
from detector.counts.roster import Exits, Roster
from detector.counts.window import Held
from detector.kernel.tables import capacities
from detector.publish.events import MAX_EVENTS

_KERNEL_MEMORY = (
    "until another takes its place; ignored once it is older than the window; nobody can read it back, "
    "the service neither"
)
_PROGRAM = "until the service ends"


@dataclass(frozen=True, slots=True)
class Holding:
    """One kind of thing.

    Attributes:
        where: the process, or the kernel.
        what: in plain words.
        count: how many; None where the service has no way to know.
        room: how many there can be at most, None where nothing but the traffic decides.
        until: how long it stays.
        oldest: seconds since the oldest of it came, None where that is not kept.
        size: bytes, None where it was not measured.
    """

    where: str
    what: str
    count: int | None
    until: str
    room: int | None = None
    oldest: float | None = None
    size: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def holdings(
    config: Config,
    sensor: Mapping[str, int],
    roster: Roster,
    exits: Exits,
    window: Held,
    fill: Mapping[str, int],
    before: int = 0,
    events: int = 0,
) -> tuple[Holding, ...]:
    """Everything that is held.

    Args:
        config: the sizes of the tables.
        sensor: what the sensor counts of its own, by name.
        roster: pseudonyms.
        exits: exit addresses.
        window: what the window holds.
        fill: entries in use of the kernel's tables, by name.
        before: slots of which the exit under the rules of before is remembered.
        events: changes in the history.
    """
    return (
        *_of_sensor(config, sensor),
        *_of_kernel(config, roster, fill),
        *_of_aggregator(config, roster, exits, window),
        Holding(
            "aggregator",
            "slots with the exit that they kept before the NAT rules changed",
            before,
            f"until {config.window:g} s after the change",
            config.tables.peers,
        ),
        Holding(
            "aggregator",
            "changes of verdict, rules, coverage and state, without a peer",
            events,
            _PROGRAM,
            MAX_EVENTS,
        ),
        Holding(
            "aggregator", "files open for writing, beside the log", files_written(), "nothing is ever written"
        ),
    )


def _of_sensor(config: Config, counted: Mapping[str, int]) -> Iterator[Holding]:
    room = config.tables.peers
    if names := config.canaries.names:
        listed = f"tunnel addresses of canaries, the operator's own: {', '.join(names)}"
        count = sum(len(one.addresses) for one in config.canaries.peers)
        yield Holding("sensor", listed, count, "until the service ends; the configuration file names them")
    gone = "until WireGuard has the peer no more, or the service ends"
    yield Holding("sensor", "public keys of peers", counted.get("keys"), gone)
    yield Holding("sensor", "tunnel addresses (allowed-ips)", counted.get("addresses"), gone, room)
    yield Holding(
        "sensor", "slots of peers that are gone", counted.get("retired"), "until the next cycle", room
    )
    yield Holding("sensor", "the key that pseudonyms are made with", 1, _PROGRAM)


def _of_kernel(config: Config, roster: Roster, fill: Mapping[str, int]) -> Iterator[Holding]:
    tables, fits = config.tables, capacities(config.tables)
    follows = "as long as the sensor holds the tunnel address"
    drain = f"until it is drained, every {config.interval:g} s"
    yield Holding("kernel", "tunnel address → slot", roster.present, follows, tables.peers)
    yield Holding(
        "kernel", "slot → time of its last flow, counters of trials", roster.present, follows, tables.peers
    )
    yield Holding(
        "kernel", "counts of slots by six exits, as drained last", fill.get("pairs"), drain, fits["pairs"]
    )
    yield Holding("kernel", "exit addresses", fill.get("exits"), _PROGRAM, fits["exits"])
    yield Holding("kernel", "keyed hashes of slot and destination", None, _KERNEL_MEMORY, tables.destinations)
    yield Holding("kernel", "keyed hashes of slot and source port", None, _KERNEL_MEMORY, tables.ports)


def _of_aggregator(config: Config, roster: Roster, exits: Exits, window: Held) -> Iterator[Holding]:
    epoch = "until the NAT rules change, or the service ends"
    leaves = f"until the window of {config.window:g} s has passed over it, or the NAT rules change"
    yield Holding("aggregator", "pseudonyms of tunnel addresses on the relay", roster.present, epoch)
    yield Holding("aggregator", "pseudonyms of tunnel addresses that are gone", roster.gone, leaves)
    yield Holding("aggregator", "predicted exits of those", roster.predictions, epoch)
    yield Holding("aggregator", "exit addresses", len(exits), epoch)
    yield Holding(
        "aggregator",
        f"counts of pairs of pseudonym and exit address, panes: {window.panes}",
        window.pairs,
        leaves,
        oldest=window.oldest,
        size=window.size,
    )
    yield Holding(
        "aggregator", "counters of trials, by pseudonym", window.trials, leaves, oldest=window.oldest
    )
    yield Holding(
        "aggregator", "reports, with the window that they were made from", 1, "until the next one is made"
    )


def files_written() -> int:
    """How many regular files this process has open for writing, beside the standard streams.

    A file in memory that hands something to a child has no name and does not count.
    """
    return sum(map(_is_written, map(int, (one.name for one in Path("/proc/self/fd").iterdir()))))


def _is_written(descriptor: int) -> bool:
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        named = os.fstat(descriptor).st_nlink > 0
    except OSError:  # the listing's own
        return False
    return descriptor > 2 and regular and writable and named
