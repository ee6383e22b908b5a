# SPDX-License-Identifier: Apache-2.0
"""Real WireGuard for a lab: the kernel's where the kernel has it, ``wireguard-go`` otherwise.

Keys are drawn here and stay in this process; public keys are read back from ``wg``, which derives them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from detector.base.errors import HostError
from detector.base.family import Address, Family
from detector.lab.limits import inotify_instances, socket_buffers
from detector.lab.namespaces import UAPI, Namespace, entered, ip_batch, require

PORT = 51820
_MTU = 1420  # what wireguard-go would set itself
_PATIENCE = 30.0
_PATIENCE_EACH = 0.3  # a thousand processes share two processors


@dataclass(frozen=True, slots=True)
class Peer:
    """One WireGuard peer of the relay, with what is secret about it kept out of its representation."""

    number: int
    interface: str
    tunnel: Mapping[Family, Address] = field(repr=False)
    private_key: str = field(repr=False)
    public_key: str = field(repr=False)

    def allowed_ips(self) -> list[str]:
        """Its tunnel addresses as single-address networks."""
        return [f"{address}/{address.max_prefixlen}" for address in self.tunnel.values()]


@dataclass(frozen=True, slots=True)
class Remote:
    """A peer as one side of a tunnel is told of it."""

    public_key: str = field(repr=False)
    allowed_ips: Sequence[str] = field(repr=False)
    endpoint: tuple[str, int] | None = None


class Backend(Protocol):
    """An implementation of WireGuard."""

    name: str

    def create(self, namespace: Namespace, interfaces: Sequence[str], settings: Iterable[str] = ()) -> None:
        """Make interfaces, and do with them what ip(8) is told; they may not be usable before `wait`."""

    def wait(self) -> None:
        """Return when all the interfaces can be set up."""

    def set_key(self, namespace: Namespace, interface: str, private_key: str, port: int | None) -> None:
        """Give an interface its private key, and the port that it listens on."""

    def add_peers(self, namespace: Namespace, interface: str, remotes: Iterable[Remote]) -> None:
        """Add peers to an interface."""

    def public_key(self, namespace: Namespace, interface: str) -> str:
        """The public key of an interface whose private key is set."""

    def stop(self) -> None:
        """End processes and connections; the interfaces go with their namespace."""


def new_private_key() -> str:
    """A Curve25519 private key as ``wg genkey`` makes it (RFC 7748, section 5, for the clamping)."""
    raw = bytearray(os.urandom(32))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return b64encode(raw).decode()


class KernelWireGuard:
    """WireGuard of the kernel, set up over netlink without a process per interface."""

    name = "kernel"

    def __init__(self) -> None:
        self._netlink: dict[str, Any] = {}

    def create(self, namespace: Namespace, interfaces: Sequence[str], settings: Iterable[str] = ()) -> None:
        """Make interfaces.

        Raises:
            HostError: this kernel has no WireGuard.
        """
        ip_batch((f"link add {name} type wireguard" for name in interfaces), namespace)
        ip_batch(settings, namespace)

    def wait(self) -> None:
        """Nothing to wait for."""

    def set_key(self, namespace: Namespace, interface: str, private_key: str, port: int | None) -> None:
        """Give an interface its private key, and the port that it listens on."""
        self._set(namespace, interface, [{"private_key": private_key, "listen_port": port}])

    def add_peers(self, namespace: Namespace, interface: str, remotes: Iterable[Remote]) -> None:
        """Add peers to an interface."""
        settings = []
        for remote in remotes:
            peer: dict[str, object] = {
                "public_key": remote.public_key,
                "allowed_ips": list(remote.allowed_ips),
            }
            if remote.endpoint:
                peer["endpoint_addr"], peer["endpoint_port"] = remote.endpoint
            settings.append({"peer": peer})
        self._set(namespace, interface, settings)

    def public_key(self, namespace: Namespace, interface: str) -> str:
        """The public key of an interface whose private key is set."""
        device = next(iter(self._connected(namespace).info(interface)))
        return str(device.get("WGDEVICE_A_PUBLIC_KEY").decode())

    def stop(self) -> None:
        """Close the netlink sockets."""
        while self._netlink:
            self._netlink.popitem()[1].close()

    def _set(self, namespace: Namespace, interface: str, settings: Iterable[Mapping[str, object]]) -> None:
        netlink = self._connected(namespace)
        for setting in settings:
            netlink.set(interface, **setting)

    def _connected(self, namespace: Namespace) -> Any:
        if namespace.name not in self._netlink:
            # Imported here: it takes long under emulation, and user-space WireGuard does not need it.
            from pyroute2 import WireGuard  # noqa: PLC0415

            with entered(namespace):
                self._netlink[namespace.name] = WireGuard()
        return self._netlink[namespace.name]


class UserWireGuard:
    """``wireguard-go``: a process per interface, set up over its UAPI socket."""

    name = "wireguard-go"

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._instances, self._buffers = inotify_instances(), socket_buffers()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the others, in `stop`

    def create(self, namespace: Namespace, interfaces: Sequence[str], settings: Iterable[str] = ()) -> None:
        """Start a process per interface, all at once.

        Interfaces are set up first: each process hears of each change, and a thousand of both are a million.

        Raises:
            HostError: ``wireguard-go`` is missing.
        """
        require("wireguard-go")
        self._instances.make_room()
        self._buffers.make_room()
        # One processor each: forty of them share a machine, and none of them alone is the bottleneck.
        environment = {**os.environ, "LOG_LEVEL": "error", "GOMAXPROCS": "1"}
        ip_batch((f"tuntap add dev {name} mode tun" for name in interfaces), namespace)
        ip_batch((f"link set {name} mtu {_MTU}" for name in interfaces), namespace)
        ip_batch(settings, namespace)
        with entered(namespace):
            for name in interfaces:
                self._running[name] = subprocess.Popen(
                    ["wireguard-go", "-f", name],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    process_group=0,
                )

    def wait(self) -> None:
        """Return when every process has its socket.

        Raises:
            HostError: a process ended, or its socket did not come.
        """
        deadline = time.monotonic() + _PATIENCE + _PATIENCE_EACH * len(self._running)
        for name, process in self._running.items():
            while not (UAPI / f"{name}.sock").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise self._not_started()
                time.sleep(0.01)
        self._buffers.put_back()

    def _not_started(self) -> HostError:
        """Why, in its own words, and what to do about the two reasons that there usually are."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else "it said nothing"
        many = "too many open files" in reason.lower() or "inotify" in reason.lower()
        mend = self._instances.advice() if many else "is /dev/net/tun there? (modprobe tun)"
        return HostError(f"wireguard-go did not start: {reason}", mend)

    def set_key(self, namespace: Namespace, interface: str, private_key: str, port: int | None) -> None:  # noqa: ARG002
        """Give an interface its private key, and the port that it listens on."""
        lines = [f"private_key={_hex(private_key)}"]
        if port is not None:
            lines.append(f"listen_port={port}")
        _uapi_set(interface, lines)

    def add_peers(self, namespace: Namespace, interface: str, remotes: Iterable[Remote]) -> None:  # noqa: ARG002
        """Add peers to an interface."""
        lines = []
        for remote in remotes:
            lines.append(f"public_key={_hex(remote.public_key)}")
            if remote.endpoint:
                lines.append("endpoint={}:{}".format(*remote.endpoint))
            lines += [f"allowed_ip={network}" for network in remote.allowed_ips]
        _uapi_set(interface, lines)

    def public_key(self, namespace: Namespace, interface: str) -> str:  # noqa: ARG002
        """The public key of an interface whose private key is set.

        Raises:
            HostError: ``wg`` does not know the interface.
        """
        # One by one: `wg show all` removes the socket of any interface that does not listen yet, which ends
        # the wireguard-go that is being started for another lab.
        command = ["wg", "show", interface, "public-key"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
        if done.returncode:
            raise HostError("wg does not list a WireGuard interface of the lab")
        return done.stdout.strip()

    def stop(self) -> None:
        """Ask every process to end, and collect them."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
        self._said.close()
        self._instances.put_back()
        self._buffers.put_back()


def _hex(key: str) -> str:
    return b64decode(key).hex()


def _uapi_connect(interface: str) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE
    while True:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(_PATIENCE)
        try:
            link.connect(str(UAPI / f"{interface}.sock"))
        except OSError as problem:
            link.close()
            # The socket's name is there a moment before it listens.
            if not isinstance(problem, ConnectionRefusedError) or time.monotonic() > deadline:
                raise HostError(f"wireguard-go cannot be reached: {problem.strerror}") from None
            time.sleep(0.01)
        else:
            return link


def _uapi_set(interface: str, lines: Iterable[str]) -> None:
    with _uapi_connect(interface) as link:
        link.sendall("".join(f"{line}\n" for line in ["set=1", *lines, ""]).encode())
        with link.makefile() as answers:
            answer = answers.readline().strip()
    if answer != "errno=0":
        raise HostError(f"wireguard-go refused a setting ({answer or 'no answer'})")
