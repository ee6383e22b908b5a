# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses by arithmetic: a pool of a whole prefix is two numbers, and is never listed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from detector.base.errors import UsageError
from detector.base.family import Address, Family, family_of

Network = IPv4Network | IPv6Network

EXPECTED = "an address (203.0.113.68), a range (203.0.113.68-203.0.113.126) or a prefix (2001:db8::/64)"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """A contiguous range of addresses, `first` to `last`, both included.

    Raises:
        ValueError: the two are of different families, or `last` comes before `first`.
    """

    first: Address
    last: Address

    def __post_init__(self) -> None:
        if self.first.version != self.last.version:
            raise ValueError("the ends of a pool are of different families")
        if int(self.last) < int(self.first):
            raise ValueError("the last address of a pool comes before its first")

    @classmethod
    def of(cls, what: Address | Network) -> AddressRange:
        """The pool that is one address, or all addresses of a network."""
        if isinstance(what, IPv4Network | IPv6Network):
            return cls(what.network_address, what.broadcast_address)
        return cls(what, what)

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return family_of(self.first)

    @property
    def size(self) -> int:
        """How many addresses it holds (up to 2^128)."""
        return int(self.last) - int(self.first) + 1

    @property
    def single(self) -> bool:
        """Whether it is one address."""
        return self.first == self.last

    def __contains__(self, address: Address) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)

    def overlaps(self, other: AddressRange) -> bool:
        """Whether the two share an address."""
        return (
            self.first.version == other.first.version
            and int(self.first) <= int(other.last)
            and int(other.first) <= int(self.last)
        )

    def at(self, index: int) -> Address:
        """The address at position `index`, 0 being the first.

        Raises:
            IndexError: the pool is smaller.
        """
        if not 0 <= index < self.size:
            raise IndexError("pool index out of range")
        return type(self.first)(int(self.first) + index)

    def index(self, address: Address) -> int:
        """The position of an address.

        Raises:
            ValueError: it is not of this pool.
        """
        if address not in self:
            raise ValueError("address is not of this pool")
        return int(address) - int(self.first)

    def addresses(self) -> Iterator[Address]:
        """Every address, in order; mind the `size` of an IPv6 pool."""
        kind = type(self.first)
        return (kind(number) for number in range(int(self.first), int(self.last) + 1))

    def network(self) -> Network | None:
        """The prefix that is exactly this pool, or None."""
        bits = self.first.max_prefixlen - (self.size - 1).bit_length()
        if self.size & (self.size - 1) or int(self.first) % self.size:
            return None
        if isinstance(self.first, IPv4Address):
            return IPv4Network((int(self.first), bits))
        return IPv6Network((int(self.first), bits))

    def __str__(self) -> str:
        return str(self.first) if self.single else f"{self.first}-{self.last}"


def parse_pool(text: str) -> AddressRange:
    """The pool that a person wrote: ``A``, ``A-B`` or ``A/len``.

    Raises:
        UsageError: names the value and what is expected instead.
    """
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        if dash:
            return _range(text, first, last)
        if "/" in first:
            return AddressRange.of(ip_network(first))
        return AddressRange.of(ip_address(first))
    except ValueError as error:
        why = f" ({error})" if "host bits" in str(error) else ""
        raise UsageError(f"{text!r} is not an exit pool{why}", f"expected {EXPECTED}") from error


def _range(text: str, first: str, last: str) -> AddressRange:
    low, high = ip_address(first), ip_address(last)
    if low.version != high.version:
        raise UsageError(f"the range {text!r} mixes IPv4 and IPv6", f"expected {EXPECTED}")
    if int(high) < int(low):
        raise UsageError(f"the range {text!r} is inverted", f"write {last}-{first} if that is what you mean")
    return AddressRange(low, high)


def normalised(pools: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    """The same addresses as disjoint, ascending ranges that do not touch; IPv4 first."""
    merged: list[AddressRange] = []
    for pool in sorted(pools, key=lambda one: (one.first.version, int(one.first), int(one.last))):
        before = merged[-1] if merged else None
        if before and before.family == pool.family and int(pool.first) <= int(before.last) + 1:
            merged[-1] = AddressRange(before.first, max(before.last, pool.last, key=int))
        else:
            merged.append(pool)
    return tuple(merged)
