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
from detector.base.verdicts import Verdict

Counts = NDArray[np.uint32]
ManyCounts = NDArray[np.uint32] | NDArray[np.uint64]
"""Of flows, or packets, of which a window may hold more than 2^32."""


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
class Sandwiches:
    """Matched trials: a peer's flow, then another peer's in the same place, then the first peer's again.

    The other's flow is nearer in time, so whatever drifts (clock, load, a new lease) makes it match at least
    as often as the peer's own. An excess of `mine` over `other` is therefore the peer's own doing, and
    the sign test of the two needs no assumption on the exits (McNemar, "Note on the sampling error of the
    difference between correlated proportions or percentages", 1947). Shape (P, ..., lags) each.

    Attributes:
        tried: trials.
        both: the exit was the one of my last flow, and the one of the other's.
        mine: of my last flow alone.
        other: of the other's alone.
    """

    tried: Counts
    both: Counts
    mine: Counts
    other: Counts

    @classmethod
    def none(cls, *shape: int) -> Sandwiches:
        """No trials."""
        return cls(*(np.zeros(shape, np.uint32) for _ in range(4)))


@dataclass(frozen=True, slots=True)
class Panes:
    """What the votes of the single panes say; K panes, oldest first. Made by `detector.analysis.panes`.

    Attributes:
        exits: shape (K, E): votes on each exit, of everybody.
        voters: shape (K,): peers with two votes or more in the pane.
        agreement, agreement_squares: shape (K,): sums over them of the share of same exits among the pairs of
            their votes, and of its square.
        far_tried, far_same: shape (P,): pairs of a peer's votes that lie a whole pane apart at least, and
            those of them on the same exit.
    """

    exits: NDArray[np.float64]
    voters: NDArray[np.float64]
    agreement: NDArray[np.float64]
    agreement_squares: NDArray[np.float64]
    far_tried: NDArray[np.float64]
    far_same: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PredictorTrials:
    """One predictor of the tunnel address alone, tried for one rule: one trial a person, on its busiest exit.

    Attributes:
        predictor: its name.
        rule: where the rule stands, for people; empty where nobody knows.
        tried, hit: persons.
        chance: hits that independent exits would give, as a share of `tried`.
        hypotheses: how many forms were tried to find the one that fits best (free offsets), for Bonferroni.
        flagged: shape (P,), bool: whose exit it names; None where it is not told (it does not hold).
    """

    predictor: str
    rule: str
    tried: int
    hit: int
    chance: float
    hypotheses: int = 1
    flagged: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of the flows: the ground of the coverage.

    Attributes:
        seen: translated flows of peers that were counted.
        lost: flows that a full table refused.
        unattributed: flows that came in by a WireGuard interface and belong to no peer that is known.
        unmeasured: flows among those seen that a full memory let nothing be found out of.
    """

    seen: int = 0
    lost: int = 0
    unattributed: int = 0
    unmeasured: int = 0


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
        class_votes: shape (n, classes): the votes of each pair by `FlowClass`; they add up to `votes`.
        vote_sandwiches: shape (P, classes, lags): the place is the relay, by class of flow.
        return_sandwiches: shape (P, lags): the place is a destination.
        lone_returns: shape (P, lags): returns to a destination where nobody else was meanwhile: no control.
        sessions: shape (P,): sessions that began.
        untranslated_global, untranslated_private: shape (P,): flows that left the relay by another interface
            than a tunnel with the peer's own address; by whether the internet can route it.
        untracked: shape (P,): packets that did so without a conntrack entry.
        port_blocks: shape (P,), uint64: bit b is set where a source port was changed to one of the 1,024 from
            b * 1024 on.
        predictor_trials: the predictors of the tunnel address alone; None where they come as `predicted`.
        panes: the votes by pane, None where nobody keeps them.
        rules_say: what the rules by themselves deserve to be called, where they are understood: `pinned` for
            a choice by the source alone, `destination_linked` for one by source and destination. What lasts
            by rule needs no second session to be seen to last.
        seconds: how long ago the oldest of the counts began, None where nobody knows.
    """

    family: Family
    peers: int
    exits: tuple[Address, ...]
    pool: NDArray[np.int32]
    pool_sizes: tuple[int, ...]
    peer: Counts
    exit: Counts
    flows: ManyCounts
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
    class_votes: Counts | None = None
    vote_sandwiches: Sandwiches | None = None
    return_sandwiches: Sandwiches | None = None
    lone_returns: Trials | None = None
    sessions: Counts | None = None
    untranslated_global: ManyCounts | None = None
    untranslated_private: ManyCounts | None = None
    untracked: ManyCounts | None = None
    port_blocks: NDArray[np.uint64] | None = None
    predictor_trials: tuple[PredictorTrials, ...] | None = None
    panes: Panes | None = None
    rules_say: frozenset[Verdict] = frozenset()
    seconds: float | None = None
