# SPDX-License-Identifier: Apache-2.0
"""Relays as they are: few busy peers and many quiet ones, favourite sites, a resolver, phones, BitTorrent.

Independent of `tools.simulated_relays`, which counts what is made here. Every exit follows from what `EXITS`
says, so the truth is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import numpy as np

from detector.analysis.columns import Index, Mask
from detector.analysis.observation import Observation, PredictorTrials
from detector.base.family import Address
from detector.base.flows import FlowClass
from detector.base.verdicts import Verdict
from detector.predictors.fit import Fitter
from detector.predictors.kernel_hash import kernel_exit
from detector.predictors.pool import ExitPool
from tools.simulated_relays import GAP, Relay, Traffic, hashed, observe

DAY = 86400.0
_RESOLVER, _EVERYBODYS = 0, 1  # the destinations of DNS, and of an address that half of the web is behind
_SITES = 20_000
_NETWORK = int(IPv4Address("10.64.0.0"))

Exits = Callable[[np.random.Generator, "People", int], Index]


@dataclass(frozen=True, slots=True)
class People:
    """A day of traffic.

    Attributes:
        traffic: flows in the order of time.
        page: shape (F,): flows of one page of one peer have one number.
        tunnels: P tunnel addresses.
    """

    traffic: Traffic
    page: Index
    tunnels: tuple[Address, ...]

    def until(self, seconds: float) -> People:
        """What of it was seen by then."""
        return self.where(self.traffic.times < seconds)

    def where(self, kept: Mask) -> People:
        """Some of the flows."""
        flows = self.traffic
        columns = {name: getattr(flows, name)[kept] for name in ("peer", "destination", "port", "session")}
        some = replace(flows, **columns, time=flows.times[kept], flow_class=flows.classes[kept])
        return People(some, self.page[kept], self.tunnels)


def people(
    rng: np.random.Generator,
    peers: int,
    median: float = 20.0,
    most: int = 1000,
    dns: float = 0.3,
    one_address: float = 0.3,
    torrents: float = 0.03,
    phones: float = 0.3,
    span: float = DAY,
) -> People:
    """A population.

    Args:
        rng: where chance comes from.
        peers: P.
        median: flows of a peer; the busiest have `most`, by a Pareto law.
        most: flows of a peer at most.
        dns: share of the flows that are lookups at one resolver.
        one_address: share that goes to one address, as much of the web does.
        torrents: share of the peers that talk to strangers from one port.
        phones: share of the peers with many short sessions.
        span: seconds.
    """
    count = np.clip(median * (2 * rng.random(peers)) ** -1.0, 1, most).astype(np.intp)
    torrent, phone = rng.random(peers) < torrents, rng.random(peers) < phones
    count[torrent] = np.maximum(count[torrent], most // 3)
    peer = np.repeat(np.arange(peers), count)
    size = peer.size
    begins = np.r_[True, peer[1:] != peer[:-1]]
    page = np.cumsum(begins | (rng.random(size) < 1 / 6)) - 1
    owner = peer[np.r_[True, page[1:] != page[:-1]]]
    sessions = np.where(phone, 10, 3)[owner]
    session = (rng.random(owner.size) * sessions).astype(np.intp)
    starts = rng.random((peers, 10)) * span * 0.95
    length = np.where(phone, 120.0, 1500.0)[owner] * rng.lognormal(0, 0.7, owner.size)
    when = starts[owner, session] + rng.random(owner.size) * length
    time = np.minimum(when[page] + rng.exponential(0.5, size), span - 1)
    kind = rng.random(size)
    lookup = kind < dns
    favourites = 10 + _zipf(rng, peers * 8).reshape(peers, 8)
    liked = favourites[peer, np.minimum(rng.geometric(0.35, size) - 1, 7)]
    site = np.where(rng.random(size) < 0.55, liked, 10 + _zipf(rng, size))
    destination = np.where(lookup, _RESOLVER, np.where(kind < dns + one_address, _EVERYBODYS, site))
    quic = ~lookup & (rng.random(size) < 0.3)
    flow_class = np.where(lookup, FlowClass.DNS, np.where(quic, FlowClass.QUIC, FlowClass.TCP))
    port = rng.integers(32768, 60999, size)
    strange = torrent[peer] & (rng.random(size) < 0.9)
    destination = np.where(strange, 10**7 + rng.integers(0, 10**9, size), destination)
    flow_class = np.where(strange, FlowClass.OTHER, flow_class)
    port = np.where(strange, 6881 + peer % 20_000, port) + 65536 * (flow_class == FlowClass.TCP)
    order = np.argsort(time, kind="stable")
    flows = Traffic(
        peers,
        peer[order],
        destination[order].astype(np.intp),
        port[order],
        np.zeros(size, np.intp),
        time[order],
        flow_class[order].astype(np.intp),
    )
    addresses = _NETWORK + 256 + rng.choice(2**16 - 512, peers, replace=False)
    tunnels: tuple[Address, ...] = tuple(IPv4Address(int(one)) for one in addresses)
    return People(replace(flows, session=_sessions(flows)), page[order], tunnels)


def _zipf(rng: np.random.Generator, size: int) -> Index:
    weights = np.cumsum(1 / np.arange(1, _SITES + 1) ** 1.1)
    drawn: Index = np.searchsorted(weights / weights[-1], rng.random(size))
    return drawn


def _sessions(flows: Traffic) -> Index:
    """The session of each flow, ended by a pause."""
    order = np.lexsort((flows.times, flows.peer))
    peer, time = flows.peer[order], flows.times[order]
    begins = np.r_[True, (peer[1:] != peer[:-1]) | (time[1:] - time[:-1] > GAP)]
    session = np.empty(peer.size, np.intp)
    session[order] = np.cumsum(begins)
    return session


def _salt(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 2**62))


def by(*keys: Callable[[People], Index]) -> Exits:
    """A secret function of these."""
    return lambda rng, of, size: hashed(_salt(rng), size, *(key(of) for key in keys))


def peer(of: People) -> Index:
    """Who."""
    return of.traffic.peer


def site(of: People) -> Index:
    """Where to."""
    return of.traffic.destination


def session(of: People) -> Index:
    """In which session."""
    return of.traffic.session


def page(of: People) -> Index:
    """For which page."""
    return of.page


def clock(seconds: float) -> Callable[[People], Index]:
    """When, in steps."""
    return lambda of: (of.traffic.times // seconds).astype(np.intp)


def independent(rng: np.random.Generator, of: People, size: int) -> Index:
    """A draw for each flow."""
    return rng.integers(0, size, of.page.size)


def uneven(rng: np.random.Generator, of: People, size: int) -> Index:
    """A draw for each flow, exits 1:50 uneven."""
    weights = rng.lognormal(0, 1, size)
    return rng.choice(size, of.page.size, p=weights / weights.sum())


def in_turn(_: np.random.Generator, of: People, size: int) -> Index:
    """Round robin."""
    return np.arange(of.page.size) % size


def resolver_apart(rng: np.random.Generator, of: People, size: int) -> Index:
    """DNS by an address of its own, the rest a draw for each flow."""
    return np.where(site(of) == _RESOLVER, size - 1, rng.integers(0, size - 1, of.page.size))


def failover(_: np.random.Generator, of: People, size: int) -> Index:
    """One exit, for half an hour another one."""
    away = (of.traffic.times > 0.4 * DAY) & (of.traffic.times < 0.4 * DAY + 1800)
    return np.where(away, 1 % size, 0)


def renumbered(_: np.random.Generator, of: People, size: int) -> Index:
    """One exit, from noon on another one."""
    return np.where(of.traffic.times > DAY / 2, 1 % size, 0)


def replaced(rng: np.random.Generator, of: People, size: int) -> Index:
    """A draw for each flow, from noon on of the other half of the exits."""
    half = size // 2
    return rng.integers(0, half, of.page.size) + half * (of.traffic.times > DAY / 2)


def persistent(_: np.random.Generator, of: People, size: int) -> Index:
    """The kernel's hash of the tunnel address."""
    pool = _pool(size)
    own = [int(kernel_exit(one, None, pool.first, pool.last)) - int(pool.first) for one in of.tunnels]
    return np.array(own, np.intp)[of.traffic.peer]


def part(share: float, leaking: Exits, rest: Exits = independent) -> Exits:
    """The first peers leak, the others do not."""
    return lambda rng, of, size: np.where(
        peer(of) < round(share * of.traffic.peers), leaking(rng, of, size), rest(rng, of, size)
    )


def of_class(flow_class: FlowClass, leaking: Exits, rest: Exits = independent) -> Exits:
    """One class of flows leaks."""
    return lambda rng, of, size: np.where(
        of.traffic.classes == flow_class, leaking(rng, of, size), rest(rng, of, size)
    )


def since(begin: float, after: Exits, before: Exits) -> Exits:
    """From some second on another rule."""
    return lambda rng, of, size: np.where(
        of.traffic.times >= begin, after(rng, of, size), before(rng, of, size)
    )


INDEPENDENT: Mapping[str, Exits] = {
    "a draw for each flow": independent,
    "a draw for each flow, uneven exits": uneven,
    "round robin": in_turn,
}

EVERYBODYS: Mapping[str, Exits] = {
    **{f"one exit for all, changed each {name}": by(clock(seconds)) for name, seconds in (
        ("second", 1.0), ("10 seconds", 10.0), ("minute", 60.0), ("10 minutes", 600.0), ("hour", 3600.0)
    )},
    "the site decides": by(site),
    "DNS by an address of its own": resolver_apart,
    "a failover of half an hour": failover,
    "a new address at noon": renumbered,
    "other exits since noon": replaced,
    "a draw for each page": by(page),
}  # fmt: skip

BRIEF: Mapping[str, Exits] = {
    "a draw for each peer and minute": by(peer, clock(60.0)),
    "a draw for each peer and half hour": by(peer, clock(1800.0)),
    "a draw for each peer and hour": by(peer, clock(3600.0)),
    "a draw for each session": by(session),
}

LEAKS: Mapping[str, tuple[Exits, frozenset[Verdict]]] = {
    "pinned": (by(peer), frozenset({Verdict.PINNED})),
    "a tenth pinned": (part(0.1, by(peer)), frozenset({Verdict.PINNED})),
    "TCP pinned": (of_class(FlowClass.TCP, by(peer)), frozenset({Verdict.PINNED})),
    "QUIC pinned": (of_class(FlowClass.QUIC, by(peer)), frozenset({Verdict.PINNED})),
    "source and site, a secret": (by(peer, site), frozenset({Verdict.DESTINATION_LINKED})),
    "the kernel's hash": (persistent, frozenset({Verdict.PREDICTABLE})),
    "a tenth by the kernel's hash": (part(0.1, persistent), frozenset({Verdict.PREDICTABLE})),
    "pinned since two hours": (
        since(DAY - 7200, by(peer), independent),
        frozenset({Verdict.PINNED, Verdict.UNKNOWN}),
    ),
}


def _pool(size: int) -> ExitPool:
    first = IPv4Address("198.18.0.0")
    return ExitPool(first, IPv4Address(int(first) + size - 1))


def counted(
    rng: np.random.Generator, of: People, exits: Index, size: int, fitter: Fitter | None = None
) -> Observation:
    """What the service would have counted, with the predictors tried as the sensor does."""
    foretold = hashed(_salt(rng), size, of.traffic.peer, of.traffic.destination)
    seen = observe(of.traffic, Relay(size, exits, foretold == exits))
    order = np.argsort(seen.votes, kind="stable")
    home = np.full(of.traffic.peers, -1, np.intp)
    home[seen.peer[order]] = seen.exit[order]
    most = np.zeros(of.traffic.peers)
    np.maximum.at(most, seen.peer, seen.votes)
    votes = np.bincount(seen.peer, seen.votes, of.traffic.peers)
    who = np.flatnonzero(votes > 0)
    fits = (fitter or Fitter()).fit(
        [of.tunnels[row] for row in who],
        [seen.exits[home[row]] for row in who],
        [_pool(size)],
        of.tunnels,
        [bool(2 * most[row] > votes[row] > 1) for row in who],
    )
    trials = tuple(
        PredictorTrials(
            one.predictor,
            one.rule,
            one.tried,
            one.hit,
            one.chance,
            one.hypotheses,
            _mask(of.traffic.peers, who[list(one.hits)]) if one.holds else None,
        )
        for one in fits
    )
    return replace(seen, predicted={}, predictor_trials=trials)


def _mask(peers: int, rows: Index) -> Mask:
    mask = np.zeros(peers, bool)
    mask[rows] = True
    return mask


def day(
    rng: np.random.Generator, exits: Exits, peers: int, size: int, **traffic: float
) -> tuple[People, Index]:
    """A population and the exit of each of its flows."""
    of = people(rng, peers, **traffic)  # type: ignore[arg-type]
    return of, exits(rng, of, size)


def seconds_until(observations: Mapping[float, Verdict], wanted: frozenset[Verdict]) -> float | None:
    """The first look at which one of these was said."""
    return next((at for at, verdict in sorted(observations.items()) if verdict in wanted), None)
