# SPDX-License-Identifier: Apache-2.0
"""What a remedy is made of: the draw that chooses the exit, and the words about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detector.base.ranges import AddressRange

LARGEST_MAP = 1024
"""Exits up to which all of a pool are written."""

MAX_EXITS = 256
"""Exits in the map of a remedy for a pool of more than `LARGEST_MAP`, evenly spread over it."""

STICKY = (
    "Each peer keeps one exit on this relay, chosen by a secret that the kernel draws when the rules are "
    "loaded; other relays draw others. Loading the rules again re-draws everybody's exit. Sites can still "
    "recognise the exit on this relay."
)
BY_SITE = (
    "Each peer keeps one exit for each site, chosen by a secret that the kernel draws when the rules are "
    "loaded; other relays draw others, other sites see other exits. Loading the rules again re-draws "
    "everybody's exits."
)
FRESH = "Each flow draws its exit: nothing to recognise. Sites that tie a login to an address may ask again."
DRAWN = (
    "The same choice without the seed: the kernel draws one when the rules are loaded, so that no other "
    "relay has it. Loading the rules again re-draws everybody's exit."
)
SHARED = "Everybody shares the address and its ports: nothing in the exit tells who."


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to write instead of one rule, or of several together.

    Attributes:
        text: a file that ``nft -f`` or ``iptables-restore --noflush`` takes. Of nft: table, chain and the
            rules that go in the place of the old ones. Beside iptables: the whole, to be loaded as it is.
        effect: what it changes, and what it costs.
        expression: the part of `text` that chooses, which an alternative replaces.
        alternatives: other expressions for the same place, each with its effect.
        language: ``nft`` or ``iptables``.
        replaces: the places of the rules that it stands for.
        how: what to do with `text`.
        commands: for nft's own rules, what puts it in place on the relay that the rules came from.
        iptables: the same in iptables' words, where the rules are iptables' and `language` is nft.
    """

    text: str
    effect: str
    expression: str
    alternatives: tuple[tuple[str, str], ...]
    language: str = "nft"
    replaces: tuple[str, ...] = ()
    how: str = ""
    commands: str = ""
    iptables: str = ""


@dataclass(frozen=True, slots=True)
class Draw:
    """How the new rule chooses.

    Attributes:
        word: ``ip`` or ``ip6``.
        exits: addresses, each with ports of its own or an empty string.
        flags: port flags that stay (``random``, ``fully-random``).
        order: what comes first: ``sticky`` or ``site``.
        ports: of all exits, or an empty string.
        given: the expression, where it is not one of ours.
    """

    word: str
    exits: tuple[tuple[str, str], ...]
    flags: frozenset[str]
    order: str
    ports: str
    expression: str = ""

    @property
    def choices(self) -> tuple[tuple[str, str], ...]:
        """The expressions that may choose, each with its effect; the first one is the proposal."""
        count = len(self.exits)
        if self.expression:
            modulus = self.expression.rpartition(" mod ")[2]
            return ((self.expression, STICKY), (f"numgen random mod {modulus}", FRESH))
        if count < 2:
            return (("", SHARED),)
        sticky = (f"jhash {self.word} saddr mod {count}", STICKY)
        by_site = (f"jhash {self.word} saddr . {self.word} daddr mod {count}", BY_SITE)
        fresh = (f"numgen random mod {count}", FRESH)
        return (by_site, fresh) if self.order == "site" else (sticky, by_site, fresh)

    @property
    def target(self) -> str:
        """The statement of nft."""
        ports = f":{self.ports}" if self.ports else ""
        flags = ",".join(sorted(self.flags - {"persistent"}))
        tail = f"{ports}{' ' if flags else ''}{flags}"
        if len(self.exits) == 1:
            return f"snat {self.word} to {self._address(self.exits[0][0])}{tail}"
        own = [
            f"{address} . {ports_}" if ports_ and not self.ports else address
            for address, ports_ in self.exits
        ]
        return f"snat {self.word} to {self.choices[0][0]} map {{{elements(own)}}}{tail}"

    def _address(self, address: str) -> str:
        return f"[{address}]" if self.ports and ":" in address else address


def elements(exits: Sequence[str]) -> str:
    """The elements of a map from 0 on, some to a line."""
    named = [f"{number} : {exit_}" for number, exit_ in enumerate(exits)]
    lines = [", ".join(named[at : at + 4]) for at in range(0, len(named), 4)]
    return f" {lines[0]} " if len(lines) == 1 else "\n\t\t\t" + ",\n\t\t\t".join(lines) + "\n\t\t"


def spread(pools: Sequence[AddressRange], largest: int = LARGEST_MAP, most: int = MAX_EXITS) -> list[str]:
    """The addresses of the pools, or `most` of more than `largest`, evenly spread."""
    size = sum(pool.size for pool in pools)
    wanted = size if size <= largest else most
    positions = (number * size // wanted for number in range(wanted))
    made: list[str] = []
    base, left = 0, list(pools)
    for position in positions:
        while position - base >= left[0].size:
            base += left.pop(0).size
        made.append(str(left[0].at(position - base)))
    return made
