# SPDX-License-Identifier: Apache-2.0
"""User-space WireGuard: its real daemon in a namespace, and sockets that misbehave."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import netns

from detector.base.errors import HostError, NotYet
from detector.daemon.slots import SlotTable
from detector.wireguard.model import Interface, Kind, Snapshot
from detector.wireguard.read import read_peers
from detector.wireguard.uapi import list_sockets, read_socket

WG0 = Interface("wg0", 7, Kind.USER_SPACE)
PRIVATE, PRESHARED = "5a" * 32, "7b" * 32
PUBLIC = ["c1" * 32, "c2" * 32]


def answer(code: int = 0, pad: str = "") -> bytes:
    """What a daemon answers, with a peer of two addresses and one of none."""
    return (
        f"private_key={PRIVATE}\nlisten_port=51820\n{pad}"
        f"public_key={PUBLIC[0]}\npreshared_key={PRESHARED}\nprotocol_version=1\nendpoint=192.0.2.1:5\n"
        f"tx_bytes=0\nallowed_ip=10.64.0.2/32\nallowed_ip=fd00::2/128\nallowed_ip=::ffff:10.0.0.1/128\n"
        f"public_key={PUBLIC[1]}\nallowed_ip=10.0.0.999/32\nallowed_ip=10.0.0.0/33\nerrno={code}\n\n"
    ).encode()


Serve = Callable[[list[bytes]], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a daemon that answers one connection with these parts and then waits."""
    server = socket.socket(socket.AF_UNIX)
    path = tmp_path / "wg0.sock"
    done = threading.Event()
    threads: list[threading.Thread] = []

    def talk(parts: list[bytes]) -> None:
        client, _ = server.accept()
        with client:
            assert client.recv(100) == b"get=1\n\n"
            with contextlib.suppress(BrokenPipeError):  # the reader may have had enough
                for part in parts:
                    client.sendall(part)
            if not parts or parts[-1] != b"":
                done.wait(10)

    def start(parts: list[bytes]) -> Path:
        server.bind(str(path))
        server.listen()
        threads.append(threading.Thread(target=talk, args=(parts,)))
        threads[0].start()
        return path

    yield start
    done.set()
    for thread in threads:
        thread.join()
    server.close()


def test_an_answer(serve: Serve) -> None:
    """Peers and allowed-ips are read; addresses that are none are left out; no secret becomes an object."""
    peers = read_socket(WG0, serve([answer()]))
    assert [key.hex() for key in peers] == PUBLIC
    first, second = peers.values()
    assert [(str(ip.address), ip.prefix) for ip in first] == [("10.64.0.2", 32), ("fd00::2", 128)]
    assert second == ()


def test_an_answer_in_pieces(serve: Serve) -> None:
    """It does not matter where an answer is cut on its way, also when it is longer than the buffer."""
    whole = answer(pad="listen_port=1\n" * 6000)
    peers = read_socket(WG0, serve([whole[at : at + 977] for at in range(0, len(whole), 977)]))
    assert [len(allowed) for allowed in peers.values()] == [2, 0]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([answer(code=-5)], "answers with error -5"),
        ([answer()[:-12], b""], "is not whole"),
        ([b"", b""], "is not whole"),
        ([b"x" * 70_000, b""], "is not whole"),
        ([], "did not answer in 0.2 s"),
        ([answer()[:200]], "did not answer in 0.2 s"),
    ],
)
def test_daemons_that_misbehave(serve: Serve, parts: list[bytes], said: str) -> None:
    """One that refuses, stops half-way, talks rubbish or hangs is named, without a word of what it said."""
    with pytest.raises(HostError, match=said) as caught:
        read_socket(WG0, serve(parts), timeout=0.2)
    assert "wg0" in str(caught.value)
    assert PRIVATE not in str(caught.value)


def test_a_socket_that_nobody_serves(tmp_path: Path) -> None:
    """A socket that a dead daemon left behind, or none, is something to wait for."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "wg0.sock"))
    assert list_sockets(tmp_path) == {"wg0": tmp_path / "wg0.sock"}
    for path in (tmp_path / "wg0.sock", tmp_path / "wg1.sock"):
        with pytest.raises(NotYet, match="nobody answers"):
            read_socket(WG0, path)


def test_what_is_no_socket_is_not_listed(tmp_path: Path) -> None:
    """A plain file, a folder that is not there: no sockets."""
    (tmp_path / "wg0.sock").touch()
    assert list_sockets(tmp_path) == list_sockets(tmp_path / "none") == {}


# --- the real daemon -------------------------------------------------------------------------------


class Relay:
    """A namespace with a user-space WireGuard interface."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace, self.name = namespace, name
        self.daemon: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, text: str | None = None) -> str:
        """The output of a command in the namespace."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def start(self) -> None:
        """Start the daemon and wait for its socket."""
        command = ["ip", "netns", "exec", self.namespace, "wireguard-go", "--foreground", self.name]
        self.daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(500):
            if self.daemon.poll() is not None:
                assert self.daemon.stdout is not None
                pytest.fail(f"wireguard-go ended: {self.daemon.stdout.read().decode()}")
            if f"/{self.name}.sock" in self.run("ss", "-xlH") and self.name in self.run("ip", "-br", "link"):
                return
        pytest.fail("wireguard-go made no interface")

    def stop(self) -> None:
        """Stop the daemon; its interface goes with it."""
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait()
            assert self.daemon.stdout is not None
            self.daemon.stdout.close()
            self.daemon = None

    def read(self) -> Snapshot:
        """The peers, as a process in the namespace reads them."""
        netns.pushns(self.namespace)
        try:
            return read_peers([self.name])
        finally:
            netns.popns()


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay with a private key of its own."""
    if os.geteuid() or not shutil.which("wireguard-go") or not Path("/dev/net/tun").exists():
        pytest.skip("needs root, wireguard-go and /dev/net/tun")
    suffix = secrets.token_hex(3)
    made = Relay(f"exitprint-peers-{suffix}", f"wgp{suffix}")
    subprocess.run(["ip", "netns", "add", made.namespace], check=True)
    try:
        made.start()
        made.run(
            "wg", "set", made.name, "private-key", "/dev/stdin", text=base64.b64encode(b"S" * 32).decode()
        )
        yield made
    finally:
        made.stop()
        subprocess.run(["ip", "netns", "del", made.namespace], check=True)


def public(letter: str) -> str:
    """A public key in the form that `wg` takes."""
    return base64.b64encode(letter.encode() * 32).decode()


@pytest.mark.root
def test_peers_of_a_daemon_are_followed(relay: Relay) -> None:
    """A peer that is added, given another address or removed is followed and keeps to its slots."""
    table = SlotTable(16)
    assert table.update(relay.read()).added == ()
    relay.run("wg", "set", relay.name, "peer", public("A"), "allowed-ips", "10.64.0.1/32,fd00::1/128")
    relay.run("wg", "set", relay.name, "peer", public("B"), "allowed-ips", "10.64.0.2/32")
    assert sorted(str(slot.allowed.address) for slot in table.update(relay.read()).added) == [
        "10.64.0.1", "10.64.0.2", "fd00::1",
    ]  # fmt: skip
    relay.run("wg", "set", relay.name, "peer", public("B"), "allowed-ips", "10.64.0.1/32")
    changes = table.update(relay.read())
    assert sorted(str(slot.allowed.address) for slot in changes.retired) == ["10.64.0.1", "10.64.0.2"]
    assert [str(slot.allowed.address) for slot in changes.added] == ["10.64.0.1"]
    assert {slot.number for slot in changes.added}.isdisjoint(slot.number for slot in changes.retired)
    relay.run("wg", "set", relay.name, "peer", public("A"), "remove")
    assert [str(slot.allowed.address) for slot in table.update(relay.read()).retired] == ["fd00::1"]


@pytest.mark.root
def test_a_daemon_that_is_started_anew(relay: Relay) -> None:
    """An interface that is gone is missing by name; created anew it is there with its new ifindex."""
    (before,) = relay.read().interfaces
    relay.stop()
    gone = relay.read()
    assert gone.missing == (relay.name,)
    assert relay.name in str(gone.waiting)
    relay.start()
    (after,) = relay.read().interfaces
    assert after.interface.kind == Kind.USER_SPACE
    assert after.interface.ifindex != before.interface.ifindex


@pytest.mark.root
def test_a_daemon_that_hangs(relay: Relay) -> None:
    """A stopped daemon makes its interface unread, not its peers gone."""
    relay.run("wg", "set", relay.name, "peer", public("A"), "allowed-ips", "10.64.0.1/32")
    table = SlotTable(16)
    table.update(relay.read())
    assert relay.daemon is not None
    os.kill(relay.daemon.pid, signal.SIGSTOP)
    os.waitpid(relay.daemon.pid, os.WUNTRACED)
    try:
        snapshot = relay.read()
    finally:
        os.kill(relay.daemon.pid, signal.SIGCONT)
    assert list(snapshot.unread) == [relay.name]
    assert not table.update(snapshot).retired


@pytest.mark.root
def test_a_daemon_elsewhere_is_not_ours(relay: Relay) -> None:
    """Another namespace sees the socket, but the interface is not its own."""
    assert relay.name in list_sockets()
    assert relay.name not in {part.interface.name for part in read_peers().interfaces}
    assert read_peers([relay.name]).missing == (relay.name,)


@pytest.mark.root
def test_a_daemons_keys_are_nowhere(relay: Relay) -> None:
    """Neither the daemon's private key nor a peer's preshared key is in what was read, or printed."""
    psk = base64.b64encode(b"P" * 32).decode()
    command = [
        "wg",
        "set",
        relay.name,
        "peer",
        public("A"),
        "preshared-key",
        "/dev/stdin",
        "allowed-ips",
        "10.64.0.1/32",
    ]
    relay.run(*command, text=psk)
    snapshot = relay.read()
    (part,) = snapshot.interfaces
    assert [bytes(key) for key in part.peers] == [b"A" * 32]
    for told in (repr(snapshot), str(part.peers), f"{snapshot.interfaces}"):
        assert not any(secret in told for secret in ("AAAA", "PPPP", "SSSS", "10.64", "4141", "\\n@"))
