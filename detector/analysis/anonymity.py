# SPDX-License-Identifier: Apache-2.0
"""How many peers share an exit, and whether some are alone on one more often than chance has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.analysis.columns import Columns, Mask
from detector.analysis.numerics import Floats, log_rising

_HUGE = 1e12  # from this pool size on, collisions are too rare to count


@dataclass(frozen=True, slots=True)
class AnonymitySets:
    """Over the exits in use.

    Attributes:
        least, median: peers on an exit.
        effective_least, effective_median: 2^H(peer | exit), by flows: the size that a set of equally busy
            peers would have.
    """

    least: int
    median: float
    effective_least: float
    effective_median: float


def anonymity_sets(columns: Columns) -> AnonymitySets | None:
    """The anonymity sets of the exits in use, None without any."""
    used = columns.occupants > 0
    if not used.any():
        return None
    flows = columns.per_exit(columns.flows)
    entropy = columns.per_exit(columns.flows * np.log2(columns.flows))
    single = used & (flows > 0)
    bits = np.log2(flows[single]) - entropy[single] / flows[single]
    effective = np.exp2(bits) if single.any() else np.array([0.0])
    peers = columns.occupants[used]
    return AnonymitySets(
        int(peers.min()), float(np.median(peers)), float(effective.min()), float(np.median(effective))
    )


@dataclass(frozen=True, slots=True)
class Alone:
    """Peers that are alone on an exit that is theirs.

    Attributes:
        peers: shape (P,).
        expected: how many chance would leave alone.
        log_p: bound on the log-probability of so many, in the pool where it is smallest, pools counted.
    """

    peers: Mask
    expected: float
    log_p: float

    @property
    def count(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.peers))


def alone(columns: Columns, keeps: Mask) -> Alone:
    """Peers of `keeps`, shape (P,), whose exits nobody else uses; ``P (1 - 1/N)^(P-1)`` expected a pool."""
    shared = columns.per_peer((columns.occupants[columns.exit] > 1).astype(np.float64)) > 0
    peers = keeps & ~shared & (columns.peer_flows > 0)
    group = columns.group_flows.argmax(axis=1)
    present = np.count_nonzero(columns.group_flows, axis=0)
    expected, log_p = 0.0, 0.0
    for number, size in enumerate(columns.group_sizes):
        inside = group == number
        candidates = int(np.count_nonzero(keeps & inside))
        found = int(np.count_nonzero(peers & inside))
        chance = candidates * np.exp((present[number] - 1) * np.log1p(-1 / size)) if size > 1 else 0.0
        expected += float(chance)
        if found > chance:
            log_p = min(log_p, _log_tail(found, candidates, int(present[number]), float(size)))
    return Alone(peers, expected, min(log_p + float(np.log(columns.groups)), 0.0))


def _log_tail(found: int, candidates: int, present: int, size: float) -> float:
    """Bound on log P(at least `found` of the candidates alone), peers falling on exits by uniform chance.

    Markov's inequality on the factorial moments, the best of them: with S alone,
    P(S >= s) <= E[C(S, m)] / C(s, m), and m given peers are alone with probability
    ``N (N-1) ... (N-m+1) / N^m (1 - m/N)^(P-m)``.
    """
    if size > _HUGE:
        return 0.0
    most = int(min(found, size - 1 if present > size else size))
    if most < 1:
        return 0.0
    moments = np.unique(np.linspace(1, most, min(most, 512)).astype(np.int64)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (present - moments) * np.log1p(-moments / size)
    left[moments >= present] = 0.0
    apart = _log_falling(size, moments) - moments * np.log(size)
    ways = _log_falling(float(candidates), moments) - _log_falling(float(found), moments)
    return min(float(np.min(ways + apart + left)), 0.0)


def _log_falling(top: float, count: Floats) -> Floats:
    """Log of top (top - 1) ... (top - count + 1), as a rising factorial from its lowest factor."""
    return log_rising(top - count + 1, count)
