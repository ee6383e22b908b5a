# SPDX-License-Identifier: Apache-2.0
"""The internet of a lab: TCP and UDP echo on every destination, as a process of its own.

Run as a file by `detector.lab.traffic`, so that it starts quickly: it imports nothing of the project.
Standard input holds one line of JSON, ``{"port": …, "addresses": […]}``; ``ready`` is printed once all
sockets listen; it ends when standard input is closed, so it cannot outlive the lab.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from contextlib import suppress

_LARGEST = 65535


def _open(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.setblocking(False)
    if kind == socket.SOCK_STREAM:
        server.listen(4096)
    return server


class Echo:
    """Answers what it is sent, from the address that it was sent to."""

    def __init__(self, addresses: list[str], port: int) -> None:
        self._poll = select.epoll()
        self._udp = {}
        self._listening = {}
        self._streams: dict[int, socket.socket] = {}
        for address in addresses:
            udp, tcp = _open(address, port, socket.SOCK_DGRAM), _open(address, port, socket.SOCK_STREAM)
            self._udp[udp.fileno()] = udp
            self._listening[tcp.fileno()] = tcp
            for server in (udp, tcp):
                self._poll.register(server, select.EPOLLIN)

    def serve(self, control: int) -> None:
        """Answer until `control` becomes readable."""
        self._poll.register(control, select.EPOLLIN)
        while True:
            for number, _ in self._poll.poll():
                if number == control:
                    return
                self._handle(number)

    def _handle(self, number: int) -> None:
        if number in self._streams:
            self._echo_stream(number)
        elif number in self._udp:
            self._echo_datagrams(self._udp[number])
        else:
            self._accept(self._listening[number])

    @staticmethod
    def _echo_datagrams(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                data, sender = server.recvfrom(_LARGEST)
                server.sendto(data, sender)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                stream, _ = server.accept()
                stream.setblocking(False)
                self._streams[stream.fileno()] = stream
                self._poll.register(stream, select.EPOLLIN)

    def _echo_stream(self, number: int) -> None:
        stream = self._streams[number]
        try:
            data = stream.recv(_LARGEST)
            if data:
                stream.sendall(data)
                return
        except OSError:
            pass
        del self._streams[number]
        stream.close()


def main() -> None:
    """Read what to listen on, listen, answer."""
    what = json.loads(sys.stdin.readline())
    echo = Echo(what["addresses"], what["port"])
    print("ready", flush=True)
    echo.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()
