# SPDX-License-Identifier: Apache-2.0
"""Kernel WireGuard as it is: read over netlink from a namespace of this kernel, where it has WireGuard."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from pyroute2 import netns

from detector.base.errors import HostError
from detector.daemon.slots import SlotTable
from detector.wireguard.interfaces import read_device
from detector.wireguard.model import Interface, Kind, Snapshot
from detector.wireguard.read import read_peers

pytestmark = pytest.mark.root

MANY = 10_000
WIDE = 3_000  # more allowed-ips than one message of the kernel holds
PRIVATE, PRESHARED = b"S" * 32, b"P" * 32


def encoded(key: bytes) -> str:
    """A key in the form that `wg` takes."""
    return base64.b64encode(key).decode()


def peer(key: bytes, *allowed_ips: str) -> str:
    """A peer's section of a configuration."""
    allowed = ", ".join(allowed_ips)
    return (
        f"[Peer]\nPublicKey = {encoded(key)}\nPresharedKey = {encoded(PRESHARED)}\nAllowedIPs = {allowed}\n"
    )


@dataclass(frozen=True, slots=True)
class Relay:
    """A namespace with a WireGuard interface of the kernel."""

    namespace: str
    name: str = "wg0"

    def run(self, *command: str, text: str = "") -> None:
        """Run a command in the namespace."""
        subprocess.run(["ip", "netns", "exec", self.namespace, *command], input=text, text=True, check=True)

    def create(self) -> None:
        """Create the interface, with a private key."""
        self.run("ip", "link", "add", self.name, "type", "wireguard")
        self.run("wg", "set", self.name, "private-key", "/dev/stdin", text=encoded(PRIVATE))

    def add(self, *sections: str) -> None:
        """Add or change peers."""
        self.run("wg", "addconf", self.name, "/dev/stdin", text="".join(sections))

    def read(self) -> Snapshot:
        """The peers, as a process in the namespace reads them."""
        netns.pushns(self.namespace)
        try:
            return read_peers([self.name])
        finally:
            netns.popns()


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace of our own."""
    name = f"exitprint-wg-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture(scope="module", autouse=True)
def _kernel_has_wireguard() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    with namespace() as name:
        command = ["ip", "netns", "exec", name, "ip", "link", "add", "wg0", "type", "wireguard"]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this kernel has no WireGuard")


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay without peers."""
    with namespace() as name:
        made = Relay(name)
        made.create()
        yield made


def test_many_peers_and_one_that_is_split(relay: Relay) -> None:
    """Ten thousand peers, and one whose allowed-ips take several messages, arrive whole; no secret does."""
    start = int(IPv4Address("10.64.0.0"))
    known = {number.to_bytes(32, "big"): [f"{IPv4Address(start + number)}/32"] for number in range(1, MANY)}
    known[b"w" * 32] = [f"fd00::{number:x}/128" for number in range(1, WIDE + 1)]
    relay.add(*(peer(key, *allowed) for key, allowed in known.items()))
    (part,) = relay.read().interfaces
    found = {
        bytes(key): sorted(f"{ip.address}/{ip.prefix}" for ip in allowed)
        for key, allowed in part.peers.items()
    }
    assert found == {key: sorted(allowed) for key, allowed in known.items()}
    assert part.interface.kind is Kind.KERNEL
    told = [bytes(key) for key in part.peers] + [ip.network for ips in part.peers.values() for ip in ips]
    assert not {PRIVATE, PRESHARED} & set(told)
    assert encoded(b"w" * 32) not in repr(part)


def test_a_peer_is_followed(relay: Relay) -> None:
    """An address that moves to another peer, and a peer that is removed, leave their slots."""
    table = SlotTable(16)
    relay.add(peer(b"A" * 32, "10.64.0.1/32"), peer(b"B" * 32, "10.64.0.2/32", "fd00::/64"))
    added = {str(slot.allowed.address): slot for slot in table.update(relay.read()).added}
    assert {address: slot.allowed.is_network for address, slot in added.items()} == {
        "10.64.0.1": False, "10.64.0.2": False, "fd00::": True,
    }  # fmt: skip
    relay.add(peer(b"B" * 32, "10.64.0.1/32"))
    changes = table.update(relay.read())
    assert added["10.64.0.1"] in changes.retired
    assert [slot.pseudonym for slot in changes.added] == [added["10.64.0.2"].pseudonym]
    relay.run("wg", "set", relay.name, "peer", encoded(b"B" * 32), "remove")
    assert table.update(relay.read()).added == ()
    assert len(table) == 0


def test_an_interface_that_is_created_anew(relay: Relay) -> None:
    """Its peers keep their slots under the new ifindex; in between, the interface is missing by name."""
    table = SlotTable(16)
    relay.add(peer(b"A" * 32, "10.64.0.1/32"))
    (first,) = table.update(relay.read()).added
    relay.run("ip", "link", "del", relay.name)
    assert relay.read().missing == (relay.name,)
    relay.create()
    relay.add(peer(b"A" * 32, "10.64.0.1/32"))
    (moved,) = table.update(relay.read()).moved
    assert (moved.number, moved.allowed) == (first.number, first.allowed)
    assert moved.ifindex != first.ifindex


def test_an_interface_that_went_away(relay: Relay) -> None:
    """Between the listing and the reading an interface may go: that is said, with its name."""
    (part,) = relay.read().interfaces
    gone = Interface(relay.name, part.interface.ifindex + 1000, Kind.KERNEL)
    netns.pushns(relay.namespace)
    try:
        with pytest.raises(HostError, match="wg0 went away"):
            read_device(gone)
    finally:
        netns.popns()


def test_without_the_capability(relay: Relay) -> None:
    """Another user is told what it takes, and nothing else."""
    (part,) = relay.read().interfaces
    netns.pushns(relay.namespace)
    try:
        os.seteuid(65534)
        with pytest.raises(HostError, match="CAP_NET_ADMIN"):
            read_device(part.interface)
    finally:
        os.seteuid(0)
        netns.popns()
