# SPDX-License-Identifier: Apache-2.0
"""Which tunnel address has which slot, as the kernel program looks it up.

One address is in the map ``peers``, an array of lines with room for two, in one of the lines from the one
that its hash names. A network of addresses is in a trie, and so is an address whose lines are all full. There
is one writer; what it knows is what the maps hold. No NumPy in here: the sensor does without.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from detector.base.family import Address
from detector.config.model import Tables
from detector.kernel import bpf
from detector.kernel.tables import peer_lines

# Those of bpf/tables.h, of mix() there, and of find_slot() in bpf/observe.h.
PEERS_IN_LINE = 2
PROBES = 4
LINE_SIZE = 64
_MIX = 0x9E3779B97F4A7C15
_64_BITS = 2**64 - 1

_KEY = struct.Struct("<I")
_PEER = struct.Struct("<II16s")  # interface, slot + 1, address
_NOBODY = bytes(_PEER.size)
_HALVES = struct.Struct("<QQ")
_PREFIX = struct.Struct("<II")
_INTERFACE_BITS = 32


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
    """

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._maps, self._lines = maps, peer_lines(sizes)

    def set(self, ifindex: int, address: Address, prefix_length: int, slot: int) -> None:
        """Make flows from a tunnel address, or from a network of them, count for a slot.

        Raises:
            OSError: ENOSPC when the table is full.
        """
        if prefix_length == address.max_prefixlen:
            places = list(self._places(ifindex, address))
            found = [place for place in places if place.is_of(ifindex, address)]
            free = [place for place in places if place.free]
            if found or free:
                self._write((found or free)[0], _PEER.pack(ifindex, slot + 1, _packed(address)))
                return
        table, key = self._trie(ifindex, address, prefix_length)
        bpf.update(table, key, _KEY.pack(slot))

    def remove(self, ifindex: int, address: Address, prefix_length: int) -> None:
        """Forget a tunnel address or a network of them; one that is not there is no error."""
        if prefix_length == address.max_prefixlen:
            for place in self._places(ifindex, address):
                if place.is_of(ifindex, address):
                    self._write(place, _NOBODY)
        bpf.delete(*self._trie(ifindex, address, prefix_length))

    def _places(self, ifindex: int, address: Address) -> Iterator[_Place]:
        """Where an address can be, in the order in which the program looks."""
        first = line_of(ifindex, address)
        for line in dict.fromkeys((first + probe) % self._lines for probe in range(PROBES)):
            held = bpf.lookup(self._maps["peers"], _KEY.pack(line), LINE_SIZE)
            for index in range(PEERS_IN_LINE):
                yield _Place(line, index, held)

    def _write(self, place: _Place, entry: bytes) -> None:
        """Make or clear an entry: none becomes another's, so one that is seen half written is nobody's."""
        at = place.index * _PEER.size
        line = place.held[:at] + entry + place.held[at + _PEER.size :]
        bpf.update(self._maps["peers"], _KEY.pack(place.line), line)

    def _trie(self, ifindex: int, address: Address, prefix_length: int) -> tuple[int, bytes]:
        prefix = _PREFIX.pack(_INTERFACE_BITS + prefix_length, ifindex)
        return self._maps[f"networks{address.version}"], prefix + address.packed


@dataclass(frozen=True, slots=True, repr=False)
class _Place:
    """Room for one address: which of a line, and what that line holds."""

    line: int
    index: int
    held: bytes

    def is_of(self, ifindex: int, address: Address) -> bool:
        """Is it this address's?"""
        there, slot, packed = _PEER.unpack_from(self.held, self.index * _PEER.size)
        return bool(slot) and (there, packed) == (ifindex, _packed(address))

    @property
    def free(self) -> bool:
        """Is it nobody's?"""
        return not _PEER.unpack_from(self.held, self.index * _PEER.size)[1]


def _packed(address: Address) -> bytes:
    """As conntrack keeps it: zeros after an IPv4 address."""
    return address.packed.ljust(16, b"\0")
