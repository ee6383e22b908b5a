# SPDX-License-Identifier: Apache-2.0
"""What sensor and aggregator are given to reach the world with, so that both can be run without it.

Each is one small promise. In the service they are the kernel's tables, WireGuard, the NAT rules, the channel
and the system's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from detector.base.family import Address, Family
from detector.base.outcomes import Outcome
from detector.config.model import Config
from detector.kernel.bpf import RunTime

if TYPE_CHECKING:  # the sensor does without NumPy
    from detector.counts.roster import Exits, Roster
    from detector.counts.window import Counts
    from detector.kernel.drain import Drained
    from detector.nat.mapping import Mapping as NatMapping
    from detector.wireguard.model import Snapshot

_In_co = TypeVar("_In_co", covariant=True)
_Out_contra = TypeVar("_Out_contra", contravariant=True)


class Clock(Protocol):
    """The module `time`, as far as it is used."""

    def monotonic(self) -> float:
        """Seconds on a clock that only goes forward."""

    def time(self) -> float:
        """Seconds since 1970."""


class Link(Protocol[_In_co, _Out_contra]):
    """The channel to the other process (`detector.daemon.channel`)."""

    def send(self, message: _Out_contra) -> None:
        """Send, and wait until it is sent."""

    def post(self, message: _Out_contra) -> None:
        """Send without waiting."""

    def receive(self, wait: float = 0.0) -> Iterator[_In_co]:
        """What has been said, after waiting up to so many seconds for something."""


class CountsSource(Protocol):
    """What the kernel counts (`detector.daemon.counting`).

    Attributes:
        drained_rows: how many rows have been drained since the start.
    """

    drained_rows: int

    def set_control(self, now: float, session_gap: float, pane: int) -> None:
        """Tell the kernel program the time, the gap that ends a session (both in seconds) and the pane."""

    def drain(self) -> Drained:
        """Take what was counted since the last time."""

    def attribute(self, drained: Drained, roster: Roster, exits: Exits) -> Counts:
        """Put what was drained under the rows of the roster."""

    def renumber_exits(self) -> None:
        """At the next drain, have exits numbered anew, so that those that nobody uses give room."""

    def exits_crowded(self) -> bool:
        """Whether most of the numbers that exits can have are given."""

    def begin_sessions(self, slots: Iterable[int]) -> None:
        """Whoever is in these slots has come back: its next flow begins a session."""

    def release(self, slots: Iterable[int]) -> None:
        """Clear slots that nobody is counted for any more."""

    def outcomes(self) -> dict[tuple[Family, Outcome], int]:
        """Flows by what became of them, since the start."""

    def take_fill(self) -> dict[str, int]:
        """Entries in use by table, the most since this was asked."""


class TableWriter(Protocol):
    """What the kernel program looks up (`detector.daemon.writing`)."""

    def set_peer(self, ifindex: int, address: Address, prefix_length: int, slot: int) -> None:
        """Make flows from a tunnel address, or from a network of them, count for a slot."""

    def remove_peer(self, ifindex: int, address: Address, prefix_length: int) -> None:
        """Forget a tunnel address, or a network of them."""

    def set_tunnel(self, ifindex: int) -> None:
        """Name a WireGuard interface."""

    def remove_tunnel(self, ifindex: int) -> None:
        """Forget one."""

    def set_pools(self, ranges: Sequence[tuple[Address, Address]]) -> int:
        """Name the exit ranges; returns how many did not fit."""

    def unattributed(self) -> int:
        """Flows since the start that belong to no slot."""

    def run_time(self) -> RunTime:
        """How often the kernel program ran, and how long in all."""


VotesReader = Callable[[int], Iterable[tuple[int, bytes]]]
"""Slots below a number that have voted since it was asked, with the exit of the last vote as 16 bytes."""

RulesReader = Callable[[Config], "NatMapping"]
PeersReader = Callable[[Sequence[str] | None], "Snapshot"]
