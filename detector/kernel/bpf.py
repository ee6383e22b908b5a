# SPDX-License-Identifier: Apache-2.0
"""The bpf(2) and perf_event_open(2) calls that the service makes without BCC, which has left by then.

Layouts are those of ``union bpf_attr`` in the kernel's ``include/uapi/linux/bpf.h``. Every failure is an
`OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = {"x86_64": (321, 298), "aarch64": (280, 241)}  # bpf, perf_event_open

_MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM = 1, 2, 3
_OBJ_GET_INFO_BY_FD = 15
_LINK_CREATE = 28

PROG_TYPE_NETFILTER = 32
ATTACH_NETFILTER = 45
NFPROTO_IPV4, NFPROTO_IPV6 = 2, 10
_POST_ROUTING = 4
# Confirmation is at INT_MAX, which the kernel refuses to others; source NAT is at 100.
_LATEST_PRIORITY = 2**31 - 2
_PRIORITIES = 64

_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
_KPROBE_TYPE = Path("/sys/bus/event_source/devices/kprobe/type")

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(index: int, *arguments: object) -> int:
    try:
        number = _NUMBERS[platform.machine()][index]
    except KeyError:
        raise OSError(errno.ENOSYS, f"no system call numbers are known for {platform.machine()}") from None
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _bpf(command: int, attributes: bytes) -> int:
    return _syscall(0, command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))


def _element(
    command: int, fd: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0
) -> None:
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_address = ctypes.addressof(value) if value is not None else 0
    _bpf(command, struct.pack("<IIQQQ", fd, 0, ctypes.addressof(key_buffer), value_address, flags))


def lookup(fd: int, key: bytes, size: int) -> bytes:
    """The value of a key; `size` is that of the value (for a per-CPU map: of all its values)."""
    value = ctypes.create_string_buffer(size)
    _element(_MAP_LOOKUP_ELEM, fd, key, value)
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set a key's value."""
    _element(_MAP_UPDATE_ELEM, fd, key, ctypes.create_string_buffer(value, len(value)))


def delete(fd: int, key: bytes) -> None:
    """Remove a key; one that is not there is no error."""
    try:
        _element(_MAP_DELETE_ELEM, fd, key, None)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def is_allowed(table: int) -> bool:
    """Whether this process may read a table: before 5.19 that can take CAP_BPF."""
    try:
        lookup(table, bytes(24), 4)
    except PermissionError:
        return False
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


@dataclass(frozen=True, slots=True)
class RunTime:
    """What the kernel says of a program's runs, zeros while kernel.bpf_stats_enabled is 0."""

    runs: int = 0
    nanoseconds: int = 0


def run_time(program: int) -> RunTime:
    """How often a program ran, and how long in all; zeros where we may not ask."""
    info = ctypes.create_string_buffer(256)
    try:
        _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, len(info), ctypes.addressof(info)))
    except PermissionError:
        return RunTime()
    nanoseconds, runs = struct.unpack_from("<QQ", info, 192)
    return RunTime(runs, nanoseconds)


def netfilter_link(program: int, protocol: int) -> int:
    """Attach a netfilter program at POSTROUTING of our network namespace, as late as can be.

    Returns:
        The link's descriptor; the program is detached when it is closed.
    """
    for priority in range(_LATEST_PRIORITY, _LATEST_PRIORITY - _PRIORITIES, -1):
        attributes = struct.pack(
            "<IIIIIIiI", program, 0, ATTACH_NETFILTER, 0, protocol, _POST_ROUTING, priority, 0
        )
        try:
            return _bpf(_LINK_CREATE, attributes)
        except OSError as error:
            if error.errno != errno.EBUSY:  # somebody else's link has this priority
                raise
    raise OSError(errno.EBUSY, f"the last {_PRIORITIES} priorities at POSTROUTING are taken")


def kprobe(program: int, function: str) -> int:
    """Attach a program to the entry of a kernel function.

    By perf_event_open alone: BCC falls back to a line in tracefs, which would stay behind after a SIGKILL.

    Returns:
        The event's descriptor; the probe is gone when it is closed.
    """
    kind = int(_KPROBE_TYPE.read_text())
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr: type, size, ..., config1 (56) the address of the name
    attributes = bytearray(128)
    struct.pack_into("<II", attributes, 0, kind, len(attributes))
    struct.pack_into("<Q", attributes, 56, ctypes.addressof(name))
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    event = _syscall(1, buffer, -1, 0, -1, _PERF_FLAG_FD_CLOEXEC)
    try:
        fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(event)
        raise
    return event
