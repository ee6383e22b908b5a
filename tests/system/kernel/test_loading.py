# SPDX-License-Identifier: Apache-2.0
"""Loading: what it costs, what it says when it cannot, and what is left when somebody is killed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from detector.base.errors import HostError
from detector.config.model import Tables
from detector.kernel import binding, bpf, loader
from detector.kernel.drain import PairTables
from detector.lab.namespaces import entered
from tests.system.kernel.program import GAP, HOOK, SMALL, Program, fdinfo, running
from tests.system.kernel.topology import LEAVE, Flow, Relay, peer, site

pytestmark = pytest.mark.root

TINY = Tables(peers=16, pairs=16, destinations=16, ports=16, panes=2)
_PROG, _MAP, _LINK = 13, 14, 30  # BPF_…_GET_FD_BY_ID

HOLDER = """
import json, sys, time
from pathlib import Path
from detector.config.model import Tables
from detector.kernel.loader import load
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4
before = resident()
loaded = load(sys.argv[1], Tables(**json.loads(sys.argv[2])), 600.0)
print(json.dumps({"grown": resident() - before, "bcc": "bcc" in sys.modules,
                  "descriptors": loaded.descriptors}), flush=True)
time.sleep(600)
"""
PATCHED = """
import sys, types
from detector.kernel import loader, source
{patch}
loader.main(int(sys.argv[1]), sys.argv[2])
"""


@contextmanager
def _holder(relay: Relay) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that has loaded the program and keeps it, and what it says."""
    command = [sys.executable, "-I", "-c", HOLDER, HOOK, json.dumps(asdict(SMALL))]
    with entered(relay.middle):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def _exists(command: int, number: int) -> bool:
    try:
        os.close(bpf._bpf(command, struct.pack("<III", number, 0, 0)))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _maps_of(program: int) -> set[int]:
    """Ids of the maps that a program uses, from struct bpf_prog_info."""
    descriptor = bpf._bpf(_PROG, struct.pack("<III", program, 0, 0))
    try:
        numbers, info = (ctypes.c_uint32 * 64)(), ctypes.create_string_buffer(232)
        struct.pack_into("<IQ", info, 52, 64, 0)
        struct.pack_into("<Q", info, 56, ctypes.addressof(numbers))
        bpf._bpf(15, struct.pack("<IIQ", descriptor, len(info), ctypes.addressof(info)))
        (count,) = struct.unpack_from("<I", info, 52)
        return set(numbers[:count])
    finally:
        os.close(descriptor)


def _objects(process: int) -> set[tuple[int, int]]:
    """(command, id) of every BPF object that a process has open."""
    kinds = {"prog_id": _PROG, "map_id": _MAP, "link_id": _LINK}
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{process}/fdinfo").iterdir():
            with suppress(FileNotFoundError):
                info = fdinfo(int(entry.name), process)
                found |= {(kinds[name], int(info[name])) for name in kinds if name in info}
    return found


def _wait_until_gone(objects: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Objects are freed a little after their last holder; returns those that stay."""
    deadline = time.monotonic() + 20
    while left := {one for one in objects if _exists(*one)}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def test_the_compiler_does_not_stay(relay: Relay) -> None:
    """Who loads has not imported bcc, has not grown by its size, and has no child left."""
    with _holder(relay) as (process, said):
        assert not said["bcc"]
        assert said["grown"] < 8 * 1024
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert not children


def test_nothing_stays_after_the_holder_is_killed(relay: Relay) -> None:
    """After SIGKILL there is no program, link or map, those that were never handed over included."""
    with _holder(relay) as (process, said):
        program = int(fdinfo(said["descriptors"]["program"], process.pid)["prog_id"])
        held = _objects(process.pid)
        of_program = {(_MAP, number) for number in _maps_of(program)}
        assert len(of_program - held) >= 2  # the memories of destinations and ports
        objects = held | of_program
        assert {command for command, _ in objects} >= {_PROG, _MAP}
        assert all(_exists(*one) for one in objects)
        process.kill()
        process.wait()
        assert _wait_until_gone(objects) == set()


def _loader_of(parent: int) -> int | None:
    """The id of the loader that a process has started."""
    for task in Path(f"/proc/{parent}/task").iterdir():
        with suppress(FileNotFoundError):
            for child in (task / "children").read_text().split():
                if b"detector.kernel.loader" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    return None


def test_nothing_stays_after_the_loader_is_killed_in_the_middle(relay: Relay) -> None:
    """A loader that dies when it has made maps is an error that says so, and leaves none of them."""
    errors: list[HostError] = []

    def attempt() -> None:
        with entered(relay.middle):
            try:
                loader.load(HOOK, SMALL, GAP).close()
            except HostError as error:
                errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    objects: set[tuple[int, int]] = set()
    while thread.is_alive() and not objects:
        child = _loader_of(os.getpid())
        if child is not None and (objects := _objects(child)):
            os.kill(child, signal.SIGKILL)
    thread.join()
    assert objects
    assert [error.what for error in errors] == ["the loader ended before it was done (signal 9)"]
    assert _wait_until_gone(objects) == set()


def test_two_programs_in_one_namespace_both_count(relay: Relay, program: Program) -> None:
    """A priority that is taken does not matter: the second takes another, and each counts every flow."""
    relay.rules(f"{LEAVE} snat to 203.0.113.7")
    with running(relay, TINY) as second:
        slots = [program.add(peer(1)), second.add(peer(1))]
        relay.send(Flow(peer(1), site(number), 20000 + number) for number in range(5))
        exit_address = relay.listing()[0].exit
        assert [one.drain().flows for one in (program, second)] == [
            {(slot, exit_address): 5} for slot in slots
        ]


def test_closing_detaches(relay: Relay) -> None:
    """When the links are closed nothing is counted any more."""
    relay.rules(f"{LEAVE} snat to 203.0.113.7")
    with running(relay, TINY) as short:
        short.add(peer(1))
        links = [name for name in short.maps if name.startswith("link")]
        for name in links:
            os.close(short.loaded.descriptors.pop(name))
        relay.send([Flow(peer(1), site(1))])
        assert not short.drain().flows


@pytest.mark.skipif(Path("/sys/bus/event_source/devices/kprobe").exists(), reason="this kernel has kprobes")
def test_a_hook_that_cannot_be_had_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    """Forcing the kprobe where the kernel has none says that, and what to run next."""
    with pytest.raises(HostError, match="kprobe: this kernel has no kprobes") as caught:
        loader.load("kprobe", TINY, GAP)
    assert "exitprint doctor" in caught.value.hint
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "sizes",
    [
        replace(TINY, peers=0),
        replace(TINY, peers=2**40),
        replace(TINY, pairs=2**40),
        replace(TINY, ports=2**70),
    ],
)
def test_absurd_sizes_are_an_error(sizes: Tables, capfd: pytest.CaptureFixture[str]) -> None:
    """A table that the kernel cannot make is one short error about the tables, with no traceback."""
    with pytest.raises(HostError) as caught:
        loader.load(HOOK, sizes, GAP)
    assert "table" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert capfd.readouterr().err == ""


def _answer(patch: str) -> tuple[dict[str, Any], str]:
    """What a loader answers after a patch, and what it prints."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps({"hook": HOOK, "sizes": asdict(TINY), "session_gap": GAP})
    command = [sys.executable, "-I", "-c", PATCHED.format(patch=patch), str(theirs.fileno()), request]
    with ours, theirs:
        done = subprocess.run(
            command, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False
        )
        ours.setblocking(False)
        return json.loads(ours.recv(65536)), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("patch", "what"),
    [
        ("source.text = lambda: 'int on_packet(void *ctx) { return nonsense; }'", "nonsense"),
        ("source.text = lambda: open('/nowhere/exitprint.c').read()", "no such file"),
        (
            "loader.control.start = lambda *a, **k: (_ for _ in ()).throw(OSError(1, 'not permitted'))",
            "not perm",
        ),
    ],
)
def test_a_loader_that_cannot_build_says_why(patch: str, what: str) -> None:
    """Broken or missing C, and a refused system call, are answered as an error and print nothing."""
    answer, printed = _answer(patch)
    assert what in answer["error"] + answer["hint"]
    assert len(answer["hint"]) < 400
    assert printed == ""


def test_without_the_binding_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bcc at all: the error names the distribution's package."""
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(HostError, match="not there") as caught:
        binding.load_bcc()
    assert "apt install python3-bpfcc" in caught.value.hint


def test_the_other_package_of_that_name_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's bcc, which has no BPF, is told apart, with how to remove it."""
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    monkeypatch.setitem(sys.modules, "bcc", ModuleType("bcc"))
    with pytest.raises(HostError, match="another one of that name") as caught:
        binding.load_bcc()
    assert "pip uninstall bcc" in caught.value.hint
    assert "apt install python3-bpfcc" in caught.value.hint


def test_the_memories_are_not_handed_over(relay: Relay) -> None:
    """Who holds the program cannot reach where destinations and ports are remembered."""
    with running(relay, TINY) as short:
        assert not {"destinations", "ports"} & short.maps.keys()
        assert isinstance(short.pairs, PairTables)
