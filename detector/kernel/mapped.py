# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables as memory: reading and writing them takes no call of bpf(), and so no capability.

No NumPy in here: the sensor does without.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager

PAGE = mmap.PAGESIZE

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_CMD_GLOBAL = 1
_GRACE = 0.1  # seconds; a program runs for microseconds

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(table: int, start: int, size: int) -> Iterator[memoryview]:
    """Some bytes of a table, to read and to write; mapped for that moment, so they are no memory of ours.

    Args:
        table: descriptor of an array that can be mapped.
        start: where they begin, in bytes.
        size: how many.
    """
    offset = start // PAGE * PAGE
    with mmap.mmap(table, start - offset + size, offset=offset) as memory:
        whole = memoryview(memory)
        part = whole[start - offset :]
        try:
            yield part
        finally:
            part.release()
            whole.release()


class Words:
    """A small table that stays mapped, as words of 32 bits that are read and written whole."""

    def __init__(self, table: int, size: int) -> None:
        self._memory = mmap.mmap(table, size)
        self._words = memoryview(self._memory).cast("I")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value & 0xFFFFFFFF

    def close(self) -> None:
        """Map it no longer."""
        self._words.release()
        self._memory.close()


def wait_for_programs() -> None:
    """Return when every run of a program that began before this call has ended.

    membarrier(2) with MEMBARRIER_CMD_GLOBAL waits for a grace period of RCU, as the kernel itself does when a
    map of maps is changed, and no program runs over one. It orders our own memory accesses, too. A kernel
    with processors that never tick (nohz_full) does not offer it: there we wait for far longer than a program
    runs.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is not None and _libc.syscall(number, _MEMBARRIER_CMD_GLOBAL, 0, 0) == 0:
        return
    if number is not None and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
        code = ctypes.get_errno()
        raise OSError(code, f"membarrier: {os.strerror(code)}")
    time.sleep(_GRACE)
