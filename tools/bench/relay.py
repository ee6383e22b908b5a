# SPDX-License-Identifier: Apache-2.0
"""The relay that costs are measured on: real WireGuard peers, plain packets.

Flows reach the relay over a veth and are handed to the WireGuard interface's receiving side by `tc`, so they
come in by it as a peer's do while nothing is encrypted: the cost of a new flow is not hidden behind that of
WireGuard in user space.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from detector.base.errors import HostError
from detector.lab.namespaces import Claim, Namespace, entered, ip_batch, sweep, write_sysctls
from detector.lab.wireguard import PORT, Backend, KernelWireGuard, Remote, UserWireGuard, new_private_key

FIRST_PEER = IPv4Address("10.64.0.1")
FIRST_SITE = IPv4Address("198.18.0.1")
SITES = 64
POOL = "203.0.113.68-203.0.113.126"

_SINK = """
table ip sink {
  chain arrive {
    type filter hook prerouting priority raw
    udp dport 1024-65535 drop
  }
}
"""


@dataclass(frozen=True, slots=True)
class Relay:
    """The hosts, as namespaces, and the relay's WireGuard interface."""

    peers: Namespace
    relay: Namespace
    internet: Namespace
    wireguard_interface: str

    def run(self, where: Namespace, *command: str, text: str = "") -> str:
        """Run a command in a namespace; returns what it printed.

        Raises:
            HostError: it failed.
        """
        with entered(where):
            done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise HostError(f"{command[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def translate(self, statement: str) -> None:
        """Set the relay's NAT rule, such as ``snat to ...``."""
        chain = f"chain out {{\ntype nat hook postrouting priority srcnat\noifname internet {statement}\n}}"
        self.run(self.relay, "nft", "-f", "-", text=f"flush ruleset\ntable ip nat {{\n{chain}\n}}\n")

    def forget(self) -> None:
        """Empty the conntrack table."""
        self.run(self.relay, "conntrack", "-F")

    def tracked(self) -> int:
        """Entries in the conntrack table."""
        return int(self.run(self.relay, "conntrack", "-C"))


@contextmanager
def bench_relay(peers: int) -> Iterator[Relay]:
    """A relay with so many WireGuard peers, each with one tunnel address from `FIRST_PEER` on."""
    with ExitStack() as stack:
        sweep()
        claim = Claim()
        stack.callback(claim.release)
        peers_end, middle, internet = (claim.namespace(role) for role in ("peers", "relay", "internet"))
        relay = Relay(peers_end, middle, internet, f"wg0-{claim.lab}")
        _lay_out(relay)
        backend = _wireguard(relay, stack)
        backend.set_key(relay.relay, relay.wireguard_interface, new_private_key(), PORT)
        backend.add_peers(
            relay.relay,
            relay.wireguard_interface,
            (Remote(new_private_key(), [f"{FIRST_PEER + number}/32"]) for number in range(peers)),
        )
        ip_batch(
            [
                f"link set {relay.wireguard_interface} up",
                f"route add 10.64.0.0/10 dev {relay.wireguard_interface}",
            ],
            relay.relay,
        )
        _redirect(relay)
        yield relay


def _lay_out(relay: Relay) -> None:
    hosts = (relay.peers, relay.relay, relay.internet)
    ip_batch(f"netns add {host.name}" for host in hosts)
    write_sysctls(relay.relay, {"ipv4/ip_forward": 1, "ipv4/conf/all/rp_filter": 0})
    write_sysctls(relay.relay, {"ipv4/conf/default/rp_filter": 0})
    ip_batch(
        [
            f"link add relay netns {host.name} type veth peer name {port} netns {relay.relay.name}"
            for host, port in ((relay.peers, "peers"), (relay.internet, "internet"))
        ]
    )
    ip_batch(
        ["addr add 192.0.2.1/30 dev relay", "link set relay up", "route add default via 192.0.2.2"],
        relay.peers,
    )
    ip_batch(
        [
            "addr add 192.0.2.2/30 dev peers",
            "addr add 192.0.2.5/30 dev internet",
            "link set peers up",
            "link set internet up",
            "route add 198.18.0.0/15 via 192.0.2.6",
        ],
        relay.relay,
    )
    ip_batch(
        [
            f"addr add {FIRST_SITE}/32 dev lo",
            "link set lo up",
            "addr add 192.0.2.6/30 dev relay",
            "link set relay up",
            "route add default via 192.0.2.5",
        ],
        relay.internet,
    )
    relay.run(relay.internet, "nft", "-f", "-", text=_SINK)


def _wireguard(relay: Relay, stack: ExitStack) -> Backend:
    backend: Backend
    try:
        backend = KernelWireGuard()
        stack.callback(backend.stop)
        backend.create(relay.relay, [relay.wireguard_interface])
    except HostError:
        backend = UserWireGuard()
        stack.callback(backend.stop)
        backend.create(relay.relay, [relay.wireguard_interface])
    backend.wait()
    return backend


def _redirect(relay: Relay) -> None:
    """What arrives from the peers' side arrives at the WireGuard interface."""
    relay.run(relay.relay, "tc", "qdisc", "add", "dev", "peers", "ingress")
    action = ["action", "mirred", "ingress", "redirect", "dev", relay.wireguard_interface]
    everything = ["protocol", "ip", "u32", "match", "u32", "0", "0"]
    relay.run(relay.relay, "tc", "filter", "add", "dev", "peers", "parent", "ffff:", *everything, *action)
