# SPDX-License-Identifier: Apache-2.0
"""Address families, and addresses as 16 bytes (IPv4 as IPv4-mapped IPv6), as the kernel tables hold them."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

_MAPPED = bytes(10) + b"\xff\xff"


class Family(StrEnum):
    """An address family, by the name that the report and the metrics use."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def index(self) -> int:  # type: ignore[override]  # a name of str that nobody needs for a family
        """Its place among the families, as tables of arrays have it."""
        return 0 if self is Family.IPV4 else 1

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self is Family.IPV4 else 6

    @property
    def nft(self) -> str:
        """What nft calls it, as a family of tables and in expressions."""
        return "ip" if self is Family.IPV4 else "ip6"

    @property
    def label(self) -> str:
        """What people call it."""
        return f"IPv{self.version}"


def family_of(address: Address) -> Family:
    """The family of an address."""
    return Family.IPV4 if address.version == 4 else Family.IPV6


def pack(address: Address) -> bytes:
    """An address as 16 bytes in network order; IPv4 becomes ``::ffff:a.b.c.d``."""
    return address.packed if address.version == 6 else _MAPPED + address.packed


def unpack(packed: bytes) -> Address:
    """The inverse of `pack`."""
    return IPv4Address(packed[12:]) if packed[:12] == _MAPPED else IPv6Address(packed)
