# SPDX-License-Identifier: Apache-2.0
"""Which tunnel address has which slot, as the kernel program looks it up.

One address is in the map ``peers``, an array of lines with room for two, in one of the lines from the one
that its hash names. Of the lines only as many are used as the peers want, so that few peers are in few pages.
A network of addresses is in a trie, and so is an address whose lines are all full. There is one writer. No
NumPy in here: the sensor does without.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from detector.base.family import Address
from detector.config.model import Tables
from detector.kernel import bpf, mapped
from detector.kernel.tables import Watched, peer_lines

# Those of bpf/tables.h, of mix() there, and of find_slot() in bpf/observe.h.
PEERS_IN_LINE = 2
PROBES = 4
LINE_SIZE = 64
_MIX = 0x9E3779B97F4A7C15
_64_BITS = 2**64 - 1

_KEY = struct.Struct("<I")
_PEER = struct.Struct("<II16s")  # interface, slot + 1, address
_HALVES = struct.Struct("<QQ")
_PREFIX = struct.Struct("<II")
_INTERFACE_BITS = 32
_FEWEST_LINES = 64


def line_of(ifindex: int, address: Address) -> int:
    """The hash that names an address's first line; the lowest bits count."""
    first, last = _HALVES.unpack(_packed(address))
    folded: int = first ^ last ^ ifindex
    return ((folded ^ folded >> 32) * _MIX & _64_BITS) >> 32


class PeerTable:
    """The maps ``peers``, ``networks4`` and ``networks6``.

    Args:
        maps: descriptors by name.
        sizes: those that the program was loaded with.
        watched: where the number of lines in use is said.
    """

    def __init__(self, maps: Mapping[str, int], sizes: Tables, watched: Watched) -> None:
        self._maps, self._most, self._watched = maps, peer_lines(sizes), watched
        self._slots: dict[tuple[int, Address], int] = {}
        self._in_trie: set[tuple[int, Address]] = set()  # since their lines are full
        if not watched.peer_lines:
            watched.peer_lines = min(_FEWEST_LINES, self._most)

    def set(self, ifindex: int, address: Address, prefix_length: int, slot: int) -> None:
        """Make flows from a tunnel address, or from a network of them, count for a slot.

        Raises:
            OSError: ENOSPC when the table is full.
        """
        if prefix_length == address.max_prefixlen:
            self._slots[ifindex, address] = slot
            if len(self._slots) > self._watched.peer_lines < self._most:
                self._grow()
            with self._opened() as lines:
                in_line = lines.put(self._watched.peer_lines, ifindex, address, slot)
            if in_line:
                self._leave_trie(ifindex, address)
                return
            self._in_trie.add((ifindex, address))
        table, key = self._trie(ifindex, address, prefix_length)
        bpf.update(table, key, _KEY.pack(slot))

    def remove(self, ifindex: int, address: Address, prefix_length: int) -> None:
        """Forget a tunnel address or a network of them; one that is not there is no error."""
        if prefix_length == address.max_prefixlen:
            self._slots.pop((ifindex, address), None)
            with self._opened() as lines:
                lines.clear(lines.places(self._watched.peer_lines, ifindex, address), ifindex, address)
            self._leave_trie(ifindex, address)
        else:
            bpf.delete(*self._trie(ifindex, address, prefix_length))

    def _leave_trie(self, ifindex: int, address: Address) -> None:
        if (ifindex, address) in self._in_trie:
            self._in_trie.remove((ifindex, address))
            bpf.delete(*self._trie(ifindex, address, address.max_prefixlen))

    def _grow(self) -> None:
        """Use twice the lines: everybody is in both places before the program looks for the new ones only."""
        before, after = self._watched.peer_lines, 2 * self._watched.peer_lines
        with self._opened() as lines:
            for (ifindex, address), slot in self._slots.items():
                if not lines.put(after, ifindex, address, slot):
                    bpf.update(*self._trie(ifindex, address, address.max_prefixlen), _KEY.pack(slot))
                    self._in_trie.add((ifindex, address))
            self._watched.peer_lines = after
            mapped.wait_for_programs()
            for ifindex, address in self._slots:
                there = set(lines.places(after, ifindex, address))
                left = [place for place in lines.places(before, ifindex, address) if place not in there]
                lines.clear(left, ifindex, address)

    @contextmanager
    def _opened(self) -> Iterator[_Lines]:
        with mapped.opened(self._maps["peers"], 0, self._most * LINE_SIZE) as memory:
            yield _Lines(memory)

    def _trie(self, ifindex: int, address: Address, prefix_length: int) -> tuple[int, bytes]:
        prefix = _PREFIX.pack(_INTERFACE_BITS + prefix_length, ifindex)
        return self._maps[f"networks{address.version}"], prefix + address.packed


class _Lines:
    """The lines of the map as memory; a place is the offset of an entry."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def places(self, used: int, ifindex: int, address: Address) -> list[int]:
        """Where an address can be while so many lines are used, in the order in which the program looks."""
        first = line_of(ifindex, address)
        lines = dict.fromkeys((first + probe) % used for probe in range(PROBES))
        return [line * LINE_SIZE + at * _PEER.size for line in lines for at in range(PEERS_IN_LINE)]

    def put(self, used: int, ifindex: int, address: Address, slot: int) -> bool:
        """Name an address's slot, where it is already or in a free place; False where there is none."""
        places = self.places(used, ifindex, address)
        place = next((one for one in places if self._is_of(one, ifindex, address)), None)
        if place is None:
            place = next((one for one in places if not self._slot(one)), None)
        if place is None:
            return False
        packed = _PEER.pack(ifindex, slot + 1, _packed(address))
        # Who it is before that it is somebody: an entry that is seen half written is nobody's.
        self._memory[place + 8 : place + _PEER.size] = packed[8:]
        self._memory[place : place + 4] = packed[:4]
        self._memory[place + 4 : place + 8] = packed[4:8]
        return True

    def clear(self, places: list[int], ifindex: int, address: Address) -> bool:
        """Empty those of these places that are an address's; whether there was one."""
        found = [place for place in places if self._is_of(place, ifindex, address)]
        for place in found:
            self._memory[place + 4 : place + 8] = bytes(4)
        return bool(found)

    def _slot(self, place: int) -> int:
        found: int = _KEY.unpack_from(self._memory, place + 4)[0]
        return found

    def _is_of(self, place: int, ifindex: int, address: Address) -> bool:
        there, slot, packed = _PEER.unpack_from(self._memory, place)
        return bool(slot) and (there, packed) == (ifindex, _packed(address))


def _packed(address: Address) -> bytes:
    """As conntrack keeps it: zeros after an IPv4 address."""
    return address.packed.ljust(16, b"\0")
