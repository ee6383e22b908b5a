# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables as the sensor writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from detector.base.family import Address
from detector.config.model import Tables
from detector.kernel import bpf, tables
from detector.kernel.last_votes import LastVotes
from detector.kernel.peer_table import PeerTable


class KernelTables:
    """Tunnel addresses, interfaces and pools.

    Args:
        maps: descriptors by name.
        sizes: those that the program was loaded with.
    """

    def __init__(self, maps: Mapping[str, int], sizes: Tables) -> None:
        self._maps = maps
        self._votes = LastVotes(maps["evidences"], sizes.peers)
        self._watched = tables.Watched(maps)
        self._peers = PeerTable(maps, sizes, self._watched)

    def set_peer(self, ifindex: int, address: Address, prefix_length: int, slot: int) -> None:
        """Make flows from a tunnel address, or from a network of them, count for a slot.

        Raises:
            OSError: ENOSPC when the table is full.
        """
        self._peers.set(ifindex, address, prefix_length, slot)

    def remove_peer(self, ifindex: int, address: Address, prefix_length: int) -> None:
        """Forget a tunnel address, or a network of them; one that is not there is no error."""
        self._peers.remove(ifindex, address, prefix_length)

    def set_tunnel(self, ifindex: int) -> None:
        """Name a WireGuard interface: its flows without a slot are unattributed."""
        self._watched.add_tunnel(ifindex)

    def remove_tunnel(self, ifindex: int) -> None:
        """Forget one."""
        self._watched.remove_tunnel(ifindex)

    def set_pools(self, ranges: Sequence[tuple[Address, Address]]) -> int:
        """Name the exit ranges for the destination predictor; returns how many did not fit."""
        return tables.set_pools(self._maps, ranges)

    def last_votes(self, upto: int) -> Iterable[tuple[int, bytes]]:
        """The exits, as 16 bytes, of the last votes of those slots below a number that have voted since."""
        return self._votes.since(upto)

    def unattributed(self) -> int:
        """Flows since the start that belong to no slot."""
        return tables.unattributed(self._maps)

    def run_time(self) -> bpf.RunTime:
        """How often the kernel program ran, and how long in all."""
        return bpf.run_time(self._maps["program"])
