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
from typing import Any, NamedTuple

import numpy as np

from detector.base.family import Address, Family, unpack
from detector.base.flows import FLOW_CLASSES, LAGS, FlowClass, Lag
from detector.config.model import Tables
from detector.kernel import loader
from detector.kernel.control import Control
from detector.kernel.drain import PairTables, clear_slots, read_evidence, read_outcomes, read_slots
from detector.kernel.peer_table import PeerTable
from detector.kernel.tables import Budgets, Outcome, Watched
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
    class_votes: tuple[Counter[Key], ...] = ()


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
        self.controls = Control(self.maps)
        self.budgets = Budgets.of(sizes)
        self.table = PeerTable(self.maps, sizes, Watched(self.maps))
        self._numbers = numbers or count()
        self._peers: list[tuple[int, Address, int]] = []
        self.pairs.drain()
        self._base = read_outcomes(self.maps)

    @classmethod
    def of(cls, relay: Relay, loaded: loader.Loaded, sizes: Tables) -> Program:
        """With a table of pairs of its own."""
        return cls(relay, loaded, sizes, PairTables(loaded.descriptors, sizes, Control(loaded.descriptors)))

    def untracked(self) -> int:
        """Packets without a conntrack entry, those of the tests' own barriers among them."""
        now = read_outcomes(self.maps)
        return sum(
            now[family, Outcome.UNTRACKED] - self._base[family, Outcome.UNTRACKED] for family in Family
        )

    def add(self, address: Address | IPv4Network | IPv6Network, ifindex: int | None = None) -> int:
        """Give a tunnel address, or a network of them, a slot."""
        slot = next(self._numbers)
        if isinstance(address, IPv4Network | IPv6Network):
            first, length = address.network_address, address.prefixlen
        else:
            first, length = address, address.max_prefixlen
        key = (self.relay.tun0 if ifindex is None else ifindex, first, length)
        self.table.set(*key, slot)
        clear_slots(self.maps, [slot])
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
        self.controls.set(now, session_gap, pane)

    def drain(self, *, renumber: bool = False) -> Counted:
        """What was counted since the last drain."""
        drained = self.pairs.drain(renumber=renumber)
        exits = [unpack(bytes(exit_)) for exit_ in drained.exits]
        flows, votes, firsts = (Counter[Key](), Counter[Key](), Counter[Key]())
        by_class = [Counter[Key]() for _ in FLOW_CLASSES]
        for counter, part in ((flows, drained.flows), (firsts, drained.firsts)):
            for slot, exit_, number in zip(part.slot, part.exit, part.counts, strict=True):
                counter[int(slot), exits[exit_]] += int(number)
        for slot, exit_, packed in zip(
            drained.votes.slot, drained.votes.exit, drained.votes.counts, strict=True
        ):
            for kind, counter in zip(FLOW_CLASSES, by_class, strict=True):
                if number := int(packed) >> 16 * kind & 0xFFFF:
                    counter[int(slot), exits[exit_]] += number
                    votes[int(slot), exits[exit_]] += number
        return Counted(flows, votes, firsts, tuple(by_class))

    def class_votes(self) -> Counter[tuple[FlowClass, Key]]:
        """The votes since the last drain, by class."""
        drained = self.drain()
        return Counter(
            {
                (kind, key): number
                for kind, counter in zip(FLOW_CLASSES, drained.class_votes, strict=True)
                for key, number in counter.items()
            }
        )

    def outcomes(self) -> Counter[tuple[Family, Outcome]]:
        """What became of the flows since this object was made; zeros are left out."""
        now = read_outcomes(self.maps)
        grown = Counter({key: now[key] - self._base[key] for key in now if now[key] != self._base[key]})
        # Each `send` ends with a packet that is not tracked.
        return Counter({key: number for key, number in grown.items() if key[1] is not Outcome.UNTRACKED})

    def outcome(self, outcome: Outcome) -> int:
        """Flows of both families with one outcome."""
        return sum(number for (_, one), number in self.outcomes().items() if one is outcome)

    def state(self, slot: int) -> np.void:
        """A slot's row."""
        row: np.void = read_slots(self.maps, slot + 1)[slot]
        return row

    def evidence(self, slot: int) -> np.void:
        """A slot's evidence."""
        row: np.void = read_evidence(self.maps, slot + 1)[slot]
        return row

    def found(self, slot: int) -> Counter[tuple[object, ...]]:
        """All that the kernel has found of a slot, in words."""
        row, found = self.evidence(slot), Counter[tuple[object, ...]]()
        kinds = [(True, True), (True, False), (False, True), (False, False)]
        places = [("vote", kind, lag) for kind in FLOW_CLASSES for lag in LAGS]
        packed = [*row["vote_sandwiches"].ravel(), *row["return_sandwiches"]]
        for place, word in zip([*places, *(("return", lag) for lag in LAGS)], packed, strict=True):
            for part, matches in enumerate(kinds):
                found[*place, *matches] = int(word) >> 8 * part & 0xFF
        for lag, word in zip(LAGS, row["lone_returns"], strict=True):
            tried, true = int(word) & 0xFFFF, int(word) >> 16
            found["lone", lag, True], found["lone", lag, False] = true, tried - true
        tried, true = int(row["same_port_tried"]), int(row["same_port_true"])
        found["same_port", True], found["same_port", False] = true, tried - true
        found["session",] = int(self.state(slot)["sessions"])
        return +found

    def trials(self, slot: int) -> Trials:
        """A slot's trials."""
        row = self.evidence(slot)
        packed = [int(one) for one in row["return_sandwiches"]]
        sandwiches = [[one >> 8 * part & 0xFF for part in range(4)] for one in packed]
        lone = [(int(one) & 0xFFFF, int(one) >> 16) for one in row["lone_returns"]]
        return Trials(
            (
                sum(map(sum, sandwiches)) + sum(tried for tried, _ in lone),
                sum(both + mine for both, mine, _, _ in sandwiches) + sum(true for _, true in lone),
            ),
            (int(row["same_port_tried"]), int(row["same_port_true"])),
            (int(row["destination_tried"]), int(row["destination_hit"])),
        )


@contextmanager
def running(relay: Relay, sizes: Tables) -> Iterator[Program]:
    """A program of its own with tables of these sizes, and with an empty conntrack."""
    relay.forget()
    with attached(relay, sizes) as loaded:
        yield Program(
            relay, loaded, sizes, PairTables(loaded.descriptors, sizes, Control(loaded.descriptors))
        )


@contextmanager
def attached(relay: Relay, sizes: Tables = SMALL, gap: float = GAP) -> Iterator[loader.Loaded]:
    """Load the program into the relay's namespace; it is gone at the end."""
    with entered(relay.middle):
        loaded = loader.load(HOOK, sizes, gap)
    try:
        for ifindex in (relay.tun0, relay.tun1):
            assert Watched(loaded.descriptors).add_tunnel(ifindex)
        yield loaded
    finally:
        loaded.close()


def counted_by_conntrack(entries: Iterable[Entry], slots: dict[Address, int]) -> Counter[Key]:
    """The truth: entries per (slot, exit)."""
    return Counter((slots[entry.source], entry.exit) for entry in entries if entry.source in slots)


class Model:
    """What bpf/contrasts.h finds out, for all slots of a program, in other words.

    Args:
        budgets: of the program.
        panes: after which a memory forgets.
        destinations: how many (slot, destination), and how many (destination, class), the memories hold.
        ports: likewise (slot, protocol, source port).
    """

    def __init__(
        self,
        budgets: Budgets,
        panes: int = SMALL.panes,
        destinations: float = math.inf,
        ports: float = math.inf,
    ) -> None:
        self._budgets, self._panes = budgets, panes
        self._destinations, self._ports = _Memory(destinations, panes), _Memory(ports, panes)
        self._visits = _Memory(destinations, panes)
        self._slots: dict[int, _SlotModel] = {}
        self._last: dict[tuple[int, FlowClass], tuple[int, Address, int]] = {}
        self.now, self.pane, self.drain, self.gap = 1.0, 1, 0, GAP
        self.votes: Counter[Key] = Counter()
        self.class_votes: Counter[tuple[FlowClass, Key]] = Counter()
        self.found: Counter[tuple[object, ...]] = Counter()
        self.port_blocks: dict[int, set[int]] = {}
        self.lost: Counter[Outcome] = Counter()

    def control(self, now: float, pane: int = 1, session_gap: float = GAP) -> None:
        """As `Program.control`."""
        self.now, self.pane, self.gap = now, pane, session_gap

    def see(self, number: int, entry: Entry) -> None:
        """The next flow, in the order in which they were sent."""
        slot, kind = self._slots.setdefault(number, _SlotModel()), class_of(entry)
        if slot.begin(self.now, self.gap):
            self.found[number, "session"] += 1
        if slot.pane != self.pane:
            slot.pane, slot.spent, slot.settled = self.pane, Counter(), set()
            self.port_blocks[number] = set()
        if kind in slot.settled:
            return
        slot.spent[kind, "looked"] += 1
        self._measure(number, slot, entry, kind)
        spent, budgets = slot.spent, self._budgets
        if spent[kind, "looked"] >= budgets.looked or (
            spent[kind, "votes"] >= budgets.votes and spent[kind, "returns"] >= budgets.returns
        ):
            slot.settled.add(kind)

    def _measure(self, number: int, slot: _SlotModel, entry: Entry, kind: FlowClass) -> None:
        left = slot.spent[kind, "votes"] < self._budgets.votes
        when = self.pane, slot.sessions, self.drain
        mine = self._destinations.put((number, entry.destination), (entry.exit, kind, when), self.pane, left)
        port = self._ports.put((number, entry.protocol, entry.port), (entry.exit,), self.pane, left)
        if _FULL in (mine, port):
            self.lost[Outcome.LOST_DESTINATIONS if mine is _FULL else Outcome.LOST_PORTS] += 1
            return
        if entry.translated != entry.port and entry.protocol in {"tcp", "udp"}:
            self.port_blocks[number].add(entry.translated // 1024)
        last: _Held | None = None
        if left or mine is not None:
            last = self._visits.put((entry.destination, kind), (entry.exit, number), self.pane, True)
        if mine is None and port is None:
            if slot.spend(kind, "votes", self._budgets.votes):
                self._vote(number, slot, entry, kind, when)
        elif port is None:
            assert mine is not None
            if mine[1] is kind and slot.spend(kind, "returns", self._budgets.returns):
                self._return(number, entry, mine, when, last)
        elif mine is None and slot.spend(kind, "reuses", self._budgets.reuses):
            self.found[number, "same_port", port[0] == entry.exit] += 1

    def _vote(
        self, number: int, slot: _SlotModel, entry: Entry, kind: FlowClass, when: tuple[int, int, int]
    ) -> None:
        self.votes[number, entry.exit] += 1
        self.class_votes[kind, (number, entry.exit)] += 1
        place = entry.source.version, kind
        other, mine = self._last.get(place), slot.last_vote.get(kind)
        self._last[place] = number, entry.exit, self.pane
        slot.last_vote[kind] = entry.exit, when
        slot.last_exit = entry.exit
        if (
            mine is None
            or self._over(mine[1][0])
            or other is None
            or other[0] == number
            or self._over(other[2])
        ):
            return
        matches = mine[0] == entry.exit, other[1] == entry.exit
        self.found[number, "vote", kind, lag_of(mine[1], when), *matches] += 1

    def _return(
        self, number: int, entry: Entry, mine: _Held, when: tuple[int, int, int], last: _Held | None
    ) -> None:
        lag, same = lag_of(mine[2], when), mine[0] == entry.exit
        if last is _FULL:
            self.lost[Outcome.LOST_DESTINATIONS] += 1
        elif last is None or last[1] == number:
            self.found[number, "lone", lag, same] += 1
        else:
            self.found[number, "return", lag, same, last[0] == entry.exit] += 1

    def _over(self, pane: int) -> bool:
        return self.pane - pane >= self._panes

    def trials(self, slot: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(tried, true) of both contrasts, as `Trials` has them."""
        returns = {key: n for key, n in self.found.items() if key[0] == slot and key[1] in ("return", "lone")}
        true = sum(n for key, n in returns.items() if key[3])
        ports = [self.found[slot, "same_port", same] for same in (False, True)]
        return (sum(returns.values()), true), (sum(ports), ports[1])

    def evidence(self, slot: int) -> Counter[tuple[object, ...]]:
        """All that was found of a slot, as `Program.found` has it."""
        return Counter({key[1:]: number for key, number in self.found.items() if key[0] == slot})


def lag_of(before: tuple[int, int, int], now: tuple[int, int, int]) -> Lag:
    """How far two flows of a slot are apart; each is (pane, session, drain)."""
    if before[1] != now[1]:
        return Lag.SESSIONS
    if before[0] != now[0]:
        return Lag.PANES
    return Lag.DRAIN if before[2] == now[2] else Lag.PANE


def class_of(entry: Entry) -> FlowClass:
    """What a flow is."""
    if entry.to in {53, 853} and entry.protocol in {"tcp", "udp"}:
        return FlowClass.DNS
    if entry.protocol == "tcp":
        return FlowClass.TCP
    return FlowClass.QUIC if (entry.protocol, entry.to) == ("udp", 443) else FlowClass.OTHER


class _SlotModel:
    """What is known of a slot."""

    def __init__(self) -> None:
        self.sessions, self.pane = 0, -1
        self.spent: Counter[tuple[FlowClass, str]] = Counter()
        self.settled: set[FlowClass] = set()
        self.last_vote: dict[FlowClass, tuple[Address, tuple[int, int, int]]] = {}
        self.last_exit: Address | None = None
        self._last_flow = 0.0

    def begin(self, now: float, gap: float) -> bool:
        """A flow now; whether it begins a session."""
        first = not self.sessions or now - self._last_flow > gap
        self._last_flow = now
        self.sessions += first
        return first

    def spend(self, kind: FlowClass, what: str, budget: int) -> bool:
        """One trial, if the budget allows it."""
        if self.spent[kind, what] >= budget:
            return False
        self.spent[kind, what] += 1
        return True


_Held = tuple[Any, ...]
_FULL: _Held = ("full",)


class _Memory:
    """What was there last? Full when it holds `room` keys of the last `panes` panes."""

    def __init__(self, room: float, panes: int) -> None:
        self._room, self._panes, self._held = room, panes, dict[tuple[object, ...], tuple[_Held, int]]()

    def put(self, key: tuple[object, ...], held: _Held, pane: int, insert: bool) -> _Held | None:
        """What was held until now, None for a new key, which is kept if it is to be, `_FULL` without room."""
        self._held = {one: value for one, value in self._held.items() if pane - value[1] < self._panes}
        before = self._held.get(key)
        if before is None:
            if not insert:
                return None
            if len(self._held) >= self._room:
                return _FULL
        self._held[key] = held, pane
        return before and before[0]


def fdinfo(descriptor: int, process: int | str = "self") -> dict[str, str]:
    """What the kernel says of an open BPF object."""
    lines = Path(f"/proc/{process}/fdinfo/{descriptor}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
