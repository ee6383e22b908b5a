# SPDX-License-Identifier: Apache-2.0
"""What a cycle of the aggregator costs for many pairs: time by phase, and memory beyond that of an idle one.

Run as ``python -m tools.bench.scale PEERS PAIRS``, in a process of its own, since memory that was taken once
counts for ever. The kernel's own tables are filled by a child, as the kernel program would fill them, and the
real aggregator drains and judges them. Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.analysis.observation import Loss, Observation, Trials
from detector.analysis.verdict import judge
from detector.base.family import Family
from detector.config.model import Config, Tables
from detector.daemon.aggregator import Aggregator
from detector.daemon.channel import aggregator_end, sensor_end
from detector.daemon.counting import KernelCounts
from detector.daemon.memory import resident_bytes
from detector.daemon.messages import ExitRanges, Member, Rules
from detector.kernel import mapped
from detector.kernel.control import Control
from detector.kernel.drain import BLOCK, EVIDENCE, EXIT, VOTES
from detector.kernel.loader import load
from detector.kernel.tables import EXITS_IN_BLOCK, Outcome, blocks, blocks_stride, exit_numbers
from detector.lab.namespaces import Namespace, entered, ip_batch

SIZES = ((10_000, 100_000), (100_000, 1_000_000))
COLUMNS = (100_000, 1_000_000, 10_000_000)
_NAMESPACE = "exitprint-scale"
_EXITS = 250
_FIRST_EXIT = IPv4Address("198.18.0.1")
_PREDICTORS = ("kernel_persistent", "modulo", "linear")
_FLOWS, _VOTES = 4, 1  # of a pair

Results = dict[str, Any]


def rows(say: Callable[[str], None]) -> Results:
    """Time and memory for each of `SIZES`, and of the analysis alone for each of `COLUMNS`."""
    found: Results = {}
    for peers, pairs in SIZES:
        say(f"a cycle for {pairs:,} pairs")
        found[f"{pairs:,} pairs"] = _warnings("cycle", peers, pairs)
    for pairs in COLUMNS:
        say(f"judging {pairs:,} pairs")
        found[f"{pairs:,} pairs, judging alone"] = _warnings("judge", pairs // 10, pairs)
    return found


def _warnings(what: str, peers: int, pairs: int) -> Results:
    command = [sys.executable, "-m", "tools.bench.scale", what, str(peers), str(pairs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told: Results = json.loads(done.stdout)
    return told


@contextmanager
def _namespace() -> Iterator[Namespace]:
    name = f"{_NAMESPACE}-{os.getpid()}"
    ip_batch([f"netns add {name}"])
    try:
        yield Namespace(name)
    finally:
        ip_batch([f"netns del {name}"])


def cycle(peers: int, pairs: int) -> Results:
    """The first cycle with so many pairs in the kernel's table, and one in which a tenth came again."""
    sizes = Tables(peers=max(peers, 1024), pairs=2 * pairs, destinations=1 << 12, ports=1 << 12)
    config = replace(Config(), tables=sizes, window=86_400.0)
    with _namespace() as namespace, entered(namespace):
        loaded = load("auto", sizes, config.session_gap)
    ours, theirs = socket.socketpair()
    aggregator = Aggregator(
        config, loaded.hook, KernelCounts(loaded.descriptors, sizes), aggregator_end(ours, sizes.peers)
    )
    teller = threading.Thread(target=sensor_end(theirs, sizes.peers).send, args=[_rules(peers)])
    teller.start()
    while aggregator.epoch.roster.rows < peers:
        aggregator.collect()
    teller.join()
    for _ in range(2):
        aggregator.cycle()
    found = _measured(aggregator, loaded.descriptors, sizes, peers, pairs)
    loaded.close()
    return found


def _measured(aggregator: Aggregator, maps: dict[str, int], sizes: Tables, peers: int, pairs: int) -> Results:
    idle = _settled()
    _in_child(lambda: _fill(maps, sizes, peers, pairs, seed=1))
    _forget_peak()
    first = _timed(aggregator)
    peak = _peak() - idle
    again = pairs // 10
    _in_child(lambda: _fill(maps, sizes, peers, again, seed=2))
    later = _timed(aggregator)
    report = aggregator.snapshot.report
    assert report is not None
    family = report.families[Family.IPV4]
    if family.flows != (pairs + again) * _FLOWS:
        raise AssertionError(f"{family.flows} flows were judged, not {(pairs + again) * _FLOWS}")
    return {
        "peers": peers,
        "verdict": str(family.verdict),
        "seconds of the first cycle": first,
        f"seconds of a cycle with {again:,} more": later,
        "memory beyond idle MB": {"peak": peak / 1e6, "after": (_settled() - idle) / 1e6},
    }


def _timed(aggregator: Aggregator) -> Results:
    """Seconds of a cycle by phase, and the processor's seconds, which other work on the machine spares."""
    begun, busy = time.perf_counter(), time.process_time()
    aggregator.cycle()
    together, processor = time.perf_counter() - begun, time.process_time() - busy
    return {**aggregator.snapshot.durations, "together": together, "processor": processor}


def _rules(peers: int) -> Rules:
    """What the sensor says at the start: a pool, and every peer."""
    exits = [str(_FIRST_EXIT + number) for number in range(_EXITS)]
    return Rules(
        epoch=1,
        ambiguous=0,
        exclusive=(),
        lasting=(),
        pools=(ExitRanges(Family.IPV4, "the bench", ((exits[0], exits[-1]),)),),
        added=tuple(Member(slot, Family.IPV4, False, f"peer{slot:07}") for slot in range(peers)),
    )


def _in_child(work: Callable[[], None]) -> None:
    """Do something that takes memory where it does not count."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise AssertionError("the tables could not be filled")


def _drawn(peers: int, pairs: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Peer and exit of so many different pairs, as many for each peer, its exits drawn at random."""
    each = pairs // peers or 1
    rng = np.random.default_rng(seed)
    start = rng.integers(0, _EXITS, peers)[:, None]
    stride = rng.choice([1, 3, 7, 9, 11, 13], peers)[:, None]  # none divides 250
    exits = ((start + stride * np.arange(each)) % _EXITS).astype(np.intp)
    return np.repeat(np.arange(peers), each)[:pairs], exits.ravel()[:pairs]


def _fill(maps: dict[str, int], sizes: Tables, peers: int, pairs: int, seed: int) -> None:
    """Write what the kernel program would have counted."""
    control = Control(maps)
    first_exit = control.exits_half * 2 * exit_numbers(sizes)
    with mapped.opened(maps["exits"], first_exit * EXIT.itemsize, _EXITS * EXIT.itemsize) as memory:
        packed = [bytes(10) + b"\xff\xff" + (_FIRST_EXIT + number).packed for number in range(_EXITS)]
        memory[: _EXITS * EXIT.itemsize] = b"".join(packed)
    peer, exit_ = _drawn(peers, pairs, seed)
    groups, block = np.unique(peer << 32 | exit_ // EXITS_IN_BLOCK, return_inverse=True)
    written = np.zeros((2, len(groups)), BLOCK)
    written["group"], written["owner"] = groups & 0xFFFFFFFF, (groups >> 32) + 1
    written["owner"][1] |= VOTES
    written["count"][0, block, exit_ % EXITS_IN_BLOCK] = _FLOWS
    written["count"][1, block, exit_ % EXITS_IN_BLOCK] = _VOTES
    places = np.random.default_rng(seed).permutation(blocks(sizes))[: written.size]
    half = control.pairs_half * blocks_stride(sizes) * BLOCK.itemsize
    _write(maps["pairs"], half, blocks(sizes), BLOCK, places, written.ravel())
    _count(maps, len(peer) * _FLOWS)
    evidence = np.zeros(peers, EVIDENCE)
    evidence["votes"] = 24 * seed
    evidence["vote_sandwiches"][:, 0, 0] = 24 * seed << 24  # none of the two exits
    evidence["return_sandwiches"][:, 1] = 8 * seed << 24
    evidence["same_port_tried"] = 8 * seed
    evidence["destination_tried"] = 24 * seed
    evidence["destination_expected"] = 24 * seed * ((1 << 24) // _EXITS)
    _write(maps["evidences"], 0, peers, EVIDENCE, np.arange(peers), evidence)


def _write(
    table: int,
    start: int,
    count: int,
    layout: np.dtype[np.void],
    places: NDArray[np.integer],
    values: NDArray[np.void],
) -> None:
    """Put values at places of a part of a table."""
    with mapped.opened(table, start, count * layout.itemsize) as memory:
        values_there = np.frombuffer(memory, layout, count)
        values_there[places] = values
        del values_there


def _count(maps: dict[str, int], flows: int) -> None:
    """Add to the counter of counted IPv4 flows, on the first processor."""
    with mapped.opened(maps["outcomes"], 0, 8 * (2 * Outcome.COUNTED + 1)) as memory:
        counters = memory.cast("Q")
        counters[2 * Outcome.COUNTED] += flows
        counters.release()


def _settled() -> int:
    """Resident memory once what is free was given back."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no peak")


def judging(peers: int, pairs: int) -> Results:
    """The analysis alone: columns that somebody made to a report."""
    peer, exit_ = _drawn(peers, pairs, 1)
    exits = tuple(_FIRST_EXIT + number for number in range(_EXITS))
    rng = np.random.default_rng(3)
    tried = np.full(peers, 24, np.uint32)
    some = Trials(np.full(peers, 8, np.uint32), np.zeros(peers, np.uint32))
    observation = Observation(
        Family.IPV4,
        peers,
        exits,
        np.zeros(_EXITS, np.int32),
        (_EXITS,),
        peer.astype(np.uint32),
        exit_.astype(np.uint32),
        flows=np.full(len(peer), _FLOWS, np.uint32),
        votes=np.full(len(peer), _VOTES, np.uint32),
        session_starts=(exit_ % 10 == 0).astype(np.uint32),
        same_destination=some,
        same_port=some,
        destination_predictor=Trials(tried, np.zeros(peers, np.uint32), tried / _EXITS),
        predicted={name: rng.integers(0, _EXITS, peers).astype(np.int32) for name in _PREDICTORS},
        loss=Loss(seen=len(peer) * _FLOWS),
    )
    idle = _settled()
    _forget_peak()
    begun, busy = time.perf_counter(), time.process_time()
    judge([observation])
    seconds, processor = time.perf_counter() - begun, time.process_time() - busy
    return {
        "peers": peers,
        "seconds": {"together": seconds, "processor": processor},
        "processor µs a pair": processor / len(peer) * 1e6,
        "memory beyond idle MB": {"peak": (_peak() - idle) / 1e6},
    }


def main() -> None:
    """One measurement, as the arguments say."""
    what, peers, pairs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.stdout.write(json.dumps({"cycle": cycle, "judge": judging}[what](peers, pairs)))


if __name__ == "__main__":
    main()
