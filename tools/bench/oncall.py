# SPDX-License-Identifier: Apache-2.0
"""What the on-call commands cost with many peers: time of each answer over a real socket, bytes, memory.

``python -m tools.bench.oncall`` needs root, to ask; the counts are made up, what answers is the service's.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import numpy as np

from detector.analysis.observation import Loss, Observation, Trials
from detector.analysis.verdict import judge
from detector.base.family import Family
from detector.config.model import Config
from detector.counts.observing import Observed
from detector.daemon.memory import resident_bytes
from detector.publish.inspect import socket as inspect
from detector.publish.inspect.access import Access
from detector.publish.inspect.handlers import handlers
from detector.publish.peers import PeerView
from detector.publish.snapshot import About, Snapshot

_FIRST = {Family.IPV4: ip_address("203.0.113.1"), Family.IPV6: ip_address("2001:db8::1")}
_ROUNDS = 21
_PEER = "peer-00000007"


def snapshot_of(peers: int, votes: int = 5, exits: int = 60, seed: int = 1) -> Snapshot:
    """A judged relay where a tenth of the peers keeps one exit; each peer has an address in both families."""
    observed = [_observed(family, peers, votes, exits, seed) for family in Family]
    report = judge([one.observation for one in observed])
    # As in the service: one row of the roster for each tunnel address, families one after the other.
    names = np.array([f"peer-{number % peers:08d}" for number in range(2 * peers)], "S24")
    views = []
    for one in observed:
        family = report.families[one.observation.family]
        assert family.columns is not None
        views.append(PeerView(one, family, family.columns, names, np.ones(peers, np.bool_)))
    return Snapshot(report=report, made=time.time(), since=time.time(), cycles=1, epoch=1, peers=tuple(views))


def _observed(family: Family, peers: int, votes: int, exits: int, seed: int) -> Observed:
    chance = np.random.default_rng(seed + list(Family).index(family))
    pinned = np.arange(peers) % 10 == 7
    drawn = np.where(pinned[:, None], np.arange(peers)[:, None], chance.integers(0, exits, (peers, votes)))
    pair, counted = np.unique(np.arange(peers)[:, None] * exits + drawn % exits, return_counts=True)
    peer, count = pair // exits, counted.astype(np.uint32)
    tried = np.full(peers, 8, np.uint32)
    observation = Observation(
        family=family,
        peers=peers,
        exits=tuple(_FIRST[family] + number for number in range(exits)),
        pool=np.zeros(exits, np.int32),
        pool_sizes=(exits,),
        peer=peer.astype(np.uint32),
        exit=(pair % exits).astype(np.uint32),
        flows=count,
        votes=count,
        session_starts=count,
        same_destination=Trials(tried, np.where(pinned, 8, 0).astype(np.uint32)),
        same_port=Trials(tried, np.where(pinned, 8, 0).astype(np.uint32)),
        destination_predictor=Trials(tried, np.zeros(peers, np.uint32), tried / exits),
        loss=Loss(seen=int(count.sum())),
    )
    first = peers * list(Family).index(family)
    return Observed(observation, np.arange(first, first + peers))


def timed(ask: Callable[[], dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of a question over several rounds, and bytes of the answer."""
    took = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        answer = ask()
        took.append(1000 * (time.perf_counter() - started))
    size = len(json.dumps(answer))
    return {"median_ms": statistics.median(took), "most_ms": max(took), "bytes": size}


def measure(peers: int) -> dict[str, Any]:
    """Every question, over a socket."""
    snapshot, about = snapshot_of(peers), About(Config(relay="bench"), "none")
    before = resident_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inspect.sock"
        with inspect.listen(path) as listener:
            inspect.serve(listener, handlers(lambda: snapshot, lambda: about), Access())
            results: dict[str, Any] = {
                "peers": peers,
                "pairs": sum(len(view.observation.peer) for view in snapshot.peers),
                "status": timed(lambda: inspect.ask(path, "status")),
                "peers by risk": timed(lambda: inspect.ask(path, "peers")),
                "1000 peers by flows": timed(lambda: inspect.ask(path, "peers", sort="flows", limit=1000)),
                "pinned peers": timed(lambda: inspect.ask(path, "peers", verdict="pinned", family="ipv4")),
                "explain": timed(lambda: inspect.ask(path, "explain", pseudonym=_PEER)),
                "holds": timed(lambda: inspect.ask(path, "holds")),
            }
    return results | {"memory grown by answering, bytes": resident_bytes() - before}


@click.command()
@click.option("--peers", default=100_000, show_default=True)
def main(peers: int) -> None:
    """Measure the on-call commands on a made-up relay."""
    click.echo(json.dumps(measure(peers), indent=1))


if __name__ == "__main__":
    main()
