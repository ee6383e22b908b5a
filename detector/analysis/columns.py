# SPDX-License-Identifier: Apache-2.0
"""An observation made ready: pairs of judgeable peers, sums per peer, exits in groups that share a chance.

Exits are compared within their pool (a *group*), since which pool serves a peer is what the rules say and
no leak of its own. Pools of one address and exits outside of any pool form one group together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.analysis.numerics import Floats, sums
from detector.analysis.observation import Observation

Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

VOTES_TO_JUDGE = 3  # with two votes a peer agrees with itself, or not, and neither says anything
_MOST_GROUPS = 16  # beyond that, all exits are one group: (P, G) tables must stay small


@dataclass(frozen=True, slots=True)
class Columns:
    """One family's counts. P peers, E exits, n pairs with flows of peers that are one address, G groups.

    Attributes:
        peers, exits, groups: P, E, G.
        present: peers with flows, networks too.
        peer, exit: shape (n,).
        flows, votes, session_starts: shape (n,), float.
        peer_flows, peer_votes, peer_firsts: shape (P,), sums of them.
        judged: shape (P,): enough votes for a word about this peer.
        narrow: shape (P,): the peer is one address.
        occupants: shape (E,): peers with flows on the exit, networks too.
        pool: shape (E,): pool of each exit, -1 for none.
        pool_sizes: addresses in each pool.
        group: shape (E,): group of each exit.
        group_sizes: shape (G,): exits that each group could use.
        group_votes, group_flows: shape (P, G).
    """

    peers: int
    exits: int
    present: int
    groups: int
    peer: Index
    exit: Index
    flows: Floats
    votes: Floats
    session_starts: Floats
    peer_flows: Floats
    peer_votes: Floats
    peer_firsts: Floats
    judged: Mask
    narrow: Mask
    occupants: Floats
    pool: Index
    pool_sizes: tuple[int, ...]
    group: Index
    group_sizes: Floats
    group_votes: Floats
    group_flows: Floats

    @property
    def exits_used(self) -> int:
        """Exits that carried at least one flow."""
        return int(np.count_nonzero(self.occupants))

    @property
    def pool_size(self) -> int:
        """Configured exits, or the used ones where nothing is configured."""
        return sum(self.pool_sizes) or self.exits_used

    def per_peer(self, weights: Floats) -> Floats:
        """Sums of a pair column over each peer, shape (P,)."""
        return sums(self.peer, weights, self.peers)

    def per_exit(self, weights: Floats) -> Floats:
        """Sums of a pair column over each exit, shape (E,)."""
        return sums(self.exit, weights, self.exits)


def columns_of(observation: Observation) -> Columns:
    """The columns of an observation; linear in its pairs."""
    peers, exits = observation.peers, len(observation.exits)
    carried = _rows(np.asarray(observation.flows) > 0)
    peer = np.asarray(observation.peer)[carried].astype(np.intp)
    present = int(np.count_nonzero(np.bincount(peer, minlength=peers)))
    exit_ = np.asarray(observation.exit)[carried].astype(np.intp)
    occupants = np.bincount(exit_, minlength=exits).astype(np.float64)
    narrow = np.ones(peers, bool) if observation.is_network is None else ~observation.is_network
    kept = _rows(narrow[peer])
    peer, exit_ = peer[kept], exit_[kept]
    flows, votes, session_starts = (
        np.asarray(column)[carried][kept].astype(np.float64)
        for column in (observation.flows, observation.votes, observation.session_starts)
    )
    pool = observation.pool.astype(np.intp)
    group, group_sizes = _groups(pool, observation.pool_sizes, occupants)
    groups = len(group_sizes)
    cell = peer * groups + group[exit_]
    group_votes = sums(cell, votes, peers * groups).reshape(peers, groups)
    peer_votes = group_votes.sum(axis=1)
    return Columns(
        peers=peers,
        exits=exits,
        present=present,
        groups=groups,
        peer=peer,
        exit=exit_,
        flows=flows,
        votes=votes,
        session_starts=session_starts,
        peer_flows=sums(peer, flows, peers),
        peer_votes=peer_votes,
        peer_firsts=sums(peer, session_starts, peers),
        judged=peer_votes >= VOTES_TO_JUDGE,
        narrow=narrow,
        occupants=occupants,
        pool=pool,
        pool_sizes=observation.pool_sizes,
        group=group,
        group_sizes=group_sizes,
        group_votes=group_votes,
        group_flows=sums(cell, flows, peers * groups).reshape(peers, groups),
    )


def _rows(mask: Mask) -> Index | slice:
    """The rows under a mask, as a slice where that is all of them: taking it copies nothing."""
    return slice(None) if mask.all() else np.flatnonzero(mask)


def _groups(pool: Index, pool_sizes: tuple[int, ...], occupants: Floats) -> tuple[Index, Floats]:
    """The group of each exit, shape (E,), and how many exits each group could use, shape (G,)."""
    real = [number for number, size in enumerate(pool_sizes) if size > 1]
    if len(real) > _MOST_GROUPS:
        real = []
    numbers = np.full(len(pool_sizes) + 1, len(real), np.intp)  # the last entry is for -1, no pool
    numbers[real] = np.arange(len(real))
    group = numbers[pool]
    used = np.bincount(group, occupants > 0, len(real) + 1)
    rest = sum(pool_sizes) - sum(pool_sizes[number] for number in real)
    configured = np.array([*(float(pool_sizes[number]) for number in real), float(rest)])
    sizes = np.maximum(np.maximum(configured, used), 1.0)
    if real and not used[-1]:
        sizes = sizes[:-1]
        group = np.minimum(group, len(sizes) - 1)  # only exits that nobody uses
    return group, sizes
