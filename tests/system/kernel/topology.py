# SPDX-License-Identifier: Apache-2.0
"""A relay between senders and a sink, for tests of the kernel program: plain veth in the place of the tunnel.

Senders own every tunnel address and the sink every destination (local routes on lo), so a flow is a socket
that is bound to any source. Two senders with equal addresses are on two interfaces of the relay.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from detector.base.family import Address
from detector.lab.namespaces import Claim, Namespace, entered, ip_batch, write_sysctls

TUNNEL4, TUNNEL6 = ip_network("10.66.0.0/16"), ip_network("fd66::/64")
SITES4, SITES6 = ip_network("198.18.0.0/16"), ip_network("2001:db8:d::/64")
EXITS4, EXITS6 = ip_network("203.0.113.0/24"), ip_network("2001:db8:e::/48")

# The match of packets that leave for the internet, as a rule of nft begins.
LEAVE = 'oifname "out0"'

_BARRIERS = SITES4[0xFFFE], SITES6[0xFFFE]  # flows to these are not tracked
_FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_PING = {4: (8, socket.IPPROTO_ICMP), 6: (128, socket.IPPROTO_ICMPV6)}  # type of an echo request, protocol
_LINGER_NOT = struct.pack("ii", 1, 0)  # close with RST: the port is free at once
_TIMEOUTS = (
    "generic_timeout", "icmp_timeout", "icmpv6_timeout", "udp_timeout", "udp_timeout_stream",
    "tcp_timeout_close", "tcp_timeout_syn_sent", "tcp_timeout_syn_recv",
    "tcp_timeout_time_wait", "tcp_timeout_last_ack",
)  # fmt: skip
# "ipv4  2 udp  17 29 src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… zone=7 use=1"
_ENTRY = re.compile(
    r"^ipv[46] +\d+ +(\w+) .*? src=(\S+) dst=\S+ .*?(?:sport|id)=(\d+)(?: dport=(\d+))?"
    r".*? src=(\S+) dst=(\S+)(?: sport=\d+ dport=(\d+))?(?:.* zone=(\d+))?"
)
_PORTS = {"udp": 9, "tcp": 7}
_DNS_OVER_TLS = 853  # the other port of TCP that is answered

_RULES = """
flush ruleset
table ip nat {{
  chain post {{
    type nat hook postrouting priority 100
    {nat4}
  }}
}}
table ip6 nat {{
  chain post {{
    type nat hook postrouting priority 100
    {nat6}
  }}
}}
table inet barrier {{
  chain pre {{
    type filter hook prerouting priority -300
    ip daddr {barriers[0]} notrack
    ip saddr {barriers[0]} notrack
    ip6 daddr {barriers[1]} notrack
    ip6 saddr {barriers[1]} notrack
  }}
}}
{tables}
"""
_QUIET = """
table inet sink {
  chain in {
    type filter hook input priority 0
    meta l4proto udp drop
  }
}
"""


class Flow(NamedTuple):
    """A flow to be sent."""

    source: Address
    destination: Address
    port: int = 20000  # source port, or ICMP identifier
    protocol: str = "udp"
    to: int = 0  # destination port; 0 for the usual one of the protocol


class Entry(NamedTuple):
    """A flow as conntrack lists it."""

    protocol: str
    source: Address
    port: int
    destination: Address
    exit: Address
    zone: int
    to: int = 0  # destination port, as in `Flow`
    translated: int = 0  # source port after source NAT

    @property
    def flow(self) -> Flow:
        """What was sent."""
        return Flow(self.source, self.destination, self.port, self.protocol, self.to)


def peer(number: int, version: int = 4) -> Address:
    """The tunnel address of a peer."""
    return (TUNNEL4 if version == 4 else TUNNEL6)[number]


def site(number: int, version: int = 4) -> Address:
    """A destination."""
    return (SITES4 if version == 4 else SITES6)[number]


@dataclass(frozen=True, slots=True)
class Relay:
    """The namespaces of one relay."""

    sender: Namespace
    other: Namespace
    middle: Namespace
    sink: Namespace
    tun0: int
    tun1: int
    out0: int

    @contextmanager
    def owning(self, *addresses: Address) -> Iterator[tuple[Address, ...]]:
        """Addresses that are routed to the sender meanwhile, as a peer's own."""
        gateways = {4: "172.31.0.2", 6: "fd31:0::2"}
        ip_batch([f"route add {one} via {gateways[one.version]}" for one in addresses], self.middle)
        ip_batch([f"route add local {one} dev lo" for one in addresses], self.sender)
        try:
            yield addresses
        finally:
            ip_batch([f"route del {one}" for one in addresses], self.middle)
            ip_batch([f"route del local {one} dev lo" for one in addresses], self.sender)

    def rules(self, *lines: str, rules6: Iterable[str] = (), tables: str = "") -> None:
        """Set the source NAT rules of both families, and whole tables beside them."""
        text = _RULES.format(nat4="\n".join(lines), nat6="\n".join(rules6), tables=tables, barriers=_BARRIERS)
        with entered(self.middle):
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

    def forget(self) -> None:
        """Empty conntrack."""
        with entered(self.middle):
            for family in ("ipv4", "ipv6"):
                subprocess.run(["conntrack", "-F", "-f", family], check=True, capture_output=True)

    def listing(self) -> list[Entry]:
        """What conntrack lists of flows from tunnel addresses."""
        lines: list[str] = []
        with entered(self.middle):
            for family in ("ipv4", "ipv6"):
                command = ["conntrack", "-L", "-f", family, "-o", "extended"]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                lines += done.stdout.splitlines()
        found = [_entry(match) for line in lines if (match := _ENTRY.match(line))]
        return [one for one in found if one.source in TUNNEL4 or one.source in TUNNEL6]

    def exits(self) -> dict[Flow, Address]:
        """Which exit conntrack says that each flow has."""
        return {entry.flow: entry.exit for entry in self.listing()}

    def entries(self) -> int:
        """How many entries conntrack holds."""
        with entered(self.middle):
            return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    def send(self, flows: Iterable[Flow], *, times: int = 1, other: bool = False) -> None:
        """Send the flows one after the other; returns when the relay has seen the last of them.

        A UDP flow gets no answer, an ICMP one does, and a TCP one sends and receives `times` messages.
        """
        with _one_processor(), entered(self.other if other else self.sender):
            for flow in flows:
                _SEND[flow.protocol](flow, times)
            for barrier in _BARRIERS:
                _round_trip(barrier)

    def send_own(self, destination: Address, flows: int) -> None:
        """Send flows of the relay itself, over UDP."""
        with _one_processor(), entered(self.middle):
            for _ in range(flows):
                with socket.socket(_FAMILY[destination.version], socket.SOCK_DGRAM) as own:
                    own.sendto(b"x", (str(destination), 9))


@contextmanager
def built() -> Iterator[Relay]:
    """Build the relay, with a server at the sink that echoes TCP; all is removed at the end."""
    claim = Claim()
    names = {role: claim.namespace(role) for role in ("sender", "other", "middle", "sink")}
    try:
        ip_batch(f"netns add {namespace.name}" for namespace in names.values())
        for namespace in names.values():
            _prepare(namespace)
        relay = _wire(**names)
        relay.rules()
        with _echo(relay.sink):
            yield relay
    finally:
        claim.release()


def _prepare(namespace: Namespace) -> None:
    sysctls = {"ipv6/conf/default/accept_dad": 0, "ipv6/conf/all/accept_dad": 0, "ipv4/conf/all/rp_filter": 0}
    sysctls |= {"ipv4/conf/default/rp_filter": 0, "ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
    sysctls |= {f"netfilter/nf_conntrack_{name}": 600 for name in _TIMEOUTS}
    write_sysctls(namespace, sysctls)


def _wire(sender: Namespace, other: Namespace, middle: Namespace, sink: Namespace) -> Relay:
    ends = (("tun0", sender, 0), ("tun1", other, 1), ("out0", sink, 2))
    ip_batch(
        f"link add {device} netns {middle.name} type veth peer name up0 netns {far.name}"
        for device, far, _ in ends
    )
    for device, far, number in ends:
        ip_batch(_addresses(device, number, 1), middle)
        ip_batch([*_addresses("up0", number, 2), "link set lo up"], far)
    for far in (sender, other):
        ip_batch([f"route add local {TUNNEL4} dev lo", f"route add local {TUNNEL6} dev lo"], far)
    for far, number in ((sender, 0), (other, 1)):
        ip_batch([f"route add default via 172.31.{number}.1", f"route add ::/0 via fd31:{number}::1"], far)
    ip_batch([f"route add {TUNNEL4} via 172.31.0.2", f"route add {TUNNEL6} via fd31:0::2"], middle)
    ip_batch([f"route add {SITES4} via 172.31.2.2", f"route add {SITES6} via fd31:2::2"], middle)
    ip_batch([f"route add local {SITES4} dev lo", f"route add local {SITES6} dev lo"], sink)
    ip_batch(["route add default via 172.31.2.1", "route add ::/0 via fd31:2::1"], sink)
    with entered(sink):
        subprocess.run(["nft", "-f", "-"], input=_QUIET, text=True, check=True)
    with entered(middle):
        return Relay(
            sender, other, middle, sink, *(socket.if_nametoindex(name) for name in ("tun0", "tun1", "out0"))
        )


def _addresses(device: str, number: int, host: int) -> list[str]:
    return [
        f"address add 172.31.{number}.{host}/24 dev {device}",
        f"address add fd31:{number}::{host}/64 dev {device} nodad",
        f"link set {device} up",
    ]


def _entry(match: re.Match[str]) -> Entry:
    protocol, source, port, to, destination, exit_address, translated, zone = match.groups()
    protocol = protocol.removesuffix("v6")
    to = int(to or 0)
    return Entry(
        protocol,
        ip_address(source),
        int(port),
        ip_address(destination),
        ip_address(exit_address),
        int(zone or 0),
        0 if to == _PORTS.get(protocol) else to,
        int(translated or 0),
    )


@contextmanager
def _one_processor() -> Iterator[None]:
    """Stay on one processor: then packets are seen in the order in which they were sent."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _bound(flow: Flow, kind: int, protocol: int = 0) -> socket.socket:
    version = flow.source.version
    bound = socket.socket(_FAMILY[version], kind, protocol)
    bound.setsockopt(*_FREEBIND[version], 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.settimeout(20)
    bound.bind((str(flow.source), flow.port if kind != socket.SOCK_RAW else 0))
    return bound


def _udp(flow: Flow, times: int) -> None:
    with _bound(flow, socket.SOCK_DGRAM) as bound:
        for number in range(times):
            bound.sendto(b"%d" % number, (str(flow.destination), flow.to or _PORTS["udp"]))


def _tcp(flow: Flow, times: int) -> None:
    with _bound(flow, socket.SOCK_STREAM) as bound:
        bound.connect((str(flow.destination), flow.to or _PORTS["tcp"]))
        for _ in range(times):
            bound.sendall(b"x")
            assert bound.recv(1) == b"x"
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def _icmp(flow: Flow, times: int) -> None:
    kind, protocol = _PING[flow.source.version]
    with _bound(flow, socket.SOCK_RAW, protocol) as bound:
        for number in range(times):
            bound.sendto(_echo_request(kind, flow.port, number), (str(flow.destination), 0))


_SEND = {"udp": _udp, "tcp": _tcp, "icmp": _icmp}


def _echo_request(kind: int, identifier: int, number: int) -> bytes:
    """An ICMP echo request; the kernel fills in the checksum of ICMPv6."""
    words = (kind << 8, 0, identifier, number)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">4H", words[0], ~(total + (total >> 16)) & 0xFFFF, *words[2:])


def _round_trip(barrier: Address) -> None:
    """Ask the sink for an echo: its answer comes after all that was sent before on this processor."""
    kind, protocol = _PING[barrier.version]
    with socket.socket(_FAMILY[barrier.version], socket.SOCK_RAW, protocol) as asker:
        asker.settimeout(20)
        asker.connect((str(barrier), 0))
        asker.send(_echo_request(kind, 1, 1))
        assert asker.recv(100)


@contextmanager
def _echo(sink: Namespace) -> Iterator[None]:
    """TCP servers for both families that send back what they get."""
    with entered(sink):
        listeners = [
            socket.create_server(("::", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
            for port in (_PORTS["tcp"], _DNS_OVER_TLS)
        ]
    threads = [threading.Thread(target=_serve, args=(one,), daemon=True) for one in listeners]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for listener, thread in zip(listeners, threads, strict=True):
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            listener.close()


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                while data := connection.recv(64):
                    connection.sendall(data)
            except OSError:
                continue  # the sender closes with RST
