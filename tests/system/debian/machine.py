# SPDX-License-Identifier: Apache-2.0
"""Boots a root file system under its own systemd, on this kernel, with its own network: systemd-nspawn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.system.debian.roots import Root, done

_PATIENCE = 120.0  # seconds that a boot may take on a machine that is busy
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A booted system.

    Attributes:
        root: its files.
        leader: the process number of its systemd.
    """

    root: Root
    leader: int

    def run(
        self, *command: str, check: bool = True, seconds: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root.

        Raises:
            AssertionError: it failed, with everything that it printed.
        """
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wd"]
        return done([*enter, *command], _ENVIRONMENT, check=check, seconds=seconds)

    def shell(self, script: str, *, check: bool = True, seconds: float = 300.0) -> str:
        """What a script of sh prints."""
        return self.run("sh", "-euc", script, check=check, seconds=seconds).stdout

    def journal(self, *options: str) -> list[str]:
        """Lines that the service has in the journal."""
        return self.run("journalctl", "-u", "exitprint", "-q", "-o", "cat", *options).stdout.splitlines()


@contextmanager
def booted(root: Root, name: str) -> Iterator[Machine]:
    """The system, running; it is ended at the end.

    Args:
        root: its files.
        name: its host's name.
    """
    # What loading and attaching a kernel program takes is withheld from containers otherwise.
    command = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--boot",
        "--directory",
        str(root.folder),
        f"--machine={name}",
        "--capability=all",
        "--system-call-filter=bpf perf_event_open @keyring",
        "--resolv-conf=off",
        "--private-network",
        "--bind=/dev/net/tun",
    ]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
    }
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        yield _when_up(root, process)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr
        process.stderr.close()


def _when_up(root: Root, process: subprocess.Popen[bytes]) -> Machine:
    limit = time.monotonic() + _PATIENCE
    while time.monotonic() < limit:
        assert process.poll() is None, process.stderr and process.stderr.read().decode(errors="replace")
        if leader := _leader(process.pid):
            machine = Machine(root, leader)
            state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return machine
        time.sleep(0.5)
    raise AssertionError("the system did not come up")


def _leader(parent: int) -> int:
    """The systemd that nspawn started, 0 while there is none."""
    with suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() in ("systemd", "init"):
                return int(child)
    return 0
