# SPDX-License-Identifier: Apache-2.0
"""Netlink requests whose answers are read in place, in memory of ours that is wiped.

pyroute2 builds the messages. It does not receive them, because its sockets keep what they get in Python
objects, and a WireGuard device's answer begins with the private key.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self


@contextmanager
def _bare(package: str) -> Iterator[None]:
    """Lets a package's modules be imported without running its ``__init__``.

    pyroute2's imports all of its modules: 20 MB, where the two that we need take 1.4 MB.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None:
        yield
        return
    sys.modules[package] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _bare("pyroute2"):
    from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, ctrlmsg, genlmsg
    from pyroute2.netlink.rtnl.rtgenmsg import rtgenmsg

__all__ = ["DumpInterrupted", "Netlink", "NetlinkError", "attributes", "ctrlmsg", "genlmsg", "rtgenmsg"]

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR = 0x10
_TYPE_MASK = 0x3FFF
_BUFFER_BYTES = 1 << 16  # the kernel fills at most 32 KiB at once (netlink_dump)
_ZEROS = bytes(_BUFFER_BYTES)
_TIMEOUT_SECONDS = 5.0


class NetlinkError(OSError):
    """The kernel refused a request; `errno` says why."""


class DumpInterrupted(Exception):
    """What was listed changed while it was listed: the list may lack entries."""


class Netlink:
    """A socket of one netlink protocol, in the network namespace of the thread that opens it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, message: Any, kind: int, *, dump: bool = False) -> Iterator[memoryview]:
        """Ask the kernel, and yield each message of its answer without the netlink header.

        A message is a view of memory that is wiped when the next one is asked for. After a list that was not
        read to its end the kernel refuses the next one: open another socket.

        Args:
            message: the request, built with pyroute2.
            kind: the message type.
            dump: whether to ask for a list; otherwise the answer is one message.

        Raises:
            NetlinkError: the kernel refused.
            DumpInterrupted: at the end of a list that changed meanwhile.
            TimeoutError: the kernel did not answer within 5 seconds.
        """
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(message.data)
        interrupted, more = False, True
        while more:
            for answer, flags, body in self._receive():
                interrupted |= bool(flags & _NLM_F_DUMP_INTR)
                more = dump and answer != _NLMSG_DONE
                if answer > _NLMSG_DONE:
                    yield body
        if interrupted:
            raise DumpInterrupted

    def _receive(self) -> Iterator[tuple[int, int, memoryview]]:
        """The messages of one datagram: type, flags and body. It is wiped afterwards."""
        size, _, truncated, _ = self._socket.recvmsg_into([self._buffer])
        with memoryview(self._buffer)[:size] as datagram:
            try:
                if truncated & socket.MSG_TRUNC:
                    raise NetlinkError(errno.EMSGSIZE, "the answer is longer than netlink's")
                yield from self._messages(datagram)
            finally:
                self._buffer[:size] = _ZEROS[:size]

    def _messages(self, datagram: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        offset = 0
        while offset + _HEADER.size <= len(datagram):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
            if not _HEADER.size <= length <= len(datagram) - offset:
                raise NetlinkError(errno.EBADMSG, "a message does not fit its datagram")
            body = datagram[offset + _HEADER.size : offset + length]
            if sequence == self._sequence:  # others belong to an answer that was not read to its end
                _raise_refusal(kind, body)
                yield kind, flags, body
            offset += (length + 3) & ~3


def _raise_refusal(kind: int, body: memoryview) -> None:
    # A list that fails half-way says so in its last message.
    if kind in (_NLMSG_ERROR, _NLMSG_DONE) and len(body) >= _ERRNO.size:
        code = -_ERRNO.unpack_from(body)[0]
        if code > 0:
            raise NetlinkError(code, os.strerror(code))


def attributes(message: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The attributes between two offsets of a message: type, and the offsets of the value.

    One that does not fit, and what comes after it, is left out, as the kernel does (nla_ok).
    """
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(message, start)
        if not 4 <= length <= end - start:
            return
        yield kind & _TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3
