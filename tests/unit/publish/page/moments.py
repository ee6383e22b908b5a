# SPDX-License-Identifier: Apache-2.0
"""Moments of a service to make pages from: each verdict, from traffic that leads to it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from detector.analysis.observation import Observation
from detector.analysis.verdict import judge
from detector.base.family import Family, pack
from detector.config.model import Config
from detector.counts.load import load_of
from detector.counts.observing import PoolRanges
from detector.kernel.tables import Outcome
from detector.publish import history
from detector.publish.page.render import View
from detector.publish.snapshot import About, Snapshot
from tools.simulated_relays import MAPPINGS, relay, traffic

CLOCK = 1_790_000_000.0
ORIGINS = {family: (f"{family.nft} exits postrouting handle {2 + 3 * family.index}",) for family in Family}
FIRST = int(IPv4Address("198.18.0.0"))
PREFIX = int(IPv6Address("2001:db8:7::"))


def observed(
    mapping: str,
    peers: int = 300,
    flows: int = 24,
    pool: int = 59,
    sessions: int = 1,
    one_site: float = 0.4,
) -> Observation:
    """A family over IPv4, as `tools.simulated_relays` counts it."""
    rng = np.random.default_rng(7)
    shape = traffic(rng, peers, flows, destinations=400, ports=40, sessions=sessions, one_site=one_site)
    return relay(rng, MAPPINGS[mapping], pool, shape)


def as_ipv6(one: Observation) -> Observation:
    """The same over IPv6, in a /64."""
    exits = tuple(IPv6Address(PREFIX + 0x1F3 * (int(address) - FIRST + 1)) for address in one.exits)
    return replace(one, family=Family.IPV6, exits=exits, pool_sizes=(1 << 64,))


def view(*families: Observation, **changed: object) -> View:
    """A service that has just judged these."""
    config = Config(relay="se-sto-wg-001")
    pools = [pool_of(one) for one in families]
    now = Snapshot(
        report=judge([replace(one, pool_origins=ORIGINS[one.family]) for one in families]),
        since=CLOCK - 15_300,
        made=CLOCK - 4,
        cycles=1543,
        outcomes={
            (one.family, outcome): count
            for one in families
            for outcome, count in ((Outcome.COUNTED, int(one.flows.sum())), (Outcome.NOT_A_PEER, 812))
        },
        fill={"pairs": 12_400, "peers": 300},
        resident={"sensor": 31_000_000, "aggregator": 47_000_000},
        loads={one.family: load_of(one, pools, config.anonymity_floor) for one in families},
        epoch=2,
        epoch_since=CLOCK - 40_000,
    )
    now = history.follow(replace(now, report=None, epoch=1, epoch_since=CLOCK - 90_000), now)
    states = {"healthy": (True, "reports are being made"), "ready": (True, "watching")}
    return View(
        **{"now": now, "about": About(config, "netfilter"), **states, "clock": CLOCK, **changed}  # type: ignore[arg-type]
    )


def pool_of(one: Observation) -> PoolRanges:
    """The pool that its exits are of: as large as it says, or a /64."""
    if one.family is Family.IPV6:
        first, last = IPv6Address(PREFIX), IPv6Address(PREFIX + (1 << 64) - 1)
        return PoolRanges(one.family, 1 << 64, ((pack(first), pack(last)),))
    size = one.pool_sizes[0]
    ends = IPv4Address(FIRST), IPv4Address(FIRST + size - 1)
    return PoolRanges(one.family, size, ((pack(ends[0]), pack(ends[1])),))


def nothing_yet() -> View:
    """A service that has just started and waits for WireGuard."""
    empty = Snapshot(waiting="no WireGuard interface is there")
    return replace(view(observed("random")), now=empty, ready=(False, empty.waiting))


def broken() -> View:
    """A service that is late, loses flows and has a rule that it does not understand."""
    one = replace(observed("random"), loss=replace(observed("random").loss, lost=3000))
    bad = view(one, healthy=(False, "no report for 99 s"))
    outcomes = {**bad.now.outcomes, (Family.IPV4, Outcome.LOST_PAIRS): 3000}
    now = replace(
        bad.now, outcomes=outcomes, fill={"pairs": 131_000, "peers": 300}, not_understood=1, failures=3
    )
    return replace(bad, now=now)


MOMENTS = {
    "predictable": lambda: view(observed("persistent"), as_ipv6(observed("random", pool=250))),
    "pinned": lambda: view(observed("jhash")),
    "exclusive": lambda: view(observed("one-to-one", peers=59)),
    "destination_linked": lambda: view(observed("jhash-src-dst", one_site=0.6)),
    "session_sticky": lambda: view(observed("session", flows=48, sessions=8)),
    "single_exit": lambda: view(observed("masquerade", pool=1)),
    "unlinkable": lambda: view(observed("random", peers=1200), as_ipv6(observed("numgen-inc", pool=250))),
    "nothing_yet": nothing_yet,
    "broken": broken,
}
