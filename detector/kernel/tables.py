# SPDX-License-Identifier: Apache-2.0
"""The maps' layouts as ``bpf/tables.h`` has them, their sizes, and what the sensor writes into them.

No NumPy in here: the sensor does without. Reading the counts is `detector.kernel.drain`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from detector.base.family import Address, Family
from detector.base.outcomes import LOSSES, Outcome
from detector.config.model import Tables
from detector.kernel import mapped

__all__ = ["FAMILIES", "LOSSES", "Outcome"]

MAX_POOLS = 64
WAYS = 4
EXITS_IN_BLOCK = 6
EXIT_WAYS = 8
CHANCE_UNIT = 1 << 24
OUTCOME_ROOM = 32

BLOCK_SIZE = 32
SLOT_SIZE = 64
EVIDENCE_SIZE = 192
WATCHED_SIZE = 64 + 4096

_TUNNEL_LINES, _TUNNELS_IN_LINE = 64, 16
_FIRST_TUNNEL = 16  # words of `watched` before its tunnels
_PEER_LINES = 0  # and which of them is the number of lines in use

_BUCKETS = 4096  # of exits, for a pool that has more than the table has room for
_LEAST_SHARE = 64  # of a table for one slot
_PACKED_LIMIT = 100  # twice this, and some, has to be below 256: a pane may turn between two drains

_POOL = struct.Struct("<4I4III")

FAMILIES = (Family.IPV4, Family.IPV6)


class Budgets(NamedTuple):
    """What is measured of a slot and class of flows in a pane, at most.

    Attributes:
        votes, returns, reuses: trials of each kind.
        looked: flows that are looked at for them, whatever they turn out to be.
    """

    votes: int
    returns: int
    reuses: int
    looked: int

    @classmethod
    def of(cls, sizes: Tables) -> Budgets:
        """From the number of flows that are to be looked at."""
        votes = min(-(-sizes.measured // 4), _PACKED_LIMIT)
        return cls(votes, votes, -(-votes // 2), min(sizes.measured, _PACKED_LIMIT + 27))


def _power_of_two(least: int) -> int:
    """The smallest power of two that is not below."""
    return int(1 << max(least - 1, 0).bit_length())


def peer_lines(sizes: Tables) -> int:
    """Lines of the table of peers, which has at least twice the room that all slots need."""
    return _power_of_two(sizes.peers)


def blocks(sizes: Tables) -> int:
    """Blocks of half a table of pairs: those of `sizes.pairs` pairs of which no two share one."""
    return _power_of_two(sizes.pairs)


def blocks_stride(sizes: Tables) -> int:
    """Blocks from one half of the pairs to the other: whole pages."""
    return max(blocks(sizes), mapped.PAGE // BLOCK_SIZE)


def exit_buckets(sizes: Tables) -> int:
    """Buckets for the exits of a family that have no number of their own."""
    return min(_BUCKETS, _power_of_two(sizes.exits))


def exit_numbers(sizes: Tables) -> int:
    """Numbers of a family's exits; those of IPv6 come after those of IPv4."""
    return sizes.exits + exit_buckets(sizes)


def exit_lines(sizes: Tables) -> int:
    """Lines in which the numbers of a family's exits are found."""
    return _power_of_two(2 * sizes.exits // EXIT_WAYS)


def capacities(sizes: Tables) -> dict[str, int]:
    """How much fits in the tables that can fill up while the service runs: blocks of pairs, peers, exits."""
    return {"pairs": blocks(sizes), "peers": sizes.peers, "exits": sizes.exits}


def macros(sizes: Tables) -> dict[str, int]:
    """The sizes of the tables as the C source names them."""
    return {
        "EP_PEERS": sizes.peers,
        "EP_PEER_LINES": peer_lines(sizes),
        "EP_BLOCKS": blocks(sizes),
        "EP_BLOCKS_STRIDE": blocks_stride(sizes),
        "EP_BLOCK_SHARE": min(max(blocks(sizes) // 8, _LEAST_SHARE), 0xFFFF),
        "EP_DESTINATION_BUCKETS": max(sizes.destinations // WAYS, 1),
        "EP_VISIT_BUCKETS": max(sizes.destinations // WAYS, 1),
        "EP_PORT_BUCKETS": max(sizes.ports // WAYS, 1),
        "EP_POOLS": MAX_POOLS,
        "EP_EXITS": sizes.exits,
        "EP_EXIT_BUCKETS": exit_buckets(sizes),
        "EP_EXIT_LINES": exit_lines(sizes),
        "EP_EXIT_SHARE": max(sizes.exits // 16, _LEAST_SHARE),
        "EP_PANES": sizes.panes,
        "EP_PROCESSORS": possible_processors(),
    }


@cache
def possible_processors() -> int:
    """How many processors there can be (possible ones, not those online)."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(re.split("[-,]", text.strip())[-1]) + 1


def unattributed(maps: Mapping[str, int]) -> int:
    """Flows since the start that came in by a tunnel and belong to no slot, of all processors."""
    size = 8 * OUTCOME_ROOM * possible_processors()
    with mapped.opened(maps["outcomes"], 0, size) as table:
        counters = struct.unpack(f"<{size // 8}Q", table[:size])
    first = Outcome.UNATTRIBUTED * len(FAMILIES)
    return sum(sum(counters[at + first : at + first + 2]) for at in range(0, len(counters), OUTCOME_ROOM))


class Watched:
    """The table ``watched``, with one writer: the tunnels, and how many lines the peers use."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        self._words = mapped.Words(maps["watched"], WATCHED_SIZE)

    @property
    def peer_lines(self) -> int:
        """Lines of the table of peers that are used; 0 before the first word on it."""
        return self._words[_PEER_LINES]

    @peer_lines.setter
    def peer_lines(self, lines: int) -> None:
        self._words[_PEER_LINES] = lines

    def add_tunnel(self, ifindex: int) -> bool:
        """Name a WireGuard interface: its flows without a slot are unattributed; False for no room."""
        places = self._places(ifindex)
        if any(self._words[place] == ifindex for place in places):
            return True
        free = next((place for place in places if not self._words[place]), None)
        if free is not None:
            self._words[free] = ifindex
        return free is not None

    def remove_tunnel(self, ifindex: int) -> None:
        """Forget an interface."""
        for place in self._places(ifindex):
            if self._words[place] == ifindex:
                self._words[place] = 0

    def _places(self, ifindex: int) -> range:
        first = _FIRST_TUNNEL + ifindex % _TUNNEL_LINES * _TUNNELS_IN_LINE
        return range(first, first + _TUNNELS_IN_LINE)


def set_pools(maps: Mapping[str, int], ranges: Sequence[tuple[Address, Address]]) -> int:
    """Name the exit ranges (first, last) for the destination predictor.

    Returns:
        How many did not fit and are therefore not predicted for.
    """
    fitting = ranges[:MAX_POOLS]
    written = b"".join(_pool(first, last) for first, last in fitting)
    with mapped.opened(maps["pools"], 0, MAX_POOLS * _POOL.size) as table:
        table[: MAX_POOLS * _POOL.size] = written.ljust(MAX_POOLS * _POOL.size, b"\0")
    return len(ranges) - len(fitting)


def _pool(first: Address, last: Address) -> bytes:
    def words(address: Address) -> list[int]:
        found = [int.from_bytes(address.packed[i : i + 4], "big") for i in range(0, len(address.packed), 4)]
        return found + [0] * (4 - len(found))

    size = int(last) - int(first) + 1
    return _POOL.pack(*words(first), *words(last), 1 if first.version == 4 else 2, CHANCE_UNIT // size)
