# SPDX-License-Identifier: Apache-2.0
"""An observation made ready: pairs of judgeable peers, sums per peer, exits in groups that share a chance.

Exits are compared within their pool (a *group*), since which pool serves a peer is what the rules say and
no leak of its own; how many peers share a pool is for `detector.analysis.exclusive`. A pool of one address is
a group of one, where chance is certainty; exits outside of any pool form one group together. Tables of peers
by groups are sparse: only the cells with flows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detector.analysis.numerics import Floats, sums
from detector.analysis.observation import Observation

Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

VOTES_TO_JUDGE = 3  # with two votes a peer agrees with itself, or not, and neither says anything


@dataclass(frozen=True, slots=True)
class Columns:
    """One family's counts. P peers, E exits, n pairs with flows of peers that are one address, G groups.

    A cell is a peer and a group in which it has flows; there are C of them.

    Attributes:
        peers, exits, groups: P, E, G.
        present: peers with flows, networks too.
        peer, exit: shape (n,).
        rows: shape (n,): where these pairs are in the observation.
        flows, votes, session_starts: shape (n,), float.
        peer_flows, peer_votes, peer_firsts: shape (P,), sums of them.
        judged: shape (P,): enough votes for a word about this peer.
        narrow: shape (P,): the peer is one address.
        occupants: shape (E,): peers with flows on the exit, networks too.
        pool: shape (E,): pool of each exit, -1 for none.
        pool_sizes: addresses in each pool.
        group: shape (E,): group of each exit.
        group_sizes: shape (G,): exits that each group could use.
        cell: shape (n,): the cell of each pair.
        cell_peer, cell_group, cell_votes, cell_flows: shape (C,).
    """

    peers: int
    exits: int
    present: int
    groups: int
    peer: Index
    exit: Index
    rows: Index
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
    cell: Index
    cell_peer: Index
    cell_group: Index
    cell_votes: Floats
    cell_flows: Floats

    @property
    def exits_used(self) -> int:
        """Exits that carried at least one flow."""
        return int(np.count_nonzero(self.occupants))

    @property
    def pool_size(self) -> int:
        """Configured exits, or the used ones where nothing is configured."""
        return sum(self.pool_sizes) or self.exits_used

    def with_votes(self, votes: Floats) -> Columns:
        """The same with other votes, shape (n,): those of one class of flows."""
        cell_votes = sums(self.cell, votes, self.cell_peer.size)
        peer_votes = sums(self.cell_peer, cell_votes, self.peers)
        return replace(
            self,
            votes=votes,
            cell_votes=cell_votes,
            peer_votes=peer_votes,
            judged=peer_votes >= VOTES_TO_JUDGE,
        )

    def over_cells(self, weights: Floats) -> Floats:
        """Sums of a cell column over each peer, shape (P,)."""
        return sums(self.cell_peer, weights, self.peers)

    def over_groups(self, weights: Floats) -> Floats:
        """Sums of a cell column over each group, shape (G,)."""
        return sums(self.cell_group, weights, self.groups)

    def by_flows(self, per_group: Floats) -> Floats:
        """A column over groups, shape (G,), averaged for each peer by flows, shape (P,); nan without any."""
        met = self.over_cells(self.cell_flows * per_group[self.cell_group])
        average: Floats = np.divide(
            met, self.peer_flows, out=np.full(self.peers, np.nan), where=self.peer_flows > 0
        )
        return average

    def per_peer(self, weights: Floats) -> Floats:
        """Sums of a pair column over each peer, shape (P,)."""
        return sums(self.peer, weights, self.peers)

    def per_exit(self, weights: Floats) -> Floats:
        """Sums of a pair column over each exit, shape (E,)."""
        return sums(self.exit, weights, self.exits)


def columns_of(observation: Observation) -> Columns:
    """The columns of an observation; linear in its pairs."""
    peers, exits = observation.peers, len(observation.exits)
    carried = _rows(np.greater(observation.flows, 0))
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
    keys, cell = np.unique(peer * groups + group[exit_], return_inverse=True)
    cell = cell.astype(np.intp).reshape(-1)
    cell_votes = sums(cell, votes, keys.size)
    cell_peer = (keys // groups).astype(np.intp)
    peer_votes = sums(cell_peer, cell_votes, peers)
    return Columns(
        peers=peers,
        exits=exits,
        present=present,
        groups=groups,
        peer=peer,
        exit=exit_,
        rows=np.arange(observation.peer.size)[carried][kept],
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
        cell=cell,
        cell_peer=cell_peer,
        cell_group=(keys % groups).astype(np.intp),
        cell_votes=cell_votes,
        cell_flows=sums(cell, flows, keys.size),
    )


def _rows(mask: Mask) -> Index | slice:
    """The rows under a mask, as a slice where that is all of them: taking it copies nothing."""
    return slice(None) if mask.all() else np.flatnonzero(mask)


def _groups(pool: Index, pool_sizes: tuple[int, ...], occupants: Floats) -> tuple[Index, Floats]:
    """The group of each exit, shape (E,), and how many exits each group could use, shape (G,).

    Group k is pool k; the last one is of the exits in no pool, as large as they are many.
    """
    numbers = np.append(np.arange(len(pool_sizes)), len(pool_sizes))  # the last entry is for -1, no pool
    group: Index = numbers[pool].astype(np.intp)
    used = np.bincount(group, occupants > 0, len(pool_sizes) + 1)
    configured = np.array([*map(float, pool_sizes), 0.0])
    return group, np.maximum(np.maximum(configured, used), 1.0)
