# SPDX-License-Identifier: Apache-2.0
"""Sends many new UDP flows as fast as it can: ``burst.py SOURCES FLOWS_OF_EACH``."""

from __future__ import annotations

import socket
import struct
import sys


def main(sources: int, flows: int) -> None:
    """One packet for each of `flows` source ports of each of `sources` tunnel addresses, to many sites."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(flows):
            for source in range(1, sources + 1):
                site = bytes((198, 18, number % 7, source))
                udp = struct.pack(">4H", 10000 + number, 9, 8, 0)
                ip = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
                raw.sendto(ip + bytes((10, 66, 0, source)) + site + udp, (socket.inet_ntoa(site), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
