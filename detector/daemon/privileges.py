# SPDX-License-Identifier: Apache-2.0
"""Giving up privileges, for good, after everything is imported and open.

In the process and not by an outer command: the code may lie where the lesser process cannot read it.
Constants from the kernel's ``linux/capability.h``, ``linux/prctl.h`` and ``linux/securebits.h``.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
import struct
from collections.abc import Collection, Iterable
from pathlib import Path

CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF = 12, 13, 39

_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = (
    4,
    24,
    28,
    38,
    47,
)
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
# With it, user 0 gains nothing by being user 0 when it starts a command.
_SECBIT_NOROOT, _SECBIT_NOROOT_LOCKED = 1, 2
_LAST_CAPABILITY = 63

_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def enter_network(namespace: Path) -> None:
    """Move this thread into a network namespace that is there."""
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns")
    finally:
        os.close(descriptor)


def disable_core_dumps() -> None:
    """No core file, and no other process of our user may look into our memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def die_with_parent() -> None:
    """Get SIGTERM when the process that started us is gone, whatever we are doing then."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def holds(capability: int) -> bool:
    """Whether this process has a capability now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (held,) = (line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(held, 16) >> capability & 1)


def keep_only(capabilities: Iterable[int]) -> None:
    """Stay the user we are, with these capabilities alone; commands that we start get the same ones."""
    kept = tuple(capabilities)
    _bound(kept)
    secure = _SECBIT_NOROOT | _SECBIT_NOROOT_LOCKED
    _check(_libc.prctl(_PR_SET_SECUREBITS, secure, 0, 0, 0), "prctl(PR_SET_SECUREBITS)")
    _set_capabilities(kept)
    for number in kept:
        _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0), "prctl(PR_CAP_AMBIENT)")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def drop_privileges(user: str) -> None:
    """Become another user, not root, with no capability and no way to gain one.

    Raises:
        KeyError: there is no such user.
    """
    entry = pwd.getpwnam(user)
    _bound(())
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    # That cleared what was permitted, not what is inheritable.
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")
    _set_capabilities(())
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def _bound(kept: Collection[int]) -> None:
    """Whatever is started from now on can have no other capabilities."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # EINVAL beyond the last one that the kernel has


def _set_capabilities(kept: Collection[int]) -> None:
    bits = sum(1 << number for number in kept)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable; the low words first
    sets = struct.pack("<6I", low, low, low, high, high, high)
    _check(_libc.capset(header, sets), "capset")
