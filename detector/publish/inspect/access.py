# SPDX-License-Identifier: Apache-2.0
"""Who may ask the service: root, the socket's owner, its group's members; the kernel says who is who."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from detector.base.errors import UsageError
from detector.config.model import Config

_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_MOST_BYTES = 1024  # what getsockopt of Python takes at most: 256 groups
_GROUP = struct.Struct("I")


@dataclass(frozen=True, slots=True)
class Access:
    """The socket's owner and mode, and who beside root is answered.

    Attributes:
        owner: user number; root and this user may ask.
        group: group number whose members may ask, or None for none.
        mode: permissions of the socket.
    """

    owner: int = 0
    group: int | None = None
    mode: int = 0o600


def access_of(config: Config) -> Access:
    """What the configuration says, with the numbers of its names.

    Raises:
        UsageError: there is no such user or group.
    """
    try:
        owner = pwd.getpwnam(config.inspect_owner).pw_uid
    except KeyError:
        raise UsageError(
            f"inspect_owner: there is no user {config.inspect_owner}", "name one that exists, such as root"
        ) from None
    try:
        group = None if config.inspect_group is None else grp.getgrnam(config.inspect_group).gr_gid
    except KeyError:
        raise UsageError(
            f"inspect_group: there is no group {config.inspect_group}",
            f"make it with: groupadd --system {config.inspect_group}",
        ) from None
    return Access(owner, group, config.socket_mode)


def is_root(client: socket.socket) -> bool:
    """Whether it is root who connected."""
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return False
    return bool(_CREDENTIALS.unpack(raw)[1] == 0)


def is_authorized(client: socket.socket, access: Access) -> bool:
    """Whether whoever connected may ask; the kernel kept who that was at the time of connecting.

    Raises:
        OSError: it is gone.
    """
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, group = _CREDENTIALS.unpack(raw)
    if user in (0, access.owner):
        return True
    return access.group is not None and access.group in (group, *_supplementary(client))


def _supplementary(client: socket.socket) -> tuple[int, ...]:
    """The other groups of whoever connected; none where there are too many to read, which refuses."""
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BYTES)
    except OSError:
        return ()
    return tuple(number for (number,) in _GROUP.iter_unpack(raw))


def restrict_socket(path: Path, access: Access) -> None:
    """Give a socket, made with its mode, to whom the configuration says.

    Raises:
        OSError: the process may not.
    """
    if access.owner or access.group is not None:
        os.chown(path, access.owner, -1 if access.group is None else access.group, follow_symlinks=False)
