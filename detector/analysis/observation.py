# SPDX-License-Identifier: Apache-2.0
"""What the analysis is told: one family's counts over one window, as columns.

Whoever counts (the eBPF tables, a conntrack listing, a simulation) builds an `Observation`; nothing in
here names a peer, a tunnel address or a destination. P peers are rows 0..P-1, E exits are 0..E-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.base.family import Address, Family

Counts = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Trials:
    """Per peer: how often something was tried and how often it came true.

    Attributes:
        tried: shape (P,).
        true: shape (P,), at most `tried`.
        expected: shape (P,), float: how many would come true by chance, or None where chance is the
            family's c0 (contrasts).
    """

    tried: Counts
    true: Counts
    expected: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of the flows: the ground of the coverage.

    Attributes:
        seen: translated flows of peers that were counted.
        lost: flows, or measurements of flows, that a full table refused.
        unattributed: flows that came in by a WireGuard interface and belong to no peer that is known.
    """

    seen: int = 0
    lost: int = 0
    unattributed: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """One family in one window.

    Attributes:
        peers: P, every peer that has a slot, with flows or without.
        exits: the E exit addresses that were seen or predicted.
        pool: shape (E,), int: the pool that each exit belongs to, -1 for none.
        pool_sizes: addresses in each pool.
        peer, exit: shape (n,): the pair, as row of the peer and index into `exits`; each pair once.
        flows, votes, session_starts: shape (n,): flows; votes (flows with a destination and a source port new
            for the peer); sessions whose first flow took this exit.
        same_destination: trials of "again to a known destination from a new source port: the same exit?".
        same_port: trials of "again from a known source port to a new destination: the same exit?".
        destination_predictor: votes that `kernel_destination` was tried on, and hit.
        predicted: per predictor of the tunnel address alone, shape (P, K) for K pools, or (P,) where one
            prediction stands for all of them: index into `exits`, -1 for none.
        is_network: shape (P,), bool: the slot is a network, not one address, so it is not judged as a peer.
        exclusive_map: the rules map peers to exits one to one.
        pool_origins: where the rules that choose from each pool stand, for people; empty where nobody knows.
    """

    family: Family
    peers: int
    exits: tuple[Address, ...]
    pool: NDArray[np.int32]
    pool_sizes: tuple[int, ...]
    peer: Counts
    exit: Counts
    flows: Counts
    votes: Counts
    session_starts: Counts
    same_destination: Trials
    same_port: Trials
    destination_predictor: Trials
    predicted: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    is_network: NDArray[np.bool_] | None = None
    exclusive_map: bool = False
    loss: Loss = Loss()
    pool_origins: tuple[str, ...] = ()
