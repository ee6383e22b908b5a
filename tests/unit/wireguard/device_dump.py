# SPDX-License-Identifier: Apache-2.0
"""A WireGuard device's answer as the kernel writes it (drivers/net/wireguard/netlink.c), for tests."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

PRIVATE, PRESHARED = b"PRIVATE-KEY-THAT-MUST-NOT-BE-SEEN"[:32], b"PRESHARED-KEY-NOT-TO-BE-SEEN-OK?"[:32]
GENL_HEADER = struct.pack("=BBH", 0, 1, 0)
NESTED = 0x8000
MESSAGE_BYTES = 32_000

Peer = tuple[bytes, Sequence[tuple[bytes, int]]]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def allowed_ip(network: bytes, prefix: int) -> bytes:
    """get_allowedips()."""
    family = 2 if len(network) == 4 else 10
    body = attribute(3, bytes([prefix])) + attribute(1, struct.pack("=H", family)) + attribute(2, network)
    return attribute(0 | NESTED, body)


def peer(key: bytes, allowed: Sequence[tuple[bytes, int]], *, first: bool = True) -> bytes:
    """get_peer(): the rest of the peer is in its first part only."""
    body = attribute(1, key)
    if first:
        body += attribute(2, PRESHARED) + attribute(6, bytes(16)) + attribute(5, struct.pack("=H", 25))
        body += attribute(8, bytes(8)) + attribute(7, bytes(8)) + attribute(10, struct.pack("=I", 1))
        body += attribute(4, struct.pack("=HH12s", 2, 51820, b"endpoint-of-"))
    body += attribute(9 | NESTED, b"".join(allowed_ip(*entry) for entry in allowed))
    return attribute(0 | NESTED, body)


def device(name: str, ifindex: int) -> bytes:
    """What the first message says of the device itself."""
    return (
        attribute(6, struct.pack("=H", 51820))
        + attribute(7, struct.pack("=I", 0))
        + attribute(1, struct.pack("=I", ifindex))
        + attribute(2, name.encode() + b"\0")
        + attribute(3, PRIVATE)
        + attribute(4, bytes(range(32)))
    )


def messages(peers: Sequence[Peer], split: int = 1000) -> Iterator[bytes]:
    """The answer's messages; a peer with more than `split` allowed-ips goes on in the next one."""
    head, body = device("wg0", 7), b""
    for key, allowed in peers:
        for start in range(0, max(len(allowed), 1), split):
            part = peer(key, allowed[start : start + split], first=start == 0)
            if body and (len(head + body) + len(part) > MESSAGE_BYTES or start):
                yield GENL_HEADER + head + attribute(8 | NESTED, body)
                head, body = b"", b""
            body += part
    yield GENL_HEADER + head + attribute(8 | NESTED, body)


def many(count: int) -> list[Peer]:
    """Peers with one IPv4 and one IPv6 tunnel address each."""
    return [
        (
            number.to_bytes(32, "big"),
            [((0x0A400000 + number).to_bytes(4, "big"), 32), (b"\xfd\x00" + number.to_bytes(14, "big"), 128)],
        )
        for number in range(1, count + 1)
    ]
