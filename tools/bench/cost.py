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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import quantiles
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

# How many peers send decides how much of the tables stays in the caches.
CROWDS = (90, 2000, 20_000, 50_000)
FEW = 90
MANY = 2000
# Lines of the cache that a settled flow touches beside conntrack's own, by design: the tunnel address, the
# slot, the block of its exit, each the peer's own; the exit, control, outcomes, which all share.
LINES = {"of the peer": 3, "shared": 4}
_FLOWS_TO_SETTLE = 64  # of a peer: after so many nothing is measured any more in this pane
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_ECHO_PORT = 7
_ESTABLISHED_FLOWS = 64
_RUNS_IN_A_ROUND = 4
# The default: the bench's other parts look more often, so as not to wait.
_INTERVAL_ON_A_RELAY = "10s"
_REPORTS = 2
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


def rates(relay: Relay, rounds: int, flows: int, peers: int, say: Callable[[str], None]) -> Results:
    """New flows a second with nothing, the service, and conntrack's events, in alternating rounds.

    What is timed is a relay that has been at work for a while: what a watcher of a round is sent first, in
    which the service measures what it measures of each peer in a pane, does not count. The ratio is taken
    pair by pair, of runs with the same flows that follow each other.
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
            say(f"{peers:,} peers, round {number} of {rounds}: {name}")
            with watch():
                for first in range(max(-(-_FLOWS_TO_SETTLE * peers // flows), 1)):
                    _generate(relay, flows, 1000 + first, peers)
                seen[name] += (_generate(relay, flows, number, peers) for _ in range(_RUNS_IN_A_ROUND))
    ratios = {
        name: spread(one / nothing for one, nothing in zip(seen[name], seen["nothing"], strict=True))
        for name in seen
        if name != "nothing"
    }
    return {"ratio": ratios, "flows_per_second": {name: spread(found) for name, found in seen.items()}}


def spread(values: Iterable[float]) -> Results:
    """The median and the quartiles around it."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": f"{low:,.4g} to {high:,.4g}"}


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
    # The sensor reads them at its next look, and the aggregator's next report has them.
    cycles = _metrics(service)["exitprint_cycles_total", "good"]
    while (now := _metrics(service))["exitprint_cycles_total", "good"] < cycles + _REPORTS:
        time.sleep(_INTERVAL / 4)
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


def program_time(
    relay: Relay, rounds: int, flows: int, crowds: Sequence[int], say: Callable[[str], None]
) -> Results:
    """Nanoseconds in the program per new flow, and per packet of an established flow beside an empty one."""
    say("time in the kernel program")
    relay.translate(f"snat to {POOL} fully-random")
    with (
        _statistics(),
        start_service(relay) as service,
        _empty_program(relay) as empty,
    ):
        new: dict[str, Results] = {}
        for peers in crowds:
            found, idle = [], []
            settling = max(-(-_FLOWS_TO_SETTLE * peers // flows), 1)
            for number in range(1 + rounds):
                before, before_empty = _runs(service), bpf.run_time(empty)
                _generate(relay, flows, 100 + number, peers)
                found.append(_per_run(before, _runs(service)))
                idle.append(_per_run(before_empty, bpf.run_time(empty)))
                for again in range(settling if not number else 0):
                    _generate(relay, flows, 200 + again, peers)
            more = [one - nothing for one, nothing in zip(found, idle, strict=True)]
            new[f"{peers:,} peers"] = {
                "first, measured": found[0],
                "settled": spread(found[-rounds:]),
                "settled, over an empty program": spread(more[-rounds:]),
            }
        before_empty, before = bpf.run_time(empty), _runs(service)
        _established(relay, flows)
        established = _per_run(before, _runs(service))
        nothing = _per_run(before_empty, bpf.run_time(empty))
    return {
        "lines by design": LINES,
        "new_flow_ns": new,
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
            _generate(relay, flows, 200 + number, MANY)
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
