# SPDX-License-Identifier: Apache-2.0
"""The addresses of a lab: tunnel addresses, exit pools, destinations and the links between the hosts.

All are addresses for documentation and benchmarks (RFC 5737, 2544, 3849) or private; nothing here is routed
anywhere but between a lab's own namespaces.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from detector.base.errors import UsageError
from detector.base.family import Address, Family
from detector.base.ranges import AddressRange, Network

TUNNELS: Mapping[Family, Network] = {
    Family.IPV4: ip_network("10.64.0.0/10"),
    Family.IPV6: ip_network("fc00:bbbb:bbbb:bb01::/64"),
}
# Addresses of their own for peers that are not translated: the internet is to take them for global ones.
ROUTED: Mapping[Family, Network] = {
    Family.IPV4: ip_network("198.19.0.0/16"),
    Family.IPV6: ip_network("2001:db8:77::/64"),
}
INTERNET: Mapping[Family, Network] = {
    Family.IPV4: ip_network("198.51.100.0/24"),
    Family.IPV6: ip_network("2001:db8:51:100::/64"),
}
# First address: the relay. Second: the other host of the link.
OUTER: Network = ip_network("192.0.2.0/24")
UPLINK: Mapping[Family, Network] = {
    Family.IPV4: ip_network("198.18.0.0/24"),
    Family.IPV6: ip_network("2001:db8:198:18::/64"),
}
MAX_PEERS = 9999
# Set apart for canaries: the last 256 numbers of both networks, which no other peer gets.
CANARIES: Mapping[Family, Network] = {
    Family.IPV4: ip_network("10.127.255.0/24"),
    Family.IPV6: ip_network("fc00:bbbb:bbbb:bb01::3f:ff00/120"),
}


DEFAULT_POOLS = (
    AddressRange(ip_address("203.0.113.68"), ip_address("203.0.113.126")),
    AddressRange(ip_address("2001:db8:203:113::44"), ip_address("2001:db8:203:113::7e")),
)


@dataclass(frozen=True, slots=True)
class Routed:
    """Which peers have a global address of their own in a family, in place of a tunnel's private one.

    Attributes:
        every: the first peer, and every so manyth after it.
    """

    family: Family
    every: int

    def given(self, peers: list[dict[Family, Address]], seed: int) -> list[dict[Family, Address]]:
        """The addresses of peers, with the own ones of those that have one, scattered."""
        network = ROUTED[self.family]
        spread = random.Random(seed + 2)  # noqa: S311 - repeatable on purpose
        numbers = spread.sample(range(256, 2**16 - 256), len(peers))
        first = int(network[0])
        return [
            {**one, self.family: type(network[0])(first + number)} if place % self.every == 0 else one
            for place, (one, number) in enumerate(zip(peers, numbers, strict=True))
        ]


def tunnel_addresses(peers: int, seed: int) -> list[dict[Family, Address]]:
    """A scattered IPv4 and IPv6 tunnel address for each peer, both from the same number."""
    spread = random.Random(seed)  # noqa: S311 - repeatable on purpose
    numbers = spread.sample(range(256, 2**22 - 256), peers)
    base = int(TUNNELS[Family.IPV6][0])
    return [
        {Family.IPV4: TUNNELS[Family.IPV4][number], Family.IPV6: IPv6Address(base + number)}
        for number in numbers
    ]


def canary_addresses(canaries: int) -> list[dict[Family, Address]]:
    """Tunnel addresses of canaries, the same on every lab."""
    return [
        {family: network[number] for family, network in CANARIES.items()} for number in range(1, canaries + 1)
    ]


def canaries_key(canaries: int) -> dict[str, object]:
    """They as the key `canaries` of a configuration: c1, c2 and so on."""
    peers = enumerate(canary_addresses(canaries), 1)
    return {
        "range": [str(network) for network in CANARIES.values()],
        "peers": {f"c{number}": [str(one) for one in addresses.values()] for number, addresses in peers},
    }


def destinations(count: int, seed: int) -> dict[Family, tuple[Address, ...]]:
    """Addresses of `count` hosts of the internet in each family, scattered.

    Raises:
        UsageError: `count` is not 1 to 250.
    """
    if not 1 <= count <= 250:
        raise UsageError(f"a lab has 1 to 250 destinations, not {count}")
    spread = random.Random(seed + 1)  # noqa: S311 - repeatable on purpose
    hosts = spread.sample(range(2, 254), count)
    base = int(INTERNET[Family.IPV6][0])
    return {
        Family.IPV4: tuple(INTERNET[Family.IPV4][host] for host in hosts),
        Family.IPV6: tuple(IPv6Address(base + host * 65537) for host in hosts),
    }
