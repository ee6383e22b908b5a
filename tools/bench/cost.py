# SPDX-License-Identifier: Apache-2.0
"""What the service costs: the rate of new flows, time in the kernel program, memory, refresh of the peers."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from detector.daemon.slots import SlotTable
from detector.kernel import bpf, source
from detector.kernel.binding import load_bcc
from detector.lab.namespaces import entered
from detector.lab.service import LabService, start_service
from detector.lab.wireguard import Remote, UserWireGuard, new_private_key
from detector.wireguard.read import read_peers
from tools.bench.relay import FIRST_PEER, FIRST_SITE, POOL, Relay

# The relay has many peers; how many of them send decides how much of the tables stays in the caches.
PEERS = 2000
FEW = 90
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_ECHO_PORT = 7
_ESTABLISHED_FLOWS = 64
_RUNS_IN_A_ROUND = 4
# The default: the bench's other parts look more often, so as not to wait.
_INTERVAL_ON_A_RELAY = "10s"
_INTERVAL = 1.5  # seconds: longer than the service's in the bench

Results = dict[str, Any]


def _generate(relay: Relay, flows: int, seed: int, peers: int = FEW) -> float:
    """Send new flows of so many peers into an empty conntrack table; returns flows a second."""
    relay.forget()
    command = (sys.executable, "-m", "tools.bench.generator", str(peers), str(flows), str(seed))
    told = json.loads(relay.run(relay.peers, *command))
    tracked = relay.tracked()
    if tracked < flows * 0.999:  # a drawn flow may come twice
        raise AssertionError(f"only {tracked} of {flows} flows were tracked")
    return float(told["flows"] / told["seconds"])


@contextmanager
def _conntrack_events(relay: Relay) -> Iterator[None]:
    """`conntrack -E -e NEW` into a file, as one would record flows without exitprint."""
    with tempfile.TemporaryFile() as file:
        with entered(relay.relay):
            command = ["conntrack", "-E", "-e", "NEW"]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def rates(relay: Relay, rounds: int, flows: int, say: Callable[[str], None]) -> Results:
    """New flows a second with nothing, the service, and conntrack's events, in alternating rounds.

    What is timed is a relay that has been at work for a while: the first run with each watcher of a round, in
    which the service measures what it measures of each peer once in a window, does not count.
    """
    relay.translate(f"snat to {POOL} fully-random")
    watchers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "nothing": nullcontext,
        "exitprint": lambda: start_service(relay, interval=_INTERVAL_ON_A_RELAY),
        "conntrack -E": lambda: _conntrack_events(relay),
    }
    seen: dict[str, list[float]] = {name: [] for name in watchers}
    for number in range(1, rounds + 1):
        for name, watch in watchers.items():
            say(f"round {number} of {rounds}: {name}")
            with watch():
                _generate(relay, flows, 0)
                seen[name] += (_generate(relay, flows, number) for _ in range(_RUNS_IN_A_ROUND))
    ratios = {
        name: median(one / nothing for one, nothing in zip(seen[name], seen["nothing"], strict=True))
        for name in seen
    }
    return {"flows_per_second": {name: median(found) for name, found in seen.items()}, "ratio": ratios}


@contextmanager
def _statistics() -> Iterator[None]:
    """Have the kernel measure programs meanwhile; costs some 30 ns a run itself."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def _metrics(service: LabService) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(service.metrics) as answer:  # noqa: S310  (our own loopback address)
        text = answer.read().decode()
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _runs(service: LabService) -> bpf.RunTime:
    time.sleep(_INTERVAL)  # so that the next report has them
    now = _metrics(service)
    seconds = now["exitprint_program_run_seconds_total", ""]
    return bpf.RunTime(int(now["exitprint_program_runs_total", ""]), int(seconds * 1e9))


def _per_run(before: bpf.RunTime, after: bpf.RunTime) -> float:
    return (after.nanoseconds - before.nanoseconds) / (after.runs - before.runs)


@contextmanager
def _empty_program(relay: Relay) -> Iterator[int]:
    """A program that does nothing, at the same hook; yields its descriptor."""
    module = load_bcc().BPF(text=source.text("empty.c").encode())
    function = module.load_func(b"on_packet", bpf.PROG_TYPE_NETFILTER, attach_type=bpf.ATTACH_NETFILTER)
    with entered(relay.relay):
        link = bpf.netfilter_link(function.fd, bpf.NFPROTO_IPV4)
    try:
        yield function.fd
    finally:
        os.close(link)


def program_time(relay: Relay, rounds: int, flows: int, say: Callable[[str], None]) -> Results:
    """Nanoseconds in the program per new flow, and per packet of an established flow beside an empty one."""
    say("time in the kernel program")
    relay.translate(f"snat to {POOL} fully-random")
    with (
        _statistics(),
        start_service(relay) as service,
        _empty_program(relay) as empty,
    ):
        new: dict[str, list[float]] = {}
        for peers in (FEW, PEERS):
            found = new.setdefault(f"{peers} peers", [])
            for number in range(rounds):
                before = _runs(service)
                _generate(relay, flows, 100 + number, peers)
                found.append(_per_run(before, _runs(service)))
        before_empty, before = bpf.run_time(empty), _runs(service)
        _established(relay, flows)
        established = _per_run(before, _runs(service))
        nothing = _per_run(before_empty, bpf.run_time(empty))
    return {
        "new_flow_ns": {name: {"first": found[0], "median": median(found)} for name, found in new.items()},
        "established_packet_ns": {"exitprint": established, "empty": nothing, "more": established - nothing},
    }


def _established(relay: Relay, packets: int) -> None:
    """Answer a few flows once, then send many packets on them."""
    relay.forget()
    with entered(relay.internet):
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        echo.bind(("0.0.0.0", _ECHO_PORT))  # noqa: S104  (inside the bench's own namespace)
    with entered(relay.peers):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
    flows = [
        header
        + struct.pack("!IIHHHH", int(FIRST_PEER) + number, int(FIRST_SITE), 5000 + number, _ECHO_PORT, 8, 0)
        for number in range(_ESTABLISHED_FLOWS)
    ]
    with echo, raw:
        echo.settimeout(5)
        for packet in flows:
            raw.sendto(packet, (str(FIRST_SITE), 0))
            echo.sendto(b"", echo.recvfrom(64)[1])
        for number in range(packets):
            raw.sendto(flows[number % len(flows)], (str(FIRST_SITE), 0))


def memory(relay: Relay, flows: int, say: Callable[[str], None]) -> Results:
    """Resident memory of both processes while the window holds 100,000 pairs and more."""
    say("memory with 100,000 pairs")
    relay.translate(f"snat to numgen random mod 59 map {{ {_elements()} }}")
    with start_service(relay) as service:
        for number in range(4):
            _generate(relay, flows, 200 + number, PEERS)
        time.sleep(2 * _INTERVAL)
        now = _metrics(service)
    size = {
        name: now["exitprint_process_resident_memory_bytes", name] / 1e6 for name in ("sensor", "aggregator")
    }
    return {
        "pairs": int(now["exitprint_table_entries", "window"]),
        "resident_mb": size | {"together": sum(size.values())},
        "cycle_seconds": {
            name: now["exitprint_cycle_duration_seconds", name] for name in ("collect", "judge")
        },
    }


def _elements() -> str:
    first = 0xCB007144  # 203.0.113.68
    return ", ".join(f"{n} : {socket.inet_ntoa(struct.pack('!I', first + n))}" for n in range(59))


def refresh(relay: Relay, peers: int, say: Callable[[str], None]) -> Results:
    """Seconds to read so many peers from a real interface and to compare them with what is known."""
    say(f"refresh of {peers:,} peers")
    backend = UserWireGuard()
    name = f"{relay.wireguard_interface}b"
    try:
        backend.create(relay.relay, [name])
        backend.wait()
        backend.set_key(relay.relay, name, new_private_key(), None)
        backend.add_peers(
            relay.relay,
            name,
            (Remote(new_private_key(), [f"{FIRST_PEER + 100_000 + number}/32"]) for number in range(peers)),
        )
        slots = SlotTable(2 * peers)
        with entered(relay.relay):
            slots.update(read_peers([name]))
            started = time.perf_counter()
            slots.update(read_peers([name]))
            taken = time.perf_counter() - started
    finally:
        backend.stop()
    return {"peers": len(slots), "seconds": taken, "wireguard": backend.name}
