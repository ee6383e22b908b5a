# SPDX-License-Identifier: Apache-2.0
"""Whose flow it is: allowed-ips as ``wg show`` prints them, or every source address that was translated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from detector.base.errors import UsageError
from detector.base.family import unpack
from detector.conntrack.source import Unpacking, unpacked
from detector.wireguard.model import AllowedIp

MAX_PEERS = 1 << 17
NOBODY = -1
NO_ROOM = -2
_NETWORK_BITS = 128


class Peers(dict[bytes, int]):
    """Tunnel address, as 16 bytes, to the row of its peer; `NOBODY` or `NO_ROOM` where there is none.

    Args:
        allowed: the allowed-ips, or None where each address that is asked for is a peer.
    """

    def __init__(self, allowed: Sequence[AllowedIp] | None = None) -> None:
        super().__init__()
        self.listed = allowed is not None
        self.allowed: list[AllowedIp] = list(dict.fromkeys(allowed or ()))
        self._networks: dict[int, dict[int, int]] = {}
        for row, one in enumerate(self.allowed):
            bits = _NETWORK_BITS - one.packed_prefix
            self._networks.setdefault(bits, {})[int.from_bytes(one.packed) >> bits] = row
        self._bits = sorted(self._networks)  # the longest prefix first

    def __missing__(self, packed: bytes) -> int:
        if self.listed:
            row = self._longest_match(int.from_bytes(packed))
        elif len(self.allowed) < MAX_PEERS:
            row = len(self.allowed)
            self.allowed.append(_single(packed))
        else:
            return NO_ROOM
        if len(self) < MAX_PEERS:
            self[packed] = row
        return row

    def _longest_match(self, number: int) -> int:
        for bits in self._bits:
            row = self._networks[bits].get(number >> bits)
            if row is not None:
                return row
        return NOBODY


def _single(packed: bytes) -> AllowedIp:
    address = unpack(packed).packed
    return AllowedIp(address, 8 * len(address))


def read_peers_file(path: Path) -> Peers:
    """The peers of a file that ``wg show`` wrote.

    Raises:
        UsageError: it cannot be read, holds no peer, or a line is not one of ``wg show``.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(_LARGEST)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "check the name and its rights"
        ) from error
    content = b"".join(unpacked(iter([packed]), Unpacking()))
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not what `wg show` prints", _HINT) from error
    allowed = [one for number, line in enumerate(lines, 1) for one in _allowed_ips(path, number, line)]
    if not allowed:
        raise UsageError(f"{path} holds no allowed-ips", _HINT)
    return Peers(allowed)


_HINT = "make it with `wg show all allowed-ips`"
_LARGEST = 1 << 28
_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
_DUMPED_PEER = (
    8  # words of a peer in `wg show INTERFACE dump`: key, preshared key, endpoint, allowed-ips, ...
)
_DUMPED_INTERFACE = 4  # private key, public key, port, mark


def _allowed_ips(path: Path, number: int, line: str) -> Iterable[AllowedIp]:
    """``[INTERFACE] KEY ALLOWED-IP...`` or a line of ``dump``; a peer without any has ``(none)``."""
    words = line.split()
    if not words:
        return ()
    if not _KEY.fullmatch(words[0]):
        words = words[1:]  # the interface
    found = _networks(words)
    if found is None:
        raise UsageError(f"line {number} of {path} is not what `wg show all allowed-ips` prints", _HINT)
    return [AllowedIp(one.network_address.packed, one.prefixlen) for one in found]


def _networks(words: Sequence[str]) -> list[IPv4Network | IPv6Network] | None:
    """The networks of a line without its interface; None where it is no line of ``wg show``."""
    if not words or not (_KEY.fullmatch(words[0]) or words[0] == "(none)"):
        return None
    if len(words) == _DUMPED_INTERFACE and words[2].isdecimal():
        return []
    texts = words[3].split(",") if len(words) == _DUMPED_PEER and ":" not in words[1] else words[1:]
    try:
        return [ip_network(text.rstrip(",")) for text in texts if text != "(none)"] if texts else None
    except ValueError:
        return None
