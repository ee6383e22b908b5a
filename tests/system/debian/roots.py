# SPDX-License-Identifier: Apache-2.0
"""Fresh systems of Debian's releases in folders: made once by mmdebstrap, then used through an overlay.

They are kept in `.cache/debian/`. Packages come from the mirror that this machine's own apt names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.vm.mirror import KEYRING, Unavailable, mirror_address

CACHE = Path(".cache/debian").absolute()
SUITES = ("bookworm", "trixie")

_STALE = 14 * 86_400.0  # seconds after which the mirror may have replaced what an index names
_IN_CHROOT = """
set -eu
root=$1; shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


@dataclass(frozen=True, slots=True)
class Root:
    """A root file system in a folder; what is mounted for a command is gone with it."""

    folder: Path

    def run(
        self, *command: str, check: bool = True, seconds: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root, with this machine's network, and nothing of our environment.

        Raises:
            AssertionError: it failed, with everything that it printed.
        """
        words = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            _IN_CHROOT,
            "sh",
            str(self.folder),
            *command,
        ]

        return done(words, _ENVIRONMENT, check=check, seconds=seconds)

    def install(self, *packages: str) -> None:
        """Install packages, by name or as files of the system, without what they only recommend."""
        self.run("apt-get", "install", "--yes", "--no-install-recommends", *packages)

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """Put a file there."""
        target = self.folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)


def done(
    command: Sequence[str], environment: dict[str, str], *, check: bool, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        AssertionError: it failed, with everything that it printed.
    """
    result = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    if check and result.returncode:
        raise AssertionError(f"{command[-4:]} ended with {result.returncode}\n{result.stdout}{result.stderr}")
    return result


@contextmanager
def fresh(suite: str, *packages: str) -> Iterator[Root]:
    """A system that nobody has used, with these packages; what is changed in it is gone at the end."""
    lowers = [_base(suite)]
    if packages:
        lowers.insert(0, _layer(suite, packages, lowers[0]))
    with _mounted(lowers) as root:
        yield root


def _base(suite: str) -> Path:
    """The smallest system that boots: apt and systemd."""
    target = CACHE / suite / "base"

    def make(work: Path) -> None:
        keyring = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        source = f"deb {keyring}{mirror_address()} {suite} main"

        words = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=systemd,systemd-sysv",
            "--skip=cleanup/apt/lists",
            '--aptopt=Acquire::Languages "none"',
            suite,
            str(work),
            source,
        ]

        try:
            done(words, dict(os.environ), check=True, seconds=900)
        except FileNotFoundError:
            raise Unavailable("mmdebstrap is not installed", "run: make debian-env") from None
        except AssertionError as error:
            raise Unavailable(f"{suite} cannot be had: {error}", "look at the network") from None
        root = Root(work)
        # How this machine reaches its mirror.
        asks = done(["apt-config", "dump", "Acquire"], dict(os.environ), check=True, seconds=60).stdout
        root.write("/etc/apt/apt.conf.d/90machine", asks)
        (work / "etc/resolv.conf").unlink(missing_ok=True)
        root.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        root.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        root.write("/etc/machine-id", "")
        root.write("/etc/dpkg/dpkg.cfg.d/unsafe-io", "force-unsafe-io\n")  # nobody will miss it

    return _kept(target, make)


def _layer(suite: str, packages: Sequence[str], base: Path) -> Path:
    """What these packages add to the base."""
    name = hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()[:12]

    def make(work: Path) -> None:
        with _mounted([base], upper=work) as root:
            root.run("apt-get", "update")
            root.install(*packages)

    return _kept(CACHE / suite / f"layer-{name}", make)


def _kept(target: Path, make: object) -> Path:
    """A folder of the cache, made anew where it is not there or has grown old."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir() and time.time() - target.stat().st_mtime < _STALE:
            return target
        work = target.with_name(f"{target.name}.new")
        for old in (work, target):
            if old.exists():
                shutil.rmtree(old)
        work.mkdir(mode=0o755)
        assert callable(make)
        make(work)
        os.utime(work)
        work.rename(target)
    return target


@contextmanager
def _mounted(lowers: Sequence[Path], upper: Path | None = None) -> Iterator[Root]:
    """An overlay; with `upper`, what is written stays there."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="overlay-", ignore_cleanup_errors=True) as work:
        top = upper or Path(work) / "upper"
        inner, merged = Path(work) / "work", Path(work) / "root"
        for folder in (top, inner, merged):
            folder.mkdir(exist_ok=True)
        if upper is not None:  # the overlay's own folder lies beside its upper one
            inner = upper.with_name(f"{upper.name}.work")
            inner.mkdir(exist_ok=True)
        options = f"lowerdir={':'.join(map(str, lowers))},upperdir={top},workdir={inner}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)], check=True)
        try:
            yield Root(merged)
        finally:
            subprocess.run(["umount", "--lazy", str(merged)], check=False)
            if upper is not None:
                shutil.rmtree(inner, ignore_errors=True)
