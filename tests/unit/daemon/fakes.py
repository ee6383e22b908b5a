# SPDX-License-Identifier: Apache-2.0
"""What sensor and aggregator are given in place of the world: a relay that is written down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import numpy as np

from detector.base.errors import ExitprintError
from detector.base.family import Address, Family, pack, unpack
from detector.config.model import Config
from detector.counts.columns import Columns
from detector.counts.roster import NOBODY, Exits, Roster
from detector.counts.window import Counts
from detector.daemon.channel import Closed
from detector.daemon.counting import SHAPE
from detector.kernel.bpf import RunTime
from detector.kernel.drain import Drained
from detector.kernel.tables import FAMILIES, Outcome
from detector.nat.mapping import Mapping as NatMapping
from detector.wireguard.model import AllowedIp, Interface, InterfacePeers, Kind, PublicKey, Snapshot

Flow = tuple[int, str, int]
"""Slot, exit, how many."""


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds since some time."""
        return self.now

    def time(self) -> float:
        """Seconds since 1970."""
        return 1_700_000_000.0 + self.now


class Link:
    """One end of a channel without a socket: what is sent waits at the other end.

    Attributes:
        sent: everything that was ever sent by this end.
        broken: raised instead of doing anything.
    """

    def __init__(self) -> None:
        self.inbox: deque[Any] = deque()
        self.sent: list[Any] = []
        self.other: Link | None = None
        self.broken: ExitprintError | None = None
        self.on_send: Callable[[Any], None] = lambda _: None

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two ends."""
        one, other = cls(), cls()
        one.other, other.other = other, one
        return one, other

    def send(self, message: Any) -> None:
        """Send."""
        if self.broken:
            raise self.broken
        self.on_send(message)
        self.sent.append(message)
        if self.other:
            self.other.inbox.append(message)

    post = send

    def receive(self, wait: float = 0.0) -> Iterator[Any]:  # noqa: ARG002
        """What the other end sent, or that it is gone."""
        while self.inbox:
            yield self.inbox.popleft()
        if self.broken:
            raise self.broken


GONE = Closed("the other one has ended")


def _written(drained: Drained | list[Flow]) -> list[Flow]:
    """What was written down, or what a rehearsal drains, as flows."""
    if isinstance(drained, list):
        return drained
    exits = [str(unpack(one.tobytes())) for one in drained.exits]
    flows = drained.flows
    columns = zip(flows.slot, flows.exit, flows.counts, strict=True)
    return [(int(slot), exits[exit_], int(number)) for slot, exit_, number in columns]


class KernelCounts:
    """Flows that are written down, in place of the kernel's.

    Attributes:
        pending: what the next drain finds.
        calls: what was asked, in order.
    """

    def __init__(self) -> None:
        self.drained_rows = 0
        self.pending: list[Flow] = []
        self.strangers = 0
        self.calls: list[str] = []
        self.crowded = False
        self.control: tuple[float, float, int] = (0.0, 0.0, 0)
        self.total = np.zeros(SHAPE, np.int64)

    def set_control(self, now: float, session_gap: float, pane: int) -> None:
        """Remember."""
        self.control = now, session_gap, pane

    def drain(self) -> Drained:
        """What was pending; the drained object itself says nothing."""
        self.calls.append("drain")
        flows, self.pending = self.pending, []
        self.drained_rows += len(flows)
        return flows  # type: ignore[return-value]

    def attribute(self, drained: Drained, roster: Roster, exits: Exits) -> Counts:
        """Under the rows of the roster, as the real one does."""
        outcomes, keys, counts = np.zeros(SHAPE, np.int64), [], []
        outcomes[0, Outcome.NOT_A_PEER], self.strangers = self.strangers, 0
        for slot, exit_, flows in _written(drained):
            (row,) = roster.rows_of(np.array([slot]))
            address = ip_address(exit_)
            family = FAMILIES.index(Family.IPV4 if address.version == 4 else Family.IPV6)
            outcomes[family, Outcome.UNATTRIBUTED if row == NOBODY else Outcome.COUNTED] += flows
            if row != NOBODY:
                keys.append(int(row) << 32 | exits.number(pack(address)))
                counts.append(flows)
        self.total += outcomes
        pairs = Columns.of(np.array(keys, np.uint64), np.array(counts, np.uint64))
        return Counts(outcomes, flows=pairs, votes=pairs, firsts=pairs)

    def renumber_exits(self) -> None:
        """Remember."""
        self.calls.append("renumber")

    def exits_crowded(self) -> bool:
        """Whether the test says so."""
        return self.crowded

    def begin_sessions(self, slots: Iterable[int]) -> None:
        """Remember."""
        if back := sorted(slots):
            self.calls.append(f"begin {back}")

    def release(self, slots: Iterable[int]) -> None:
        """Remember."""
        self.calls.append(f"release {sorted(slots)}")

    def outcomes(self) -> dict[tuple[Family, Outcome], int]:
        """Flows since the start."""
        return {
            (family, outcome): int(self.total[index, outcome])
            for index, family in enumerate(FAMILIES)
            for outcome in Outcome
        }

    def take_fill(self) -> dict[str, int]:
        """Nothing is ever full."""
        return {"pairs": 0, "exits": 0}


@dataclass
class KernelTables:
    """What the kernel program would look up.

    Attributes:
        log: what was written, in order.
    """

    log: list[str] = field(default_factory=list)
    peers: dict[tuple[int, Address, int], int] = field(default_factory=dict)
    tunnels: set[int] = field(default_factory=set)
    pools: Sequence[tuple[Address, Address]] = ()
    fits: int = 64
    strange: int = 0

    def set_peer(self, ifindex: int, address: Address, prefix_length: int, slot: int) -> None:
        """Write an address."""
        self.log.append(f"set {slot}")
        self.peers[ifindex, address, prefix_length] = slot

    def remove_peer(self, ifindex: int, address: Address, prefix_length: int) -> None:
        """Forget an address."""
        self.log.append(f"remove {self.peers.pop((ifindex, address, prefix_length))}")

    def set_tunnel(self, ifindex: int) -> None:
        """Name an interface."""
        self.log.append(f"tunnel {ifindex}")
        self.tunnels.add(ifindex)

    def remove_tunnel(self, ifindex: int) -> None:
        """Forget an interface."""
        self.tunnels.remove(ifindex)

    def set_pools(self, ranges: Sequence[tuple[Address, Address]]) -> int:
        """Name the ranges."""
        self.pools = ranges
        return max(len(ranges) - self.fits, 0)

    def unattributed(self) -> int:
        """As many as the test says."""
        return self.strange

    def run_time(self) -> RunTime:
        """Some."""
        return RunTime(7, 8)


class Relay:
    """Rules and peers as they are read.

    Attributes:
        mapping, peers: what the next reading finds; an error is raised.
    """

    def __init__(self) -> None:
        self.mapping: NatMapping | ExitprintError = NatMapping.nothing()
        self.peers: dict[str, list[str]] = {}
        self.ifindex = 7
        self.error: ExitprintError | None = None
        self.unread: dict[str, ExitprintError] = {}
        self.missing: tuple[str, ...] = ()
        self.voted: list[tuple[int, bytes]] = []

    def votes(self, upto: int) -> list[tuple[int, bytes]]:
        """The exits of the last votes since this was asked."""
        voted, self.voted = self.voted, []
        assert all(slot < upto for slot, _ in voted)
        return voted

    def rules(self, _config: Config) -> NatMapping:
        """The rules now."""
        if isinstance(self.mapping, ExitprintError):
            raise self.mapping
        return self.mapping

    def read(self, _names: Sequence[str] | None) -> Snapshot:
        """The peers now: letters stand for keys."""
        if self.error:
            raise self.error
        peers = {
            PublicKey(name.encode() * 32): tuple(map(allowed, addresses))
            for name, addresses in self.peers.items()
        }
        there = (InterfacePeers(Interface("wg0", self.ifindex, Kind.KERNEL), peers),)
        return Snapshot(() if self.unread or self.missing else there, self.missing, self.unread)


def allowed(text: str) -> AllowedIp:
    """An allowed-ip, of one address unless it has a length."""
    address, _, length = text.partition("/")
    packed = ip_address(address).packed
    return AllowedIp(packed, int(length or len(packed) * 8))
