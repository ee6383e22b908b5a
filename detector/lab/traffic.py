# SPDX-License-Identifier: Apache-2.0
"""Real TCP and UDP traffic of a lab's peers; every answer is compared with what was sent.

The sockets live in the peers' namespace, each bound to its peer's WireGuard interface and tunnel address.
A flow is one request and its echo; TCP is closed by a reset, so that its port is free again at once. A lost
packet shows: as an unanswered flow over UDP, as a retransmission over TCP.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detector.base.errors import HostError
from detector.base.family import Address, Family
from detector.lab import echo as echo_module
from detector.lab.namespaces import Namespace, entered
from detector.lab.wireguard import Peer
from detector.lab.workload import Flow, Protocol

ECHO_PORT = 7
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_KIND = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
_DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of flows.

    Attributes:
        tried: flows that were started.
        answered: flows whose answer was what had been sent.
        wrong: flows that got another answer.
        retransmitted: TCP segments that either side sent again.
        seconds: how long it took.
    """

    tried: int = 0
    answered: int = 0
    wrong: int = 0
    retransmitted: int = 0
    seconds: float = 0.0

    @property
    def unanswered(self) -> int:
        """Flows that got no answer in time."""
        return self.tried - self.answered - self.wrong

    @property
    def clean(self) -> bool:
        """No packet was lost or changed."""
        return self.answered == self.tried and not self.retransmitted

    def __add__(self, other: Result) -> Result:
        return Result(
            self.tried + other.tried,
            self.answered + other.answered,
            self.wrong + other.wrong,
            self.retransmitted + other.retransmitted,
            self.seconds + other.seconds,
        )


@contextmanager
def echo_servers(namespace: Namespace, addresses: Iterable[Address], port: int = ECHO_PORT) -> Iterator[None]:
    """Run TCP and UDP echo on these addresses of a namespace.

    Raises:
        HostError: the addresses could not be listened on.
    """
    with entered(namespace):
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(echo_module.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 - for the type checker
    try:
        what = {"port": port, "addresses": [str(address) for address in addresses]}
        process.stdin.write(json.dumps(what).encode() + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"ready\n":
            raise HostError("the echo servers of the lab did not start")
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@dataclass(slots=True)
class _Pending:
    socket: socket.socket
    payload: bytes
    started: float
    connecting: bool
    received: bytes = b""


class Sender:
    """Starts flows, a bounded number at a time, and waits for their answers.

    Args:
        window: flows in flight at once; small enough that no queue on the way overflows.
        patience: seconds after which a flow counts as unanswered.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        destinations: Mapping[Family, Sequence[Address]],
        *,
        window: int = 96,
        patience: float = 15.0,
        progress: Callable[[int], None] = lambda _done: None,
    ) -> None:
        self._devices = [peer.interface.encode() for peer in peers]
        self._sources = [{family: str(address) for family, address in peer.tunnel.items()} for peer in peers]
        self._targets = {
            family: [(str(address), ECHO_PORT) for address in addresses]
            for family, addresses in destinations.items()
        }
        self._window, self._patience, self._progress = window, patience, progress
        self._poll = select.epoll()
        self._pending: dict[int, _Pending] = {}
        self._nonce = os.urandom(16)
        self._tried = self._answered = self._wrong = 0

    def run(self, flows: Iterable[Flow]) -> Result:
        """Start every flow and return when each is answered or given up; call it inside the peers' namespace.

        Raises:
            HostError: a socket could not be opened.
        """
        began, before = time.monotonic(), (self._tried, self._answered, self._wrong)
        for flow in flows:
            while len(self._pending) >= self._window:
                self._collect()
            self._start(flow)
        while self._pending:
            self._collect()
        self._progress(self._tried)
        after = (self._tried, self._answered, self._wrong)
        tried, answered, wrong = (now - then for now, then in zip(after, before, strict=True))
        return Result(tried, answered, wrong, 0, time.monotonic() - began)

    def close(self) -> None:
        """Close what is still open."""
        for pending in self._pending.values():
            pending.socket.close()
        self._pending.clear()
        self._poll.close()

    def _start(self, flow: Flow) -> None:
        payload = self._nonce + self._tried.to_bytes(8, "big")
        self._tried += 1
        sock = socket.socket(_DOMAIN[flow.family], _KIND[flow.protocol])
        try:
            self._connect(sock, flow)
            stream = flow.protocol is Protocol.TCP
            if not stream:
                sock.send(payload)
        except OSError as problem:
            sock.close()
            # The problem's own words would name addresses.
            name = errno.errorcode.get(problem.errno or 0, "unknown error")
            hint = "has a wireguard-go of the lab ended?" if problem.errno == errno.ENODEV else ""
            what = f"a {flow.protocol.upper()} socket of a peer could not be opened: {name}"
            raise HostError(what, hint) from None
        self._poll.register(sock, select.EPOLLOUT if stream else select.EPOLLIN)
        self._pending[sock.fileno()] = _Pending(sock, payload, time.monotonic(), stream)

    def _connect(self, sock: socket.socket, flow: Flow) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._devices[flow.peer])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if flow.protocol is Protocol.TCP:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.bind((self._sources[flow.peer][flow.family], flow.source_port))
        result = sock.connect_ex(self._targets[flow.family][flow.destination])
        if result not in {0, errno.EINPROGRESS}:
            raise OSError(result, "")

    def _collect(self) -> None:
        events = self._poll.poll(0.2)
        for number, _ in events:
            pending = self._pending[number]
            if pending.connecting:
                self._send_request(number, pending)
            else:
                self._receive(number, pending)
        if not events:
            self._give_up_old()
        self._progress(self._tried - len(self._pending))

    def _send_request(self, number: int, pending: _Pending) -> None:
        try:
            pending.socket.send(pending.payload)
        except OSError:
            self._finish(number)
            return
        pending.connecting = False
        self._poll.modify(number, select.EPOLLIN)

    def _receive(self, number: int, pending: _Pending) -> None:
        try:
            data = pending.socket.recv(65535)
        except OSError:
            self._finish(number)
            return
        pending.received += data
        if pending.received == pending.payload:
            self._answered += 1
        elif data and pending.payload.startswith(pending.received):
            return
        else:
            self._wrong += 1
        self._finish(number)

    def _give_up_old(self) -> None:
        limit = time.monotonic() - self._patience
        for number in [number for number, pending in self._pending.items() if pending.started < limit]:
            self._finish(number)

    def _finish(self, number: int) -> None:
        self._pending.pop(number).socket.close()


def retransmissions() -> int:
    """TCP segments sent again so far by the namespace that the calling thread is in."""
    lines = [
        line.split()
        for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    ]
    names, values = lines
    return int(values[names.index("RetransSegs")])
