# SPDX-License-Identifier: Apache-2.0
"""Hears from the kernel that an interface or the NAT rules have changed, to look at once.

Only that something has changed is taken from a notice; what it is, is read as always. (rtnetlink(7);
NFNLGRP_NFTABLES and NFT_MSG_* of the kernel's uapi headers)
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct

from detector.logs import get_logger

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_RTMGRP_LINK = 1
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES = 7
_HEADER = struct.Struct("=IHHII")
_NEWLINK, _DELLINK = 16, 17
_NFTABLES = 10  # subsystem, the upper byte of a message's type
# Tables, chains and rules that come and go; elements of sets do so all the time.
_RULES = frozenset({0, 2, 3, 5, 6, 8})
_CHUNK = 1 << 16
_MAX_CHUNKS = 64


class Notices:
    """What has changed in our network namespace since this was asked.

    A host that does not let us listen is told so once; it is looked at every interval all the same.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        try:
            self._listen(_NETLINK_ROUTE, _RTMGRP_LINK, None)
            self._listen(_NETLINK_NETFILTER, 0, _NFNLGRP_NFTABLES)
        except OSError as error:
            get_logger().warning("changes are seen at the next look only", reason=error.strerror)

    def _listen(self, protocol: int, groups: int, member: int | None) -> None:
        end = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sockets.append(end)
        end.setblocking(False)
        end.bind((0, groups))
        if member is not None:
            end.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, member)

    def filenos(self) -> list[int]:
        """The descriptors, to wait on."""
        return [one.fileno() for one in self._sockets]

    def taken(self) -> bool:
        """Whether something has changed since this was asked."""
        changed = [self._changed(one) for one in self._sockets]  # every one is emptied
        return any(changed)

    def _changed(self, end: socket.socket) -> bool:
        changed = False
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_CHUNKS):
                if not select.select([end], [], [], 0)[0]:
                    break
                try:
                    changed |= is_change(end.recv(_CHUNK))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    changed = True  # some were lost: anything may have changed
        return changed


def is_change(datagram: bytes) -> bool:
    """Whether a datagram of netlink tells that a link, a table, a chain or a rule came or went."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, at)
        if kind in (_NEWLINK, _DELLINK) or (kind >> 8 == _NFTABLES and kind & 0xFF in _RULES):
            return True
        if length < _HEADER.size:
            return False
        at += (length + 3) & ~3
    return False
