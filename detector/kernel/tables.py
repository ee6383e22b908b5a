# SPDX-License-Identifier: Apache-2.0
"""The maps' layouts as ``bpf/tables.h`` has them, their sizes, and what the sensor writes into them.

No NumPy in here: the sensor does without. Reading the counts is `detector.kernel.drain`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum

from detector.base.family import Address, Family
from detector.config.model import Tables
from detector.kernel import bpf

MAX_POOLS = 64
MAX_TUNNELS = 256
WAYS = 4
EXITS_IN_BLOCK = 6
EXIT_WAYS = 8
PANE_BITS = 12

SLOT_SIZE = 64
CHANCE_UNIT = 1 << 24

_KEY = struct.Struct("<I")
_CONTROL = struct.Struct("<4I")
_POOL = struct.Struct("<4I4III")

FAMILIES = (Family.IPV4, Family.IPV6)


class Outcome(IntEnum):
    """What became of a flow; the numbers are those of ``enum outcome``."""

    COUNTED = 0
    NOT_A_PEER = 1
    NOT_TRANSLATED = 2
    UNATTRIBUTED = 3
    UNREADABLE = 4
    LOST_PAIRS = 5
    LOST_DESTINATIONS = 6
    LOST_PORTS = 7
    LOST_EXITS = 8


LOSSES = {
    "pairs_full": Outcome.LOST_PAIRS,
    "exits_full": Outcome.LOST_EXITS,
    "destinations_full": Outcome.LOST_DESTINATIONS,
    "ports_full": Outcome.LOST_PORTS,
    "unreadable": Outcome.UNREADABLE,
}


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below."""
    return int(1 << max(least - 1, 0).bit_length())


def peer_lines(sizes: Tables) -> int:
    """Lines of the table of peers, which has at least twice the room that all slots need."""
    return _power_of_two(sizes.peers)


def blocks(sizes: Tables) -> int:
    """Blocks of a table of pairs: those of `sizes.pairs` pairs of which no two share one."""
    return _power_of_two(sizes.pairs)


def capacities(sizes: Tables) -> dict[str, int]:
    """How much fits in the tables that can fill up while the service runs: blocks of pairs, peers, exits."""
    return {"pairs": blocks(sizes), "peers": sizes.peers, "exits": sizes.exits}


def macros(sizes: Tables) -> dict[str, int]:
    """The sizes of the tables as the C source names them."""
    return {
        "EP_PEERS": sizes.peers,
        "EP_PEER_LINES": peer_lines(sizes),
        "EP_BLOCKS": blocks(sizes),
        "EP_DESTINATION_BUCKETS": max(sizes.destinations // WAYS, 1),
        "EP_PORT_BUCKETS": max(sizes.ports // WAYS, 1),
        "EP_POOLS": MAX_POOLS,
        "EP_EXITS": sizes.exits,
        "EP_EXIT_LINES": _power_of_two(2 * sizes.exits // EXIT_WAYS),
        "EP_PANES": sizes.panes,
        "EP_MEASURED": sizes.measured,
    }


def set_tunnel(maps: Mapping[str, int], ifindex: int) -> None:
    """Name a WireGuard interface: its flows without a slot are unattributed."""
    bpf.update(maps["tunnels"], _KEY.pack(ifindex), _KEY.pack(1))


def remove_tunnel(maps: Mapping[str, int], ifindex: int) -> None:
    """Forget an interface."""
    bpf.delete(maps["tunnels"], _KEY.pack(ifindex))


def set_control(maps: Mapping[str, int], now: float, session_gap: float, pane: int) -> None:
    """Tell the program the time, the gap that ends a session (both in seconds) and the current pane."""
    milliseconds = int(now * 1000) & 0xFFFFFFFF
    bpf.update(maps["controls"], _KEY.pack(0), _CONTROL.pack(milliseconds, int(session_gap * 1000), pane, 0))


def set_pools(maps: Mapping[str, int], ranges: Sequence[tuple[Address, Address]]) -> int:
    """Name the exit ranges (first, last) for the destination predictor.

    Returns:
        How many did not fit and are therefore not predicted for.
    """
    fitting = ranges[:MAX_POOLS]
    for index, (first, last) in enumerate(fitting):
        bpf.update(maps["pools"], _KEY.pack(index), _pool(first, last))
    for index in range(len(fitting), MAX_POOLS):
        bpf.update(maps["pools"], _KEY.pack(index), bytes(_POOL.size))
    return len(ranges) - len(fitting)


def _pool(first: Address, last: Address) -> bytes:
    def words(address: Address) -> list[int]:
        found = [int.from_bytes(address.packed[i : i + 4], "big") for i in range(0, len(address.packed), 4)]
        return found + [0] * (4 - len(found))

    size = int(last) - int(first) + 1
    return _POOL.pack(*words(first), *words(last), 1 if first.version == 4 else 2, CHANCE_UNIT // size)
