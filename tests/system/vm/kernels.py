# SPDX-License-Identifier: Apache-2.0
"""The stock Debian kernels that the tests boot: fetched when needed, kept in `.cache/kernels/`."""

from __future__ import annotations

import fcntl
import os
import shutil
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
    """A kernel line and the suite that holds its newest package.

    Attributes:
        line: what its version begins with.
        hook: that works there.
        always: it is booted by `make test`; the others by `make kernels`.
    """

    line: str
    suite: str
    hook: str
    always: bool = True


STOCK_KERNELS = (
    StockKernel("5.10", "bullseye", "kprobe", always=False),
    StockKernel("6.1", "bookworm", "kprobe"),
    StockKernel("6.12", "bookworm-backports", "netfilter"),
    StockKernel("7", "trixie-backports", "netfilter", always=False),
)
WANTED = tuple(one for one in STOCK_KERNELS if one.always or os.environ.get("EXITPRINT_KERNELS") == "all")


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
        vmlinuz = next((files / "boot").glob("vmlinuz-*"), None) if (files / "boot").is_dir() else None
        if vmlinuz is None:
            vmlinuz = _fetch_parts(kernel.suite, files)
            _index_modules(files / "usr", vmlinuz.parent.name)
        else:
            _index_modules(files, vmlinuz.name.removeprefix("vmlinuz-"))
    return Image(vmlinuz, busybox / "bin" / "busybox")


def _fetch_parts(suite_name: str, files: Path) -> Path:
    """From about 6.19 on the package of a kernel is empty: others hold the image and the modules."""
    name = files.name.partition("_")[0]
    release = name.removeprefix("linux-image-")
    vmlinuz = files / "usr" / "lib" / "modules" / release / "vmlinuz"
    if vmlinuz.exists():
        return vmlinuz
    suite = Suite(suite_name, CACHE / suite_name)
    for part in ("linux-binary", "linux-modules"):
        wanted = suite.latest(f"{part}-{release}")
        shutil.copytree(suite.unpack(wanted), files, symlinks=True, dirs_exist_ok=True)
    return vmlinuz


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
