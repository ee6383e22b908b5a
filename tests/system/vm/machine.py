# SPDX-License-Identifier: Apache-2.0
"""Boots a kernel in a VM on this machine's own root file system, read-only, and runs one command there."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.system.vm.kernels import Image
from tests.system.vm.mirror import Unavailable

QEMU = Path("/usr/bin/qemu-system-x86_64")
RESULTS = Path("/srv")
"""Where the guest finds the one folder that it can leave files in."""

KILLED = 124
"""The status of a VM that reached its time limit, as timeout(1) has it."""

# An emulated processor has nothing to mitigate.
_FAST = ("mitigations=off",)
# The same root file system once more, for `cached.sh`.
_CACHED = "local,path=/,mount_tag=exitprint,security_model=none,readonly=on,multidevs=remap"
_CACHED_RUN = Path(__file__).with_name("cached.sh")

_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM's size and how long it may live, in seconds."""

    memory: str = "2G"
    cpus: int = 1
    seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command in a VM left: exit status, everything printed, the files it wrote to `RESULTS`."""

    status: int
    output: str
    files: dict[str, str]


def run(
    image: Image,
    command: list[str],
    machine: Machine | None = None,
    echo: Callable[[str], object] | None = None,
) -> Outcome:
    """Boot, run the command in the current folder as root, power off.

    Args:
        image: the kernel to boot.
        command: the command and its arguments; the guest sees this machine's files at the same paths, and
            whatever it writes outside `RESULTS` is gone with it.
        machine: the size and the time limit; at the limit the VM is killed and the status is 124.
        echo: called with each line of output as it comes.

    Raises:
        Unavailable: there is no qemu or no virtme-ng here.
    """
    machine = machine or Machine()
    with tempfile.TemporaryDirectory(prefix="exitprint-vm-") as results:
        arguments = _vng(image, command, machine, Path(results))
        status, output = _watch(arguments, machine.seconds, echo or (lambda _line: None))
        files = {path.name: path.read_text(errors="replace") for path in Path(results).iterdir()}
    return Outcome(status, output, files)


def kvm_works() -> bool:
    """Whether the processor virtualises for us: a `/dev/kvm` alone may be one that cannot run a guest."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and ("vmx" in flags or "svm" in flags)


def _vng(image: Image, command: list[str], machine: Machine, results: Path) -> list[str]:
    vng = Path(sys.executable).with_name("vng")
    for needed, package in ((QEMU, "qemu-system-x86"), (vng, "virtme-ng")):
        if not needed.exists():
            raise Unavailable(f"{package} is not installed", "run: make vm-env")
    # fmt: off
    return [
        str(vng), "--run", str(image.vmlinuz), "--busybox", str(image.busybox), "--user", "root",
        "--memory", machine.memory, "--cpus", str(machine.cpus), "--force-9p",
        *([] if kvm_works() else ["--disable-kvm"]),
        *(f"--append={option}" for option in _FAST),
        f"--qemu-opts=-virtfs {_CACHED}",
        f"--rwdir={RESULTS}={results}", "--", shlex.join(["sh", str(_CACHED_RUN), *command]),
    ]
    # fmt: on


def end_all() -> None:
    """Kill every VM of this process, whichever thread waits for it."""
    for process in tuple(_running):
        _kill(process)


def _watch(arguments: list[str], seconds: float, echo: Callable[[str], object]) -> tuple[int, str]:
    """Run to the end or to the time limit; the output goes through a pipe because qemu reopens it by name."""
    process = subprocess.Popen(
        arguments,
        env={**os.environ, "PATH": _search_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(seconds, end)
    _running.add(process)
    timer.start()
    try:
        output = _lines(process, echo)
        status = process.wait()
    finally:
        timer.cancel()
        _kill(process)
        _running.discard(process)
    if not late.is_set():
        return status, output
    note = f"\n(killed: not done after {seconds:.0f} s)\n"
    echo(note)
    return KILLED, output + note


def _kill(process: subprocess.Popen[str]) -> None:
    """End virtme-ng with the qemu that it started; both gone already is as good."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(process: subprocess.Popen[str], echo: Callable[[str], object]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        echo(line)
        lines.append(line)
    return "".join(lines)


def _search_path() -> str:
    """virtme-ng finds its parts, and modprobe, by PATH."""
    return os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    )
