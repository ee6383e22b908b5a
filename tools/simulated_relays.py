# SPDX-License-Identifier: Apache-2.0
"""Relays made up: traffic, a mapping, and the counts that the kernel program would have kept of them.

For calibration and tests. `observe` counts flow by flow as the kernel does; what follows is its contract.

A flow has a peer, a class, a destination, a source port, an exit and a time. From the time follow the
*drain* (how often user space has looked), the *pane* and the *session*, which a pause of `GAP` without a flow
ends.

* Of a peer and class, in a pane, only the first `LOOKED` flows are looked at, and none once its `VOTES` votes
  and its `RETURNS` returns are spent. The others count as flows of their pair, and change nothing else.
* A flow that is looked at is compared with what is remembered of the peer's destinations and of its source
  ports, for as long as the window (`PANES` panes). New keys are remembered only while the class has votes
  left; a known one is brought up to date in any case, exit and time.
* Destination and port both new: a *vote*, while the budget lasts. It counts for its pair and class. The last
  vote of the class, whoever it was of, and the peer's own last one are remembered: if the last one was
  another peer's, this is a sandwich of the vote. A trial compares the exit now with both.
* Destination known, port new: a *return*, while the budget (of the class) lasts. What was last seen at the
  destination, of whomever, is remembered, too: if it was another peer's, this is a sandwich of the return; if
  it was the peer's own, a lone return.
* Port known, destination new: a *reuse*, while the budget lasts.
* The lag of a trial is how far the peer's own earlier flow lies: another session, else another pane, else
  another drain, else the same drain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import numpy as np
from numpy.typing import NDArray

from detector.analysis.columns import Index, Mask
from detector.analysis.numerics import Floats, sums
from detector.analysis.observation import Loss, Observation, Panes, Sandwiches, Trials
from detector.analysis.panes import panes_of
from detector.base.family import Family
from detector.base.flows import FLOW_CLASSES, LAGS, Lag

VOTES, RETURNS, REUSES, LOOKED = 16, 16, 8, 64
PANES, PANE = 12, 7200.0  # seconds
INTERVAL, GAP = 10.0, 600.0
_BETWEEN_SESSIONS = 2.5 * PANE  # where traffic has no times of its own
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
        time: seconds; None for sessions hours apart, each of some seconds.
        flow_class: of each flow, None for TCP all over.
    """

    peers: int
    peer: Index
    destination: Index
    port: Index
    session: Index
    time: Floats | None = None
    flow_class: Index | None = None

    @property
    def times(self) -> Floats:
        """Seconds since the start, ascending."""
        if self.time is not None:
            return self.time
        turn = np.arange(self.peer.size) / max(self.peer.size, 1)
        made: Floats = self.session * _BETWEEN_SESSIONS + turn * INTERVAL * 3
        return made

    @property
    def classes(self) -> Index:
        """The class of each flow."""
        return np.zeros(self.peer.size, np.intp) if self.flow_class is None else self.flow_class


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


_Seen = tuple[int, int, int, int, int]
"""Exit, pane, drain, session and class of a flow."""
_Flow = tuple[int, int, int]
"""Destination, source port and exit."""


@dataclass(slots=True)
class _Peer:
    """What the kernel program keeps of one slot."""

    last_time: float = -1e18
    session: int = 0
    pane: int = -1
    looked: list[int] = field(default_factory=list)
    votes: list[int] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)
    reuses: list[int] = field(default_factory=list)
    last_vote: dict[int, _Seen] = field(default_factory=dict)
    destinations: dict[int, _Seen] = field(default_factory=dict)
    ports: dict[int, tuple[int, int]] = field(default_factory=dict)

    def begin_pane(self, pane: int) -> None:
        self.pane = pane
        classes = len(FLOW_CLASSES)
        self.looked, self.votes = [0] * classes, [0] * classes
        self.returns, self.reuses = [0] * classes, [0] * classes


def _lag(before: _Seen, now: _Seen) -> Lag:
    if before[3] != now[3]:
        return Lag.SESSIONS
    if before[1] != now[1]:
        return Lag.PANES
    return Lag.PANE if before[2] != now[2] else Lag.DRAIN


@dataclass(slots=True)
class _Counted:
    """What is counted of the flows; kinds are by flow, sandwiches by peer."""

    vote: Mask
    first: Mask
    pane: Index
    votes: NDArray[np.uint32]
    returns: NDArray[np.uint32]
    lone: NDArray[np.uint32]
    ports: NDArray[np.uint32]


class _Kernel:
    """The tables of the kernel program."""

    def __init__(self, peers: int, size: int) -> None:
        lags, classes = len(LAGS), len(FLOW_CLASSES)
        self.counted = _Counted(
            np.zeros(size, bool),
            np.zeros(size, bool),
            np.zeros(size, np.intp),
            np.zeros((peers, classes, lags, 4), np.uint32),
            np.zeros((peers, lags, 4), np.uint32),
            np.zeros((peers, lags, 2), np.uint32),
            np.zeros((peers, 2), np.uint32),
        )
        self._slots = [_Peer() for _ in range(peers)]
        self._last_votes: dict[int, tuple[int, int]] = {}
        self._visits: dict[tuple[int, int], tuple[int, int]] = {}

    def flow(self, number: int, time: float, peer: int, kind: int, flow: _Flow) -> None:
        """One flow, after all earlier ones."""
        slot = self._slots[peer]
        pane = self.counted.pane[number] = int(time / PANE)
        if time - slot.last_time > GAP:
            slot.session += 1
            self.counted.first[number] = True
        slot.last_time = time
        if pane != slot.pane:
            slot.begin_pane(pane)
        left = slot.votes[kind] < VOTES
        if slot.looked[kind] < LOOKED and (left or slot.returns[kind] < RETURNS):
            slot.looked[kind] += 1
            now = (flow[2], pane, int(time / INTERVAL), slot.session, kind)
            self.counted.vote[number] = self._look(peer, slot, flow, now, left)

    def _look(self, peer: int, slot: _Peer, flow: _Flow, now: _Seen, left: bool) -> bool:
        """Whether it is a vote."""
        destination, port, exit_ = flow
        _, pane, _, _, kind = now
        seen = slot.ports.get(port)
        seen = None if seen is None or pane - seen[1] >= PANES else seen
        mine = slot.destinations.get(destination)
        mine = None if mine is None or pane - mine[1] >= PANES else mine
        last = None
        if left or seen is not None:
            slot.ports[port] = (exit_, pane)
        if left or mine is not None:
            slot.destinations[destination] = now
            last = self._visits.get((destination, kind))
            self._visits[destination, kind] = (peer, exit_)
        if mine is None and seen is None:
            if left:
                self._vote(peer, slot, now)
            return left
        if seen is None and mine is not None:
            self._come_back(peer, slot, mine, last, now)
        elif mine is None and seen is not None and slot.reuses[kind] < REUSES:
            slot.reuses[kind] += 1
            self.counted.ports[peer, 0] += 1
            self.counted.ports[peer, 1] += seen[0] == exit_
        return False

    def _vote(self, peer: int, slot: _Peer, now: _Seen) -> None:
        exit_, pane, _, _, kind = now
        slot.votes[kind] += 1
        own, others = slot.last_vote.get(kind), self._last_votes.get(kind)
        if own is not None and others is not None and others[0] != peer and pane - own[1] < PANES:
            self.counted.votes[peer, kind, _lag(own, now), _outcome(own[0] == exit_, others[1] == exit_)] += 1
        slot.last_vote[kind] = now
        self._last_votes[kind] = (peer, exit_)

    def _come_back(
        self, peer: int, slot: _Peer, mine: _Seen, last: tuple[int, int] | None, now: _Seen
    ) -> None:
        exit_, _, _, _, kind = now
        if mine[4] != kind or slot.returns[kind] >= RETURNS:
            return
        slot.returns[kind] += 1
        if last is None or last[0] == peer:
            self.counted.lone[peer, _lag(mine, now), 0] += 1
            self.counted.lone[peer, _lag(mine, now), 1] += mine[0] == exit_
        else:
            self.counted.returns[peer, _lag(mine, now), _outcome(mine[0] == exit_, last[1] == exit_)] += 1


def _count(flows: Traffic, exits: Index) -> _Counted:
    """Flow by flow, in the order of time, as the module says."""
    kernel = _Kernel(flows.peers, flows.peer.size)
    order = np.argsort(flows.times, kind="stable")
    columns = (flows.times, flows.peer, flows.classes, flows.destination, flows.port, exits)
    for number, time, peer, kind, *flow in zip(
        order.tolist(), *(column[order].tolist() for column in columns), strict=True
    ):
        kernel.flow(number, time, peer, kind, (flow[0], flow[1], flow[2]))
    return kernel.counted


_BOTH, _MINE, _OTHER, _NONE = range(4)


def _outcome(mine: bool, other: bool) -> int:
    return (_BOTH if other else _MINE) if mine else _OTHER if other else _NONE


def _sandwiches(counts: NDArray[np.uint32]) -> Sandwiches:
    tried = counts.sum(axis=-1, dtype=np.uint32)
    return Sandwiches(tried, counts[..., _BOTH], counts[..., _MINE], counts[..., _OTHER])


def observe(flows: Traffic, relay: Relay, loss: Loss | None = None) -> Observation:
    """The counts that the kernel program would have of this traffic on this relay."""
    counted = _count(flows, relay.exit)
    vote, classes = counted.vote, flows.classes
    pair, where = np.unique(flows.peer * relay.pool_size + relay.exit, return_inverse=True)
    where = where.reshape(-1)

    def total(what: Mask) -> NDArray[np.uint32]:
        return np.bincount(where[what], minlength=pair.size).astype(np.uint32)

    tried = np.bincount(flows.peer[vote], minlength=flows.peers).astype(np.uint32)
    hits = np.bincount(flows.peer[vote & relay.destination_hits], minlength=flows.peers).astype(np.uint32)
    returns, lone = _sandwiches(counted.returns), Trials(counted.lone[..., 0], counted.lone[..., 1])
    panes = int(counted.pane.max(initial=0)) + 1
    triples, votes = np.unique(where[vote] * panes + counted.pane[vote], return_counts=True)
    of_pair = pair[triples // panes]
    return Observation(
        family=Family.IPV4,
        peers=flows.peers,
        exits=tuple(IPv4Address(_FIRST_EXIT + number) for number in range(relay.pool_size)),
        pool=np.zeros(relay.pool_size, np.int32),
        pool_sizes=(relay.pool_size,),
        peer=(pair // relay.pool_size).astype(np.uint32),
        exit=(pair % relay.pool_size).astype(np.uint32),
        flows=total(np.ones(flows.peer.size, bool)),
        votes=total(vote),
        session_starts=total(counted.first),
        same_destination=Trials(
            returns.tried.sum(axis=1, dtype=np.uint32) + lone.tried.sum(axis=1, dtype=np.uint32),
            (returns.both + returns.mine).sum(axis=1, dtype=np.uint32)
            + lone.true.sum(axis=1, dtype=np.uint32),
        ),
        same_port=Trials(counted.ports[:, 0], counted.ports[:, 1]),
        destination_predictor=Trials(tried, hits, tried / relay.pool_size),
        predicted=relay.predicted,
        exclusive_map=relay.exclusive_map,
        loss=loss or Loss(seen=flows.peer.size),
        class_votes=np.stack([total(vote & (classes == one)) for one in FLOW_CLASSES], axis=1),
        vote_sandwiches=_sandwiches(counted.votes),
        return_sandwiches=returns,
        lone_returns=lone,
        sessions=np.bincount(flows.peer[counted.first], minlength=flows.peers).astype(np.uint32),
        panes=panes_of(
            (triples % panes).astype(np.intp),
            (of_pair // relay.pool_size).astype(np.intp),
            (of_pair % relay.pool_size).astype(np.intp),
            votes.astype(np.float64),
            (panes, flows.peers, relay.pool_size),
        ),
        seconds=float(flows.times.max(initial=0.0)) or None,
    )


def _rank_within(group: Index) -> Index:
    """The number of each flow within its group, shape (F,), 0 being the first."""
    order = np.argsort(group, kind="stable")
    begins = np.cumsum(np.bincount(group)) - np.bincount(group)
    rank = np.empty(group.size, np.intp)
    rank[order] = np.arange(group.size) - begins[group[order]]
    return rank


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
        class_votes=_both_or_none(one.class_votes, other.class_votes),
        vote_sandwiches=_beside(one.vote_sandwiches, other.vote_sandwiches),
        return_sandwiches=_beside(one.return_sandwiches, other.return_sandwiches),
        lone_returns=None
        if one.lone_returns is None or other.lone_returns is None
        else _chained(one.lone_returns, other.lone_returns),
        sessions=_both_or_none(one.sessions, other.sessions),
        panes=_panes_beside(one.panes, other.panes),
    )


def _both_or_none(
    one: NDArray[np.uint32] | None, other: NDArray[np.uint32] | None
) -> NDArray[np.uint32] | None:
    return None if one is None or other is None else np.concatenate([one, other])


def _beside(one: Sandwiches | None, other: Sandwiches | None) -> Sandwiches | None:
    """Trials of both; nobody of the one was between two flows of the other, which changes few of them."""
    if one is None or other is None:
        return None
    names = ("tried", "both", "mine", "other")
    return Sandwiches(*(np.concatenate([getattr(one, name), getattr(other, name)]) for name in names))


def _panes_beside(one: Panes | None, other: Panes | None) -> Panes | None:
    if one is None or other is None or len(one.voters) != len(other.voters):
        return None
    return Panes(
        np.concatenate([one.exits, other.exits], axis=1),
        one.voters + other.voters,
        one.agreement + other.agreement,
        one.agreement_squares + other.agreement_squares,
        np.concatenate([one.far_tried, other.far_tried]),
        np.concatenate([one.far_same, other.far_same]),
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
        return sums(where.reshape(-1), both, pair.size).astype(np.uint32)

    def added_class(number: int) -> NDArray[np.uint32]:
        both = np.concatenate(
            [o.class_votes[:, number] for o in (one, other) if o.class_votes is not None]
        ).astype(np.float64)
        return sums(where.reshape(-1), both, pair.size).astype(np.uint32)

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
        class_votes=None
        if one.class_votes is None
        else np.stack([added_class(number) for number in range(len(FLOW_CLASSES))], axis=1),
        vote_sandwiches=_sandwich_sum(one.vote_sandwiches, other.vote_sandwiches),
        return_sandwiches=_sandwich_sum(one.return_sandwiches, other.return_sandwiches),
        lone_returns=None
        if one.lone_returns is None or other.lone_returns is None
        else _sum(one.lone_returns, other.lone_returns),
    )


def _sandwich_sum(one: Sandwiches | None, other: Sandwiches | None) -> Sandwiches | None:
    if one is None or other is None:
        return None
    return Sandwiches(*(getattr(one, n) + getattr(other, n) for n in ("tried", "both", "mine", "other")))


def _sum(one: Trials, other: Trials) -> Trials:
    expected = None if one.expected is None or other.expected is None else one.expected + other.expected
    return Trials(one.tried + other.tried, one.true + other.true, expected)
