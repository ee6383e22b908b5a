# SPDX-License-Identifier: Apache-2.0
"""Peers of user-space WireGuard (wireguard-go, boringtun), over its configuration socket.

The answer (https://www.wireguard.com/xplatform/) begins with the private key. It is read into memory of ours
in which only public keys and allowed-ips are looked for, and which is wiped.

The sockets are files, so every network namespace sees them all: a socket counts when a tun device of its
name is in ours. Two processes cannot own sockets of one name, so this goes wrong only if some other
program's tun device has the name of a WireGuard interface elsewhere.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from detector.base.errors import HostError, NotYet
from detector.wireguard.model import AllowedIp, Interface, Peers, PublicKey, is_mapped

SOCKETS = Path("/var/run/wireguard")
TIMEOUT_SECONDS = 2.0

_CHUNK_BYTES = 1 << 16
_ZEROS = bytes(_CHUNK_BYTES)
_WANTED = re.compile(
    rb"^(?:public_key=([0-9a-f]{64})|allowed_ip=([0-9A-Fa-f.:]+)/(\d{1,3})|errno=(-?\d+))$", re.MULTILINE
)

Found = dict[PublicKey, list[AllowedIp]]


def list_sockets(folder: Path = SOCKETS) -> dict[str, Path]:
    """The configuration sockets by the name of their interface."""
    try:
        return {path.stem: path for path in folder.iterdir() if path.suffix == ".sock" and path.is_socket()}
    except OSError:  # no user-space WireGuard has run here, or it is not for us to see
        return {}


def read_socket(interface: Interface, path: Path, timeout: float = TIMEOUT_SECONDS) -> Peers:
    """The peers of a user-space interface.

    Args:
        interface: the interface, for the errors.
        path: its socket.
        timeout: seconds for the whole answer.

    Raises:
        NotYet: nobody listens there.
        HostError: no answer in time, or not one of WireGuard.
    """
    found: Found = {}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout)
            link.connect(str(path))
            link.sendall(b"get=1\n\n")
            code = _collect(link, found, time.monotonic() + timeout)
    except (ConnectionRefusedError, FileNotFoundError):
        raise NotYet(f"nobody answers for the user-space WireGuard interface {interface.name}") from None
    except PermissionError:
        raise HostError(f"not allowed to read the peers of {interface.name}", "run as root") from None
    except TimeoutError:
        raise HostError(
            f"the user-space WireGuard of {interface.name} did not answer in {timeout:g} s"
        ) from None
    except OSError as error:
        raise HostError(f"cannot read the peers of {interface.name}: {error.strerror}") from None
    if code is None:
        raise HostError(f"the answer for the user-space WireGuard interface {interface.name} is not whole")
    if code:
        raise HostError(f"the user-space WireGuard of {interface.name} answers with error {code}")
    return {key: tuple(allowed) for key, allowed in found.items()}


def _collect(link: socket.socket, found: Found, deadline: float) -> int | None:
    """Read an answer into `found`; its error code, or None if it ends before there is one."""
    buffer = bytearray(_CHUNK_BYTES)
    reader = _Reader(found)
    kept = 0
    try:
        with memoryview(buffer) as view:
            while reader.code is None:
                if (left := deadline - time.monotonic()) <= 0:
                    raise TimeoutError
                link.settimeout(left)
                size = link.recv_into(view[kept:])  # 0 also when one line fills the buffer
                if size == 0:
                    return None
                whole = buffer.rfind(b"\n", 0, kept + size) + 1
                reader.take(view[:whole])
                view[: kept + size - whole] = view[whole : kept + size]
                kept += size - whole
    finally:
        buffer[:] = _ZEROS
    return reader.code


class _Reader:
    """Picks public keys and allowed-ips out of whole lines of an answer."""

    def __init__(self, found: Found) -> None:
        self.code: int | None = None
        self._found = found
        self._peer: list[AllowedIp] = []

    def take(self, lines: memoryview) -> None:
        for match in _WANTED.finditer(lines):
            key, network, prefix, code = match.groups()
            if key is not None:
                self._peer = self._found.setdefault(PublicKey.fromhex(key.decode()), [])
            elif network is not None:
                self._peer.extend(_allowed_ip(network.decode(), int(prefix)))
            else:
                self.code = int(code)


def _allowed_ip(network: str, prefix: int) -> Iterator[AllowedIp]:
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in network else socket.AF_INET, network)
    except OSError:
        return
    if prefix <= 8 * len(packed) and not is_mapped(packed):
        yield AllowedIp(packed, prefix)
