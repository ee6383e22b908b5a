# SPDX-License-Identifier: Apache-2.0
"""A flow as conntrack's own line, for forms that are read by writing them anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PROTOCOLS = {
    "icmp": 1,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "gre": 47,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
}
NAMES = {number: name for name, number in PROTOCOLS.items()}
GARBAGE = b"?\n"
"""Stands for a record that is not understood, so that it is counted."""
_LINES = 4096


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction: addresses, and ports or what stands for them (empty where there are none)."""

    source: str
    destination: str
    sport: str = ""
    dport: str = ""
    identifier: str = ""

    def __str__(self) -> str:
        ports = f" sport={self.sport} dport={self.dport}" if self.sport and self.dport else ""
        number = f" type=0 code=0 id={self.identifier}" if self.identifier else ""
        return f"src={self.source} dst={self.destination}{ports}{number}"


def line(
    protocol: int,
    original: Tuple,
    reply: Tuple,
    *,
    event: str = "",
    time: float | None = None,
    zone: str = "",
) -> bytes:
    """The line; `protocol` is the number, `event` one of NEW, UPDATE, DESTROY or empty for an entry."""
    stamp = f"[{time:.6f}] " if time is not None and 0 <= time < 1e12 else ""
    what = f"[{event}] " if event else ""
    zoned = f" zone={zone}" if zone else ""
    text = f"{stamp}{what}{NAMES.get(protocol, 'unknown')} {protocol} {original} {reply}{zoned}"
    return " ".join(text.split()).encode("ascii", "replace") + b"\n"


def in_blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines joined to blocks."""
    some: list[bytes] = []
    for one in lines:
        some.append(one)
        if len(some) >= _LINES:
            yield b"".join(some)
            some = []
    if some:
        yield b"".join(some)


def protocol_number(text: str) -> int:
    """The number of a protocol that is given by name or number; ValueError where it is neither."""
    known = PROTOCOLS.get(text.lower())
    number = known if known is not None else int(text)
    if not 0 <= number < 256:
        raise ValueError
    return number
