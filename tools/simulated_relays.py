# SPDX-License-Identifier: Apache-2.0
"""Relays made up: traffic, a mapping, and the counts that the kernel program would have kept of them.

For calibration and tests. `observe` counts flow by flow as the kernel does: a vote is a flow with a
destination and a source port new for its peer; a return compares with the most recent exit of that
destination (or of that source port); after the first `BUDGET` flows of a peer only flows and session starts
are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import numpy as np
from numpy.typing import NDArray

from detector.analysis.columns import Index, Mask
from detector.analysis.numerics import Floats, sums
from detector.analysis.observation import Loss, Observation, Trials
from detector.base.family import Family

BUDGET = 512
_FIRST_EXIT = int(IPv4Address("198.18.0.0"))  # the benchmarking network of RFC 2544


@dataclass(frozen=True, slots=True)
class Traffic:
    """Flows in the order of time, shape (F,) each.

    Attributes:
        peers: P.
        peer: 0..P-1.
        destination: any numbers; the same number is the same destination, for all peers.
        port: source port; the same number is the same port, within a peer.
        session: 0, 1, ... within a peer.
    """

    peers: int
    peer: Index
    destination: Index
    port: Index
    session: Index


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay that chooses exits: what it does, and what the predictors say of it.

    Attributes:
        pool_size: N; exits are 0..N-1.
        exit: shape (F,): the exit of each flow.
        destination_hits: shape (F,): whether `kernel_destination` foretells it.
        predicted: per predictor of the tunnel address, shape (P,).
        exclusive_map: the rules map peers to exits one to one.
    """

    pool_size: int
    exit: Index
    destination_hits: Mask
    predicted: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    exclusive_map: bool = False


Chooser = Callable[[np.random.Generator, Traffic, int], Relay]


def traffic(
    rng: np.random.Generator,
    peers: int,
    flows: int | Index,
    destinations: int = 1000,
    ports: int = 0,
    sessions: int = 1,
    one_site: float = 0.0,
) -> Traffic:
    """Flows of `peers` peers, taking turns.

    Args:
        rng: where chance comes from.
        peers: P.
        flows: of each peer, one number or shape (P,).
        destinations: how many there are; each flow draws one.
        ports: source ports of each peer, drawn for each flow; 0 for a fresh one each time.
        sessions: of each peer, of equal length.
        one_site: share of flows that go to the peer's favourite destination instead.
    """
    each = np.broadcast_to(np.asarray(flows, np.intp), (peers,))
    turn, peer = np.nonzero(np.arange(each.max(initial=0))[:, None] < each)
    drawn = rng.integers(0, destinations, peer.size)
    favourite = rng.integers(0, destinations, peers)[peer]
    return Traffic(
        peers=peers,
        peer=peer,
        destination=np.where(rng.random(peer.size) < one_site, favourite, drawn),
        port=rng.integers(0, ports, peer.size) if ports else turn,
        session=turn * sessions // np.maximum(each[peer], 1),
    )


def observe(flows: Traffic, relay: Relay, loss: Loss | None = None) -> Observation:
    """The counts that the kernel program would have of this traffic on this relay."""
    measured = _rank_within(flows.peer) < BUDGET
    destination_before = _previous(flows.peer, flows.destination)
    port_before = _previous(flows.peer, flows.port)
    new_destination, new_port = destination_before < 0, port_before < 0
    vote = measured & new_destination & new_port
    first = _previous(flows.peer, flows.session) < 0
    pair, where = np.unique(flows.peer * relay.pool_size + relay.exit, return_inverse=True)

    def counted(what: Mask) -> NDArray[np.uint32]:
        return np.bincount(where[what], minlength=pair.size).astype(np.uint32)

    def trials(what: Mask, true: Mask, expected: Floats | None = None) -> Trials:
        tried = np.bincount(flows.peer[what], minlength=flows.peers).astype(np.uint32)
        hits = np.bincount(flows.peer[what & true], minlength=flows.peers).astype(np.uint32)
        return Trials(tried, hits, expected)

    votes = np.bincount(flows.peer[vote], minlength=flows.peers)
    return Observation(
        family=Family.IPV4,
        peers=flows.peers,
        exits=tuple(IPv4Address(_FIRST_EXIT + number) for number in range(relay.pool_size)),
        pool=np.zeros(relay.pool_size, np.int32),
        pool_sizes=(relay.pool_size,),
        peer=(pair // relay.pool_size).astype(np.uint32),
        exit=(pair % relay.pool_size).astype(np.uint32),
        flows=counted(np.ones(flows.peer.size, bool)),
        votes=counted(vote),
        session_starts=counted(first),
        same_destination=trials(
            measured & ~new_destination & new_port, relay.exit == relay.exit[destination_before]
        ),
        same_port=trials(measured & ~new_port & new_destination, relay.exit == relay.exit[port_before]),
        destination_predictor=trials(vote, relay.destination_hits, votes / relay.pool_size),
        predicted=relay.predicted,
        exclusive_map=relay.exclusive_map,
        loss=loss or Loss(seen=flows.peer.size),
    )


def _rank_within(group: Index) -> Index:
    """The number of each flow within its group, shape (F,), 0 being the first."""
    order = np.argsort(group, kind="stable")
    begins = np.cumsum(np.bincount(group)) - np.bincount(group)
    rank = np.empty(group.size, np.intp)
    rank[order] = np.arange(group.size) - begins[group[order]]
    return rank


def _previous(peer: Index, key: Index) -> Index:
    """For each flow the latest earlier one of the same peer and key, shape (F,), -1 for none."""
    order = np.lexsort((np.arange(peer.size), key, peer))
    same = (peer[order][1:] == peer[order][:-1]) & (key[order][1:] == key[order][:-1])
    previous = np.full(peer.size, -1, np.intp)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def hashed(salt: int, modulus: int, *keys: Index) -> Index:
    """A pseudo-random number below `modulus` for each combination of keys (splitmix64)."""
    mixed = np.full(keys[0].shape, salt, np.uint64)
    for key in keys:
        mixed = (mixed ^ key.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(modulus)).astype(np.intp)


def _salt(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 2**62))


def _relay(
    rng: np.random.Generator, flows: Traffic, pool_size: int, exits: Index, destination: Index | None = None
) -> Relay:
    """A relay whose predictors say what has nothing to do with its exits, unless told otherwise."""
    foretold = (
        hashed(_salt(rng), pool_size, flows.peer, flows.destination) if destination is None else destination
    )
    peers = np.arange(flows.peers)
    names = ("kernel_persistent", "modulo", "linear")
    predicted = {name: hashed(_salt(rng), pool_size, peers).astype(np.int32) for name in names}
    return Relay(pool_size, exits, foretold == exits, predicted)


def _sticky(name: str | None, exit_of: Callable[[np.random.Generator, Index, int], Index]) -> Chooser:
    """A relay that gives each peer one exit, which the predictor `name` foretells."""

    def choose(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
        own = exit_of(rng, np.arange(flows.peers), pool_size)
        relay = _relay(rng, flows, pool_size, own[flows.peer])
        if name is None:
            return relay
        return replace(relay, predicted={**relay.predicted, name: own.astype(np.int32)})

    return choose


def _by_keys(*names: str) -> Chooser:
    """A relay whose exit is an unknown function of the peer and of these attributes of the flow."""

    def choose(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
        keys = [getattr(flows, name) for name in ("peer", *names)]
        return _relay(rng, flows, pool_size, hashed(_salt(rng), pool_size, *keys))

    return choose


def _plain(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
    chosen = hashed(_salt(rng), pool_size, flows.peer, flows.destination)
    return _relay(rng, flows, pool_size, chosen, chosen)


def _plain_reusing(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
    """As `_plain`, but a flow from a source port that is in use inherits that mapping's exit."""
    chosen = hashed(_salt(rng), pool_size, flows.peer, flows.destination)
    key = flows.peer * (int(flows.port.max(initial=0)) + 1) + flows.port
    _, begins, which = np.unique(key, return_index=True, return_inverse=True)
    return _relay(rng, flows, pool_size, chosen[begins][which], chosen)


def _random(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
    return _relay(rng, flows, pool_size, rng.integers(0, pool_size, flows.peer.size))


def skewed(exponent: float) -> Chooser:
    """A relay that draws each flow's exit, the n-th exit with weight n^-exponent."""

    def choose(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
        weights = np.arange(1, pool_size + 1) ** -exponent
        return _relay(
            rng, flows, pool_size, rng.choice(pool_size, flows.peer.size, p=weights / weights.sum())
        )

    return choose


def _round_robin(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
    """Round robin over flows that come in random order within each turn."""
    turn = _rank_within(flows.peer)
    order = np.lexsort((rng.random(flows.peer.size), turn))
    exits = np.empty(flows.peer.size, np.intp)
    exits[order] = np.arange(flows.peer.size) % pool_size
    return _relay(rng, flows, pool_size, exits)


def _one_to_one(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
    if flows.peers > pool_size:
        raise ValueError("a one-to-one map needs an exit for each peer")
    own = rng.permutation(pool_size)[: flows.peers]
    return replace(_relay(rng, flows, pool_size, own[flows.peer]), exclusive_map=True)


def partly(share: float, leaking: Chooser, rest: Chooser = _random) -> Chooser:
    """A relay where the first `share` of the peers is on another rule, with the same pool."""

    def choose(rng: np.random.Generator, flows: Traffic, pool_size: int) -> Relay:
        one, other = leaking(rng, flows, pool_size), rest(rng, flows, pool_size)
        on_it = flows.peer < share * flows.peers
        return replace(
            one,
            exit=np.where(on_it, one.exit, other.exit),
            destination_hits=np.where(on_it, one.destination_hits, other.destination_hits),
        )

    return choose


MAPPINGS: Mapping[str, Chooser] = {
    "persistent": _sticky("kernel_persistent", lambda rng, peers, size: hashed(_salt(rng), size, peers)),
    "plain": _plain,
    "plain-reused-ports": _plain_reusing,
    "jhash": _sticky(None, lambda rng, peers, size: hashed(_salt(rng), size, peers)),
    "jhash-seeded": _sticky("seeded_jhash", lambda rng, peers, size: hashed(_salt(rng), size, peers)),
    "jhash-src-dst": _by_keys("destination"),
    "jhash-src-port": _by_keys("port"),
    "session": _by_keys("session"),
    "netmap": _sticky("netmap", lambda _, peers, size: peers % size),
    "random": _random,
    "numgen-inc": _round_robin,
    "masquerade": _sticky(None, lambda _, peers, size: np.full(peers.size, 0 * size)),
    "one-to-one": _one_to_one,
    "half-persistent": partly(
        0.5, _sticky("kernel_persistent", lambda rng, peers, size: hashed(_salt(rng), size, peers))
    ),
    "half-jhash": partly(0.5, _sticky(None, lambda rng, peers, size: hashed(_salt(rng), size, peers))),
}


def relay(
    rng: np.random.Generator, mapping: Chooser, pool_size: int, flows: Traffic, loss: Loss | None = None
) -> Observation:
    """What is counted of this traffic on a relay with this mapping and one pool."""
    return observe(flows, mapping(rng, flows, pool_size), loss)


def beside(one: Observation, other: Observation) -> Observation:
    """One relay that has both: each with peers, a pool and a rule of its own."""
    exits = len(one.exits)
    pools = len(one.pool_sizes)

    def both(name: str, shift: int = 0) -> NDArray[np.uint32]:
        return np.concatenate([getattr(one, name), getattr(other, name) + np.uint32(shift)]).astype(np.uint32)

    predicted = {}
    for name in {**one.predicted, **other.predicted}:
        table = np.full((one.peers + other.peers, pools + len(other.pool_sizes)), -1, np.int32)
        if name in one.predicted:
            table[: one.peers, :pools] = one.predicted[name].reshape(one.peers, -1)
        if name in other.predicted:
            table[one.peers :, pools:] = other.predicted[name].reshape(other.peers, -1) + exits
        predicted[name] = table
    return replace(
        one,
        peers=one.peers + other.peers,
        exits=one.exits + tuple(address + exits for address in other.exits),
        pool=np.concatenate([one.pool, other.pool + pools]).astype(np.int32),
        pool_sizes=one.pool_sizes + other.pool_sizes,
        peer=both("peer", one.peers),
        exit=both("exit", exits),
        flows=both("flows"),
        votes=both("votes"),
        session_starts=both("session_starts"),
        same_destination=_chained(one.same_destination, other.same_destination),
        same_port=_chained(one.same_port, other.same_port),
        destination_predictor=_chained(one.destination_predictor, other.destination_predictor),
        predicted=predicted,
        loss=_added(one.loss, other.loss),
    )


def _chained(one: Trials, other: Trials) -> Trials:
    expected = None
    if one.expected is not None and other.expected is not None:
        expected = np.concatenate([one.expected, other.expected])
    return Trials(np.concatenate([one.tried, other.tried]), np.concatenate([one.true, other.true]), expected)


def _added(one: Loss, other: Loss) -> Loss:
    return Loss(one.seen + other.seen, one.lost + other.lost, one.unattributed + other.unattributed)


def merged(one: Observation, other: Observation) -> Observation:
    """The sum of two observations of the same peers, exits and rules: counts add up, nothing else changes."""
    exits = len(one.exits)
    key = np.concatenate([np.asarray(o.peer).astype(np.int64) * exits + o.exit for o in (one, other)])
    pair, where = np.unique(key, return_inverse=True)

    def added(name: str) -> NDArray[np.uint32]:
        both = np.concatenate([getattr(one, name), getattr(other, name)]).astype(np.float64)
        return sums(where, both, pair.size).astype(np.uint32)

    return replace(
        one,
        peer=(pair // exits).astype(np.uint32),
        exit=(pair % exits).astype(np.uint32),
        flows=added("flows"),
        votes=added("votes"),
        session_starts=added("session_starts"),
        same_destination=_sum(one.same_destination, other.same_destination),
        same_port=_sum(one.same_port, other.same_port),
        destination_predictor=_sum(one.destination_predictor, other.destination_predictor),
        loss=_added(one.loss, other.loss),
    )


def _sum(one: Trials, other: Trials) -> Trials:
    expected = None if one.expected is None or other.expected is None else one.expected + other.expected
    return Trials(one.tried + other.tried, one.true + other.true, expected)
