# SPDX-License-Identifier: Apache-2.0
"""Processes, descriptors and kernel objects of a service that runs, as procfs and the kernel tell them."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detector.kernel import bpf
from detector.lab.service import LabService

PATIENCE = 30.0


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Return when something holds.

    Raises:
        AssertionError: it does not come true in time.
    """
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def children(process: int) -> list[int]:
    """The processes that a process started."""
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def command(process: int) -> str:
    """A process's command line, empty when it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def aggregator_of(service: LabService) -> int:
    """The process number of the aggregator."""
    (found,) = (one for one in children(service.process.pid) if "detector.daemon.aggregator" in command(one))
    return found


def state(process: int) -> dict[str, str]:
    """What `/proc/PID/status` says."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def gone(process: int) -> bool:
    """Whether a process has ended, collected or not."""
    try:
        return state(process)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):  # before the file is opened, or while it is read
        return True


def sockets(process: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for path in Path(f"/proc/{process}/fd").iterdir():
        if match := re.match(r"socket:\[(\d+)\]", str(path.readlink())):
            found.add(match[1])
    return found


def listeners(process: int) -> set[str]:
    """What a process listens on, wherever it is: addresses in hexadecimal, and paths of local sockets.

    The sockets of every namespace that one of its threads may have been in are looked through.
    """
    mine, found = sockets(process), set()
    for viewer in (process, os.getpid()):
        for name in ("tcp", "tcp6"):
            for line in Path(f"/proc/{viewer}/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in mine and fields[3] == "0A":
                    found.add(fields[1])
        for line in Path(f"/proc/{viewer}/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[6] in mine and int(fields[3], 16) & 1 << 16:
                found.add(fields[7] if len(fields) > 7 else "unnamed")
        for name in ("udp", "udp6", "raw", "raw6"):
            for line in Path(f"/proc/{viewer}/net/{name}").read_text().splitlines()[1:]:
                if line.split()[9] in mine:
                    found.add(name)
    return found


def bpf_objects(process: int) -> dict[str, int]:
    """How many maps, programs and links a process holds."""
    kinds = [str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir()]
    return {kind: kinds.count(f"anon_inode:bpf-{kind}") for kind in ("map", "prog")} | {
        "link": sum("bpf_link" in kind or "bpf-link" in kind or "perf_event" in kind for kind in kinds)
    }


def memory(process: int) -> Iterator[bytes]:
    """Everything that a process can write to, a mapping at a time."""
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            if rights.startswith("rw"):
                start, end = (int(part, 16) for part in span.split("-"))
                file.seek(start)
                try:
                    yield file.read(end - start)
                except OSError:  # a device's
                    continue


Object = tuple[str, int]
"""Kind (prog, map or link) and number."""


def objects_of(process: int) -> set[Object]:
    """The programs, maps and links that a process holds, and the maps that its programs hold."""
    found: set[Object] = set()
    for path in Path(f"/proc/{process}/fdinfo").iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:  # a connection that has ended meanwhile
            continue
        fields = dict(re.findall(r"^(prog|map|link)_id:\s+(\d+)", text, re.MULTILINE))
        kind = next((kind for kind in ("link", "map", "prog") if kind in fields), None)
        if kind:
            found.add((kind, int(fields[kind])))
    for kind, number in list(found):
        if kind == "prog":
            found |= {("map", one) for one in _maps_of(number)}
    return found


def exists(found: Object) -> bool:
    """Whether the kernel has an object still."""
    try:
        os.close(_open(found))
    except OSError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


_BY_NUMBER = {"prog": 13, "map": 14, "link": 30}  # BPF_*_GET_FD_BY_ID
_OBJ_GET_INFO_BY_FD = 15
_NR_MAP_IDS = 52  # offset in struct bpf_prog_info; map_ids follows
_MOST_MAPS = 64


def _open(found: Object) -> int:
    return bpf._bpf(_BY_NUMBER[found[0]], struct.pack("<III", found[1], 0, 0))


def _maps_of(program: int) -> list[int]:
    descriptor = _open(("prog", program))
    numbers = (ctypes.c_uint32 * _MOST_MAPS)()
    info = ctypes.create_string_buffer(256)
    struct.pack_into("<IQ", info, _NR_MAP_IDS, _MOST_MAPS, ctypes.addressof(numbers))
    try:
        bpf._bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", descriptor, len(info), ctypes.addressof(info)))
    finally:
        os.close(descriptor)
    (count,) = struct.unpack_from("<I", info, _NR_MAP_IDS)
    return numbers[:count]


def lines(service: LabService) -> list[dict[str, Any]]:
    """The service's log."""
    return [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]


def events(service: LabService, process: str = "") -> list[str]:
    """What its log tells of, by one process or by all."""
    return [line["event"] for line in lines(service) if process in line["process"]]


def page(service: LabService, path: str = "/metrics") -> tuple[int, str]:
    """Status and text of a page."""
    try:
        with urllib.request.urlopen(service.metrics.removesuffix("/metrics") + path, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
