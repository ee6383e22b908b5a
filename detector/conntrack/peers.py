# SPDX-License-Identifier: Apache-2.0
"""Whose flow it is: allowed-ips as ``wg show`` prints them, or every source address that was translated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path

from detector.base.errors import UsageError
from detector.base.family import unpack
from detector.wireguard.model import AllowedIp

MAX_PEERS = 1 << 20
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
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not what `wg show` prints", _HINT) from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "check the name and its rights"
        ) from error
    allowed = [one for number, line in enumerate(lines, 1) for one in _allowed_ips(path, number, line)]
    if not allowed:
        raise UsageError(f"{path} holds no allowed-ips", _HINT)
    return Peers(allowed)


_HINT = "make it with `wg show all allowed-ips`"


def _allowed_ips(path: Path, number: int, line: str) -> Iterable[AllowedIp]:
    """``[INTERFACE] KEY ALLOWED-IP...``; a peer without any has ``(none)``."""
    words = line.split()
    if not words:
        return ()
    start = 1 if _is_allowed(words[1:2]) else 2
    if len(words) <= start or not all(_is_allowed([word]) for word in words[start:]):
        raise UsageError(f"line {number} of {path} is not what `wg show all allowed-ips` prints", _HINT)
    networks = [ip_network(word) for word in words[start:] if word != "(none)"]
    return [AllowedIp(one.network_address.packed, one.prefixlen) for one in networks]


def _is_allowed(words: Sequence[str]) -> bool:
    try:
        return bool(words) and (words[0] == "(none)" or bool(ip_network(words[0])))
    except ValueError:
        return False
