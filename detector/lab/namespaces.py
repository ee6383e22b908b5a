# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of a lab: made, entered and removed again, also after a lab that was killed.

A lab owns everything whose name holds its id. It holds a lock on ``/run/exitprint-lab/ID.lock`` while it
lives, so a lock that can be taken tells a dead lab, whatever became of its process id.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from detector.base.errors import HostError

LOCKS = Path("/run/exitprint-lab")
NAMESPACES = Path("/run/netns")
UAPI = Path("/var/run/wireguard")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        """Where ``ip netns`` keeps it."""
        return NAMESPACES / self.name


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def entered(namespace: Namespace) -> Iterator[None]:
    """Move the calling thread into the namespace; sockets and processes it starts stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        inside = os.open(namespace.path, os.O_RDONLY)
        try:
            _setns(inside)
        finally:
            os.close(inside)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def require(*tools: str) -> None:
    """Check that the commands a lab is built with are there.

    Raises:
        HostError: not root, or a command is missing.
    """
    if os.geteuid() != 0:
        raise HostError("a lab makes network namespaces, which needs root", "run it with sudo")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        packages = {"ip": "iproute2", "nft": "nftables", "wg": "wireguard-tools"}
        names = " ".join(packages.get(tool, tool) for tool in missing)
        raise HostError(f"not found: {', '.join(missing)}", f"apt-get install {names}")


def ip_batch(lines: Iterable[str], namespace: Namespace | None = None, *, force: bool = False) -> None:
    """Run ``ip`` commands in one process, since starting processes is what costs under emulation.

    Raises:
        HostError: ``ip`` refused one of them (with `force` the rest are run and nothing is raised).
    """
    where = ["-n", namespace.name] if namespace else []
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        ["ip", *where, *(["-force"] if force else []), "-batch", "-"],
        input=text,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode and not force:
        reason = done.stderr.strip().splitlines() or ["no message"]
        raise HostError(
            f"ip could not lay out the lab: {reason[0]}", "does this kernel have namespaces and veth?"
        )


def write_sysctls(namespace: Namespace, values: Mapping[str, int] | Mapping[str, str]) -> None:
    """Set ``net.`` sysctls of one namespace, by path below ``/proc/sys/net``; absent ones are passed over.

    ``/proc/sys/net`` shows the namespace of the thread that opens it, so no process is needed.
    """
    with entered(namespace):
        for path, value in values.items():
            with suppress(FileNotFoundError):
                Path("/proc/sys/net", path).write_text(f"{value}\n")


class Claim:
    """A lab's id, a folder for its files, and the lock that tells others that it lives."""

    def __init__(self) -> None:
        LOCKS.mkdir(mode=0o755, exist_ok=True)
        self.lab = secrets.token_hex(3)
        self._file = _lock_path(self.lab).open("x")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.folder = LOCKS / self.lab
        self.folder.mkdir(mode=0o700)

    def namespace(self, role: str) -> Namespace:
        """The name of this lab's namespace for the hosts of one kind."""
        return Namespace(f"exitprint-{self.lab}-{role}")

    def release(self) -> None:
        """Remove everything of this lab, and the claim itself."""
        remove(self.lab)
        self._file.close()


def sweep() -> list[str]:
    """Remove what labs that were killed left behind; returns their ids."""
    dead = []
    for path in LOCKS.glob("*.lock"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # So young, it may be a claim between its creation and its lock.
            if time.time() - os.fstat(lock.fileno()).st_mtime < 1.0:
                continue
            remove(path.stem)
            dead.append(path.stem)
    return dead


def remove(lab: str) -> None:
    """Remove the processes, namespaces, sockets, files and claim of one lab, as far as they are there."""
    namespaces = sorted(NAMESPACES.glob(f"exitprint-{lab}-*"))
    _kill_inside(namespaces)
    for socket in UAPI.glob(f"*{lab}*.sock"):
        socket.unlink(missing_ok=True)
    if namespaces:
        ip_batch((f"netns del {path.name}" for path in namespaces), force=True)
    shutil.rmtree(LOCKS / lab, ignore_errors=True)
    _lock_path(lab).unlink(missing_ok=True)


def processes_inside(namespaces: Iterable[Path]) -> list[int]:
    """Ids of the processes whose network namespace is one of these."""
    inodes = set()
    for path in namespaces:
        with suppress(OSError):
            inodes.add(path.stat().st_ino)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "ns/net").stat().st_ino in inodes:
                    found.append(int(entry.name))
    return found


def _kill_inside(namespaces: list[Path]) -> None:
    deadline = time.monotonic() + 10
    while namespaces and time.monotonic() < deadline:
        pids = [pid for pid in processes_inside(namespaces) if pid != os.getpid()]
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _lock_path(lab: str) -> Path:
    return LOCKS / f"{lab}.lock"


def _raise_exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def termination_raises() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `SystemExit`, so that what is open is cleaned up; main thread only.

    A handler that somebody else has set stays.
    """
    signals = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _raise_exit)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back while cleaning up; they arrive afterwards."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
