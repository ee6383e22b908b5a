# SPDX-License-Identifier: Apache-2.0
"""Listings made up for the tests of this folder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from detector.base.family import Address
from detector.predictors.kernel_hash import kernel_exit

FIRST, LAST = ip_address("203.0.113.68"), ip_address("203.0.113.83")
FIRST6, LAST6 = ip_address("2001:db8:203:113::50"), ip_address("2001:db8:203:113::5f")


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow of a listing."""

    peer: Address
    destination: Address
    port: int
    exit: Address
    time: float


def event(flow: Flow, zone: int = 0) -> str:
    """The flow as ``conntrack -E -e NEW -o timestamp`` prints it."""
    zoned = f" zone-orig={zone}" if zone else ""
    return (
        f"[{flow.time:.6f}]\t    [NEW] udp      17 30 src={flow.peer} dst={flow.destination} "
        f"sport={flow.port} dport=443{zoned} [UNREPLIED] "
        f"src={flow.destination} dst={flow.exit} sport=443 dport={flow.port}"
    )


def entry(flow: Flow) -> str:
    """The flow as ``conntrack -L`` prints it."""
    return (
        f"tcp      6 431999 ESTABLISHED src={flow.peer} dst={flow.destination} sport={flow.port} dport=443 "
        f"packets=9 bytes=900 src={flow.destination} dst={flow.exit} sport=443 dport={flow.port} "
        "packets=7 bytes=700 [ASSURED] mark=0 secctx=system_u:object_r:unlabeled_t:s0 use=1"
    )


def flows(
    peers: int = 12, each: int = 20, *, six: bool = False, persistent: bool = False, seed: int = 1
) -> list[Flow]:
    """Flows through a range of 16 exits: most to new sites, some back to a site, some from an old port."""
    draw = random.Random(seed)  # noqa: S311 - repeatable on purpose
    first, last = (FIRST6, LAST6) if six else (FIRST, LAST)
    tunnels = [ip_address(f"fd00::{one:x}" if six else f"10.64.0.{one}") for one in range(1, peers + 1)]
    sites = [ip_address(f"2001:db8:51::{one:x}" if six else f"198.51.100.{one}") for one in range(1, 250)]
    made: list[Flow] = []
    for number in range(peers * each):
        peer = draw.choice(tunnels)
        before = [one for one in made if one.peer == peer]
        site, port = draw.choice(sites), draw.randrange(1024, 65536)
        if before and number % 8 == 0:
            site = draw.choice(before).destination
        elif before and number % 8 == 1:
            port = draw.choice(before).port
        exit_ = kernel_exit(peer, site, first, last, persistent=persistent)
        made.append(Flow(peer, site, port, exit_, 1_700_000_000 + 30.0 * number))
    return made


def text(lines: Sequence[str]) -> bytes:
    """The lines as a file holds them."""
    return "".join(f"{line}\n" for line in lines).encode()
