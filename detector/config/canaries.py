# SPDX-License-Identifier: Apache-2.0
"""Canaries: peers that are the operator's own, with nobody behind them, so that their place may be published.

What a file says of them is checked here, so that no customer is declared one by mistake. No message quotes an
address: one that does not belong here may be a customer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from detector.base.family import Address
from detector.config.kinds import Kind, Problem, Reading, Where

MAX_CANARIES = 64
NAME = re.compile(r"[a-z0-9-]{1,32}")
EXPECTED = "a group of range (networks that are given to nobody) and peers (names, each with its addresses)"
# A range as wide as this is no longer one that is set apart.
_WIDEST = {4: 16, 6: 48}

_Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary: its name, and its tunnel addresses as text."""

    name: str
    addresses: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<canary {self.name}>"


@dataclass(frozen=True, slots=True)
class Canaries:
    """Those that are declared.

    Attributes:
        range: the networks that hold all of their addresses, as text.
    """

    range: tuple[str, ...] = ()
    peers: tuple[Canary, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(one.name for one in self.peers)

    def by_address(self) -> dict[Address, str]:
        """The name by tunnel address."""
        return {ip_address(address): one.name for one in self.peers for address in one.addresses}

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Canaries:
        """From what `dataclasses.asdict` made of one."""
        peers = tuple(Canary(one["name"], tuple(one["addresses"])) for one in raw["peers"])
        return cls(tuple(raw["range"]), peers)


class NotCanaries(ValueError):
    """What a file says is not accepted.

    Attributes:
        key: where below `canaries`, such as ``peers.c1``; empty for the whole.
        reason: why, without an address.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}" if key else reason)
        self.key = key
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Declared(Kind):
    """What stands under `canaries`; no value is shown: it may be a customer's address."""

    expected: str = EXPECTED
    secret: bool = field(default=True, kw_only=True)

    def read(self, value: object, where: Where, reading: Reading) -> Canaries | None:
        """The canaries; None, and a problem at the key that is wrong, where they are not accepted."""
        try:
            return parse_canaries(value)
        except NotCanaries as error:
            inside = (part[1:-1] for part in re.findall(r"\[\d+\]", error.key))
            names = tuple(re.sub(r"\[\d+\]$", "", error.key).split(".", 1)) if error.key else ()
            place = (*where, *names, *map(int, inside))
            reading.problems.append(Problem(place, error.reason))
            return None


def parse_canaries(value: object) -> Canaries:
    """The canaries of a configuration file.

    Args:
        value: what stands under the key `canaries`.

    Raises:
        NotCanaries: it is not accepted.
    """
    if not isinstance(value, dict):
        raise NotCanaries("", "range and peers are expected under it")
    for key in value:
        if key not in ("range", "peers"):
            raise NotCanaries(str(key), "unknown key: expected range or peers")
    networks = _networks(value.get("range"))
    given = value.get("peers")
    if not isinstance(given, dict) or not given:
        raise NotCanaries("peers", "expected names, each with a list of addresses")
    if len(given) > MAX_CANARIES:
        raise NotCanaries("peers", f"{len(given)} are more than {MAX_CANARIES}")
    taken: dict[Address, str] = {}
    peers = tuple(_canary(name, addresses, networks, taken) for name, addresses in given.items())
    return Canaries(tuple(map(str, networks)), peers)


def _networks(value: object) -> tuple[_Network, ...]:
    if not isinstance(value, list) or not value:
        raise NotCanaries(
            "range", "expected a list of networks that are given to nobody, such as [10.127.255.0/24]"
        )
    return tuple(_network(f"range[{place}]", text) for place, text in enumerate(value))


def _network(key: str, text: object) -> _Network:
    try:
        network = ip_network(text if isinstance(text, str) else "")
    except ValueError:
        raise NotCanaries(key, "not a network such as 10.127.255.0/24 (without host bits)") from None
    widest = _WIDEST[network.version]
    if network.prefixlen < widest:
        raise NotCanaries(
            key, f"wider than /{widest}: set aside a part of the tunnel's network that is small"
        )
    return network


def _canary(name: object, given: object, networks: tuple[_Network, ...], taken: dict[Address, str]) -> Canary:
    key = f"peers.{name}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise NotCanaries(key, "a name is 1 to 32 of a to z, 0 to 9 and -")
    if not isinstance(given, list) or not given:
        raise NotCanaries(key, "expected a list of its tunnel addresses")
    addresses = [_address(f"{key}[{place}]", text, networks) for place, text in enumerate(given)]
    if len({one.version for one in addresses}) < len(addresses):
        raise NotCanaries(key, "more than one address of a family")
    for place, address in enumerate(addresses):
        if address in taken:
            raise NotCanaries(f"{key}[{place}]", f"the address is that of {taken[address]} already")
        taken[address] = name
    return Canary(name, tuple(map(str, addresses)))


def _address(key: str, text: object, networks: tuple[_Network, ...]) -> Address:
    try:
        address = ip_address(text if isinstance(text, str) else "")
    except ValueError:
        raise NotCanaries(key, "not an IPv4 or IPv6 address") from None
    if not any(address in network for network in networks):
        raise NotCanaries(key, "the address is outside of canaries.range")
    return address
