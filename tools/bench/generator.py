# SPDX-License-Identifier: Apache-2.0
"""Sends the first packets of new UDP flows as fast as one process can, and prints how fast that was.

Usage: ``python -m tools.bench.generator PEERS FLOWS SEED`` in the peers' namespace. A flow is one packet with
a tunnel address, a site and a source port drawn from the seed.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time

from tools.bench.relay import FIRST_PEER, FIRST_SITE, SITES

# IPv4 header without a checksum, which the kernel fills in, and UDP header without one, which is allowed.
_PACKET = struct.Struct("!BBHHHBBHIIHHHH")
_FIRST_PORT, _LAST_PORT = 1024, 65535


def packets(peers: int, flows: int, seed: int) -> memoryview:
    """All packets, one after the other: a list of objects would push the kernel's data out of the caches."""
    draw = random.Random(seed)  # noqa: S311  (a workload, not a secret)
    made = bytearray(flows * _PACKET.size)
    for number in range(flows):
        source = int(FIRST_PEER) + draw.randrange(peers)
        site = int(FIRST_SITE) + draw.randrange(SITES)
        ports = draw.randint(_FIRST_PORT, _LAST_PORT), draw.randint(_FIRST_PORT, _LAST_PORT)
        header = (0x45, 0, _PACKET.size, 0, 0, 64, socket.IPPROTO_UDP, 0)
        _PACKET.pack_into(made, number * _PACKET.size, *header, source, site, *ports, 8, 0)
    return memoryview(made)


def send(made: memoryview) -> float:
    """Send; returns the seconds that it took."""
    where, size = (str(FIRST_SITE), 0), _PACKET.size
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        started = time.perf_counter()
        for start in range(0, len(made), size):
            raw.sendto(made[start : start + size], where)
        return time.perf_counter() - started


def main() -> None:
    """Read the arguments, send, print one JSON object."""
    peers, flows, seed = map(int, sys.argv[1:4])
    seconds = send(packets(peers, flows, seed))
    print(json.dumps({"flows": flows, "seconds": seconds}))


if __name__ == "__main__":
    main()
