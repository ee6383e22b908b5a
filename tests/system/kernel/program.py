# SPDX-License-Identifier: Apache-2.0
"""The loaded kernel program as the tests of this folder use it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detector.base.family import Address, Family, unpack
from detector.config.model import Tables
from detector.kernel import loader
from detector.kernel.drain import PairTables, clear_slot, read_outcomes, read_slots
from detector.kernel.peer_table import PeerTable
from detector.kernel.tables import Outcome, set_control, set_tunnel
from detector.lab.namespaces import entered
from tests.system.kernel.topology import Entry, Relay

# The hook to test, "auto" for the first that works here.
HOOK = os.environ.get("EXITPRINT_TEST_HOOK", "auto")
SMALL = Tables(peers=1024, pairs=65536, destinations=65536, ports=65536, panes=4, measured=10_000)
# For the program that the tests share: what one leaves in the memories does not fill them for others.
SHARED = replace(SMALL, destinations=1 << 20, ports=1 << 22)
GAP = 600.0  # seconds

Key = tuple[int, Address]


class Trials(NamedTuple):
    """What the slot table holds of the contrasts and the predictor: (tried, true) each."""

    same_destination: tuple[int, int] = (0, 0)
    same_port: tuple[int, int] = (0, 0)
    destination: tuple[int, int] = (0, 0)


class Counted(NamedTuple):
    """What was drained, by (slot, exit)."""

    flows: Counter[Key]
    votes: Counter[Key]
    session_starts: Counter[Key]


class Program:
    """A loaded program, attached to a relay, with slots that no test has used before.

    Args:
        relay: where it is attached.
        loaded: what the loader handed over.
        sizes: those that it was loaded with.
        pairs: its tables of pairs, which know the one that is written.
        numbers: the slots that are still unused.
    """

    def __init__(
        self,
        relay: Relay,
        loaded: loader.Loaded,
        sizes: Tables,
        pairs: PairTables,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.relay, self.loaded, self.maps = relay, loaded, loaded.descriptors
        self.pairs = pairs
        self.table = PeerTable(self.maps, sizes)
        self._numbers = numbers or count()
        self._peers: list[tuple[int, Address, int]] = []
        self.pairs.drain()
        self._base = read_outcomes(self.maps)

    def add(self, address: Address | IPv4Network | IPv6Network, ifindex: int | None = None) -> int:
        """Give a tunnel address, or a network of them, a slot."""
        slot = next(self._numbers)
        if isinstance(address, IPv4Network | IPv6Network):
            first, length = address.network_address, address.prefixlen
        else:
            first, length = address, address.max_prefixlen
        key = (self.relay.tun0 if ifindex is None else ifindex, first, length)
        self.table.set(*key, slot)
        clear_slot(self.maps, slot)
        self._peers.append(key)
        return slot

    def add_all(self, addresses: Iterable[Address]) -> dict[Address, int]:
        """Give each tunnel address a slot."""
        return {address: self.add(address) for address in addresses}

    def release(self) -> None:
        """Take the peers of this test out again."""
        for key in self._peers:
            self.table.remove(*key)

    def control(self, now: float, pane: int = 1, session_gap: float = GAP) -> None:
        """Set the time (seconds) and the pane."""
        set_control(self.maps, now, session_gap, pane)

    def drain(self) -> Counted:
        """What was counted since the last drain."""
        drained = self.pairs.drain()
        counted = Counted(Counter(), Counter(), Counter())
        exits = [unpack(bytes(exit_)) for exit_ in drained.exits]
        for slot, exit_, counts in zip(drained.slot, drained.exit, drained.counts, strict=True):
            for counter, number in zip(counted, counts, strict=True):
                if number:
                    counter[int(slot), exits[exit_]] += int(number)
        return counted

    def outcomes(self) -> Counter[tuple[Family, Outcome]]:
        """What became of the flows since this object was made; zeros are left out."""
        now = read_outcomes(self.maps)
        return Counter({key: now[key] - self._base[key] for key in now if now[key] != self._base[key]})

    def outcome(self, outcome: Outcome) -> int:
        """Flows of both families with one outcome."""
        return sum(number for (_, one), number in self.outcomes().items() if one is outcome)

    def state(self, slot: int) -> np.void:
        """A slot's row."""
        row: np.void = read_slots(self.maps, slot + 1)[slot]
        return row

    def trials(self, slot: int) -> Trials:
        """A slot's trials."""
        row = self.state(slot)
        return Trials(
            (int(row["same_destination_tried"]), int(row["same_destination_true"])),
            (int(row["same_port_tried"]), int(row["same_port_true"])),
            (int(row["destination_tried"]), int(row["destination_hit"])),
        )


@contextmanager
def running(relay: Relay, sizes: Tables) -> Iterator[Program]:
    """A program of its own with tables of these sizes, and with an empty conntrack."""
    relay.forget()
    with attached(relay, sizes) as loaded:
        yield Program(relay, loaded, sizes, PairTables(loaded.descriptors, sizes))


@contextmanager
def attached(relay: Relay, sizes: Tables = SMALL, gap: float = GAP) -> Iterator[loader.Loaded]:
    """Load the program into the relay's namespace; it is gone at the end."""
    with entered(relay.middle):
        loaded = loader.load(HOOK, sizes, gap)
    try:
        for ifindex in (relay.tun0, relay.tun1):
            set_tunnel(loaded.descriptors, ifindex)
        yield loaded
    finally:
        loaded.close()


def counted_by_conntrack(entries: Iterable[Entry], slots: dict[Address, int]) -> Counter[Key]:
    """The truth: entries per (slot, exit)."""
    return Counter((slots[entry.source], entry.exit) for entry in entries if entry.source in slots)


class Model:
    """The contrasts as docs/leak-modes.md §3 has them, for all slots of a program.

    Args:
        destinations: how many (slot, destination) the memory holds; it is not limited unless given.
        ports: likewise (slot, protocol, source port).
    """

    def __init__(self, destinations: float = math.inf, ports: float = math.inf) -> None:
        self._destinations = _Memory(destinations)
        self._ports = _Memory(ports)
        self.votes: Counter[Key] = Counter()
        self.tried: Counter[tuple[str, int]] = Counter()
        self.true: Counter[tuple[str, int]] = Counter()
        self.lost: Counter[Outcome] = Counter()

    def see(self, slot: int, entry: Entry) -> None:
        """The next flow, in the order in which they were sent."""
        destination = self._destinations.put((slot, entry.destination), entry.exit)
        port = self._ports.put((slot, entry.protocol, entry.port), entry.exit)
        if _Memory.FULL in (destination, port):
            full = Outcome.LOST_DESTINATIONS if destination == _Memory.FULL else Outcome.LOST_PORTS
            self.lost[full] += 1
        elif destination is None and port is None:
            self.votes[slot, entry.exit] += 1
        elif port is None:
            self._tally("same_destination", slot, destination == entry.exit)
        elif destination is None:
            self._tally("same_port", slot, port == entry.exit)

    def _tally(self, contrast: str, slot: int, came_true: bool) -> None:
        self.tried[contrast, slot] += 1
        self.true[contrast, slot] += came_true

    def trials(self, slot: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(tried, true) of both contrasts, as `Trials` has them."""
        one, other = ((self.tried[name, slot], self.true[name, slot]) for name in Trials._fields[:2])
        return one, other


class _Memory:
    """What was the exit of last time? Full when it holds `room` keys."""

    FULL = "full"

    def __init__(self, room: float) -> None:
        self._room, self._exits = room, dict[tuple[object, ...], Address]()

    def put(self, key: tuple[object, ...], exit_address: Address) -> Address | str | None:
        """The exit of last time, None for a new key."""
        before = self._exits.get(key)
        if before is None and len(self._exits) >= self._room:
            return self.FULL
        self._exits[key] = exit_address
        return before


def fdinfo(descriptor: int, process: int | str = "self") -> dict[str, str]:
    """What the kernel says of an open BPF object."""
    lines = Path(f"/proc/{process}/fdinfo/{descriptor}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
