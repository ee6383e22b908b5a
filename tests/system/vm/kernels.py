# SPDX-License-Identifier: Apache-2.0
"""The stock Debian kernels that the tests boot: fetched when needed, kept in `.cache/kernels/`."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.vm.mirror import Suite, Unavailable

CACHE = Path(".cache/kernels").absolute()
KERNEL_PACKAGE = "linux-image-amd64"  # the cloud flavour has no 9p, and with it no root file system here


@dataclass(frozen=True, slots=True)
class StockKernel:
    """A kernel line and the suite that holds its newest package."""

    line: str
    suite: str


STOCK_KERNELS = (StockKernel("6.1", "bookworm"), StockKernel("6.12", "bookworm-backports"))


@dataclass(frozen=True, slots=True)
class Image:
    """What is booted: a kernel with its modules beside it, and a static busybox to start from."""

    vmlinuz: Path
    busybox: Path


def fetch(kernel: StockKernel) -> Image:
    """The newest packaged kernel of that line, from the cache when it is there.

    Raises:
        Unavailable: it is neither in the cache nor to be had.
    """
    with _locked():
        busybox = _fetch_package("bookworm", "busybox-static", "busybox-static_*")
        files = _fetch_package(kernel.suite, KERNEL_PACKAGE, "linux-image-*_*")
        vmlinuz = next((files / "boot").glob("vmlinuz-*"))
        _index_modules(files, vmlinuz.name.removeprefix("vmlinuz-"))
    return Image(vmlinuz, busybox / "bin" / "busybox")


def _fetch_package(suite_name: str, name: str, pattern: str) -> Path:
    """The package's unpacked files; without a network, those of the last time."""
    suite = Suite(suite_name, CACHE / suite_name)
    try:
        suite.refresh()
        return suite.unpack(suite.latest(name))
    except Unavailable:
        earlier = sorted(suite.folder.glob(pattern))
        if not earlier:
            raise
        return earlier[-1]


def _index_modules(files: Path, release: str) -> None:
    """Debian's package leaves the index of its modules to the installation."""
    if not (files / "lib" / "modules" / release / "modules.dep").exists():
        subprocess.run(["depmod", "--basedir", str(files), release], check=True)


@contextmanager
def _locked() -> Iterator[None]:
    """One fetch at a time, so that two test runs share what one of them downloads."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
