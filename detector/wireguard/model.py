# SPDX-License-Identifier: Apache-2.0
"""What is known of the peers of a relay at one moment.

Public keys and tunnel addresses live in these objects only; their `repr` hides them, so that no log,
error or traceback can tell them by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from detector.base.errors import ExitprintError, NotYet
from detector.base.family import Address, Family, pack


class PublicKey(bytes):
    """A peer's public key, 32 bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<public key>"

    __str__ = __repr__


class AllowedIp(NamedTuple):
    """An address or network that a peer may use inside the tunnel.

    Attributes:
        network: 4 or 16 bytes in network order, host bits zero.
        prefix: the prefix length, in bits of `network`.
    """

    network: bytes
    prefix: int

    def __repr__(self) -> str:
        return "<allowed-ip>"

    @property
    def family(self) -> Family:
        """The family of the tunnel address."""
        return Family.IPV4 if len(self.network) == 4 else Family.IPV6

    @property
    def is_network(self) -> bool:
        """Whether it is a network, so that it does not stand for one tunnel address."""
        return self.prefix < 8 * len(self.network)

    @property
    def address(self) -> Address:
        """The tunnel address, or the first one of a network."""
        return IPv4Address(self.network) if len(self.network) == 4 else IPv6Address(self.network)

    @property
    def packed(self) -> bytes:
        """16 bytes as in the kernel tables; see `detector.base.family.pack`."""
        return pack(self.address)

    @property
    def packed_prefix(self) -> int:
        """The prefix length, in bits of `packed`."""
        return self.prefix + 96 if len(self.network) == 4 else self.prefix


class Kind(StrEnum):
    """How an interface does WireGuard."""

    KERNEL = "kernel"
    USER_SPACE = "user-space"


@dataclass(frozen=True, slots=True)
class Interface:
    """A WireGuard interface of the network namespace."""

    name: str
    ifindex: int
    kind: Kind


Peers = Mapping[PublicKey, tuple[AllowedIp, ...]]


@dataclass(frozen=True, slots=True)
class InterfacePeers:
    """The peers of one interface, one entry a public key."""

    interface: Interface
    peers: Peers = field(repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All interfaces at one moment.

    Attributes:
        interfaces: those that were read.
        missing: names that are configured and not there.
        unread: interfaces that are there and could not be read this time, with the reason: what was known of
            their peers still stands.
    """

    interfaces: tuple[InterfacePeers, ...]
    missing: tuple[str, ...] = ()
    unread: Mapping[str, ExitprintError] = field(default_factory=dict)

    @property
    def waiting(self) -> NotYet | None:
        """What the service has to wait for, if anything."""
        if self.missing:
            names = ", ".join(self.missing)
            return NotYet(f"WireGuard interface not there: {names}", f"try `wg-quick up {self.missing[0]}`")
        if not self.interfaces and not self.unread:
            return NotYet(
                "no WireGuard interface is there", "bring one up, for example with `wg-quick up wg0`"
            )
        return None


def is_mapped(network: bytes) -> bool:
    """Whether an IPv6 network is in ::ffff:0:0/96, whose packets the kernel drops (ip6_rcv_core).

    In the kernel tables its place belongs to the IPv4 address.
    """
    return len(network) == 16 and network.startswith(_MAPPED)


_MAPPED = bytes(10) + b"\xff\xff"
