# SPDX-License-Identifier: Apache-2.0
"""The maps' layouts as ``bpf/tables.h`` has them, their sizes, and what the sensor writes into them.

No NumPy in here: the sensor does without. Reading the counts is `detector.kernel.drain`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum

from detector.config import Tables
from detector.family import Address, Family
from detector.kernel import bpf

MAX_POOLS = 64
MAX_TUNNELS = 256
WAYS = 4
PAIRS_IN_LINE = 4
PANE_BITS = 12

SLOT_SIZE = 64
CHANCE_UNIT = 1 << 24

_KEY = struct.Struct("<I")
_CONTROL = struct.Struct("<4I")
_POOL = struct.Struct("<4I4III")
_NETWORK_PREFIX = struct.Struct("<II")
_INTERFACE_BITS = 32

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
    SETTLED = 9


LOSSES = {
    "pairs_full": Outcome.LOST_PAIRS,
    "exits_full": Outcome.LOST_EXITS,
    "destinations_full": Outcome.LOST_DESTINATIONS,
    "ports_full": Outcome.LOST_PORTS,
    "unreadable": Outcome.UNREADABLE,
}


def pair_lines(sizes: Tables) -> int:
    """Lines of a table of pairs: a power of two, with room for at least `sizes.pairs`."""
    return int(1 << (max(sizes.pairs, PAIRS_IN_LINE) // PAIRS_IN_LINE - 1).bit_length())


def macros(sizes: Tables) -> dict[str, int]:
    """The sizes of the tables as the C source names them."""
    return {
        "EP_PEERS": sizes.peers,
        "EP_PAIR_LINES": pair_lines(sizes),
        "EP_DESTINATION_BUCKETS": max(sizes.destinations // WAYS, 1),
        "EP_PORT_BUCKETS": max(sizes.ports // WAYS, 1),
        "EP_POOLS": MAX_POOLS,
        "EP_EXITS": sizes.exits,
        "EP_PANES": sizes.panes,
        "EP_MEASURED": sizes.measured,
    }


def set_peer(maps: Mapping[str, int], ifindex: int, address: Address, prefix_length: int, slot: int) -> None:
    """Make flows from a tunnel address, or from a network of them, count for a slot.

    Raises:
        OSError: E2BIG or ENOSPC when the table is full.
    """
    table, key = _peer_key(ifindex, address, prefix_length)
    bpf.update(maps[table], key, _KEY.pack(slot))


def remove_peer(maps: Mapping[str, int], ifindex: int, address: Address, prefix_length: int) -> None:
    """Forget a tunnel address or a network of them."""
    table, key = _peer_key(ifindex, address, prefix_length)
    bpf.delete(maps[table], key)


def _peer_key(ifindex: int, address: Address, prefix_length: int) -> tuple[str, bytes]:
    """The table that an allowed-ip belongs in, and its key there."""
    if prefix_length == address.max_prefixlen:  # as conntrack keeps it: zeros after an IPv4 address
        return "peers", _KEY.pack(ifindex) + address.packed.ljust(16, b"\0")
    prefix = _NETWORK_PREFIX.pack(_INTERFACE_BITS + prefix_length, ifindex)
    return f"networks{address.version}", prefix + address.packed


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
