# SPDX-License-Identifier: Apache-2.0
"""Which flows the peers of a lab start, in which order, from which source ports: a pure function of a seed.

Three kinds of flows make the contrasts of docs/leak-modes.md §3: *visits* (a destination and a source port
new for the peer: a vote), *returns* (a known destination from a new source port) and *reuses* (a new
destination from a known source port). No two flows of a workload share their five-tuple, so conntrack lists
each of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from detector.base.errors import UsageError
from detector.base.family import Family

FIRST_PORT = 20000
PORTS = 40000
_STRIDES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41)  # none divides 40000: each walks through all the ports


class Protocol(StrEnum):
    """A transport protocol, by conntrack's name."""

    TCP = "tcp"
    UDP = "udp"


class Flow(NamedTuple):
    """A flow to start: one request, one answer.

    Attributes:
        peer: its number.
        destination: index into the lab's destinations of the family.
    """

    peer: int
    family: Family
    protocol: Protocol
    destination: int
    source_port: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Flows in phases; a phase starts when every flow of the one before is answered or given up.

    Attributes:
        pause: seconds between two phases.
    """

    phases: tuple[tuple[Flow, ...], ...]
    pause: float = 0.0

    def __len__(self) -> int:
        return sum(len(phase) for phase in self.phases)

    def __iter__(self) -> Iterator[Flow]:
        for phase in self.phases:
            yield from phase


class Planner:
    """Hands out flows and remembers, per peer and family, the destinations and ports that were used."""

    def __init__(
        self, peers: int, destinations: int, seed: int = 1, families: Sequence[Family] = tuple(Family)
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.destinations = destinations
        self._travellers = [
            _Traveller(peer, family, destinations, self._random)
            for peer in range(peers)
            for family in families
        ]

    @property
    def width(self) -> int:
        """Flows of one round: one per peer and family."""
        return len(self._travellers)

    def visits(self, rounds: int) -> tuple[Flow, ...]:
        """Every peer goes to `rounds` destinations that are new for it, each from a new port."""
        return self._rounds(rounds, _Traveller.visit)

    def returns(self, rounds: int) -> tuple[Flow, ...]:
        """Every peer goes back to destinations that it knows, each time from a new port."""
        return self._rounds(rounds, _Traveller.come_back)

    def reuses(self, rounds: int) -> tuple[Flow, ...]:
        """Every peer goes to destinations that are new for it, from ports that it has used."""
        return self._rounds(rounds, _Traveller.reuse)

    def _rounds(self, rounds: int, step: Callable[[_Traveller], Flow]) -> tuple[Flow, ...]:
        flows = []
        for _ in range(rounds):
            self._random.shuffle(self._travellers)
            flows += [step(traveller) for traveller in self._travellers]
        return tuple(flows)


class _Traveller:
    """One peer in one family."""

    def __init__(self, peer: int, family: Family, destinations: int, spread: random.Random) -> None:
        self.peer, self.family = peer, family
        self._new = spread.sample(range(destinations), destinations)
        self._known: list[Flow] = []
        self._returns = self._reuses = self._drawn = 0
        self._start, self._stride = spread.randrange(PORTS), spread.choice(_STRIDES)

    def visit(self) -> Flow:
        flow = self._flow(self._next_destination(), self._port())
        self._known.append(flow)
        return flow

    def come_back(self) -> Flow:
        known = self._take(self._returns)
        self._returns += 1
        return self._flow(known.destination, self._port())

    def reuse(self) -> Flow:
        known = self._take(self._reuses)
        self._reuses += 1
        return known._replace(destination=self._next_destination())

    def _take(self, turn: int) -> Flow:
        if not self._known:
            raise UsageError("a workload begins with visits: there is nothing to come back to")
        return self._known[turn % len(self._known)]

    def _next_destination(self) -> int:
        if not self._new:
            raise UsageError("a peer has been to every destination", "give the lab more destinations")
        return self._new.pop()

    def _port(self) -> int:
        if self._drawn == PORTS:
            raise UsageError("a peer has used every source port", "ask for fewer flows or more peers")
        self._drawn += 1
        return FIRST_PORT + (self._start + self._drawn * self._stride) % PORTS

    def _flow(self, destination: int, port: int) -> Flow:
        protocol = Protocol.TCP if (self.peer + self._drawn) % 2 else Protocol.UDP
        return Flow(self.peer, self.family, protocol, destination, port)


def default_workload(
    peers: int, flows: int, destinations: int, seed: int = 1, families: Sequence[Family] = tuple(Family)
) -> Workload:
    """A workload of exactly `flows` flows that gives every contrast its trials.

    Half of the rounds are visits and a quarter are reuses, both as far as there are destinations; the rest
    are returns. Where `flows` does not fill the last round, the last phase is that much shorter.
    """
    planner = Planner(peers, destinations, seed, families)
    rounds = -(-flows // planner.width)
    visits = min((rounds + 1) // 2, destinations * 2 // 3 or 1)
    reuses = min(rounds // 4, destinations - visits)
    phases = [planner.visits(visits), planner.reuses(reuses), planner.returns(rounds - visits - reuses)]
    surplus = rounds * planner.width - flows
    last = max(index for index, phase in enumerate(phases) if len(phase) >= surplus)
    phases[last] = phases[last][: len(phases[last]) - surplus]
    return Workload(tuple(phase for phase in phases if phase))
