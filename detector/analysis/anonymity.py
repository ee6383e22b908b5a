# SPDX-License-Identifier: Apache-2.0
"""How many peers share an exit, and whether some are alone on one more often than chance has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.analysis.columns import Columns, Index, Mask
from detector.analysis.numerics import Floats, log_rising

_HUGE = 100.0  # exits for each pair of peers, from which to be alone is a fact: no two meet by chance
_EVEN = 1e6


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
    """Peers of `keeps`, shape (P,), whose exits nobody else uses.

    Chance is a home for each of them, dealt with the unevenness that all the homes show: a rare exit has few
    peers by itself. Only exits of known pools are tested: of others nobody can tell how many were never met.
    """
    shared = columns.per_peer((columns.occupants[columns.exit] > 1).astype(np.float64)) > 0
    home = _homes(columns)
    keeps = keeps & (home >= 0)
    group = np.full(columns.peers, -1, np.intp)
    group[keeps] = columns.group[home[keeps]]
    tested = keeps & (group < len(columns.pool_sizes))
    peers = tested & ~shared
    expected, log_p = 0.0, 0.0
    numbers = np.unique(group[tested])
    for number in numbers:
        size = float(columns.group_sizes[number])
        inside = tested & (group == number)
        found = int(np.count_nonzero(peers & inside))
        if size < 2:
            continue
        homes = _Homes(int(np.count_nonzero(inside)), size, _evenness(home[inside], size))
        expected += homes.expected
        if found and size >= _HUGE * homes.peers**2:
            log_p = -np.inf
        elif found > homes.expected:
            log_p = min(log_p, homes.log_tail(found))
    return Alone(peers, expected, min(log_p + float(np.log(max(numbers.size, 1))), 0.0))


def _homes(columns: Columns) -> Index:
    """The exit with most flows of each peer, shape (P,), -1 for a peer without any."""
    order = np.argsort(columns.flows, kind="stable")
    home = np.full(columns.peers, -1, np.intp)
    home[columns.peer[order]] = columns.exit[order]  # the last one of a peer stays
    return home


def _evenness(home: Index, size: float) -> float:
    """Concentration of the Dirichlet that the exits' shares seem drawn from; large where they are even."""
    count = np.bincount(home).astype(np.float64)
    peers = count.sum()
    if peers < 2:
        return _EVEN
    met = float((count * (count - 1)).sum() / (peers * (peers - 1)))
    if size * met <= 1 or met >= 1:
        return _EVEN if met < 1 else 1 / size
    return min((1 - met) / (size * met - 1), _EVEN)


@dataclass(frozen=True, slots=True)
class _Homes:
    """Peers dealt to exits with uneven shares: Dirichlet-multinomial, concentration `even` for each exit."""

    peers: int
    size: float
    even: float

    @property
    def expected(self) -> float:
        """How many are alone."""
        return float(np.exp(self._log_moments(np.array([1.0]))[0]))

    def _log_moments(self, moments: Floats) -> Floats:
        """Log of E[C(S, m)], S of them alone: m exits with one each of m peers, and the others elsewhere."""
        peers, size, even = float(self.peers), self.size, self.even
        left = (size - moments) * even
        rest = np.where(left > 0, peers - moments, 0.0)
        apart = log_rising(np.maximum(left, 1e-300), rest)
        apart = np.where((left <= 0) & (peers > moments), -np.inf, apart)
        ways = _log_falling(size, moments) - log_rising(np.ones_like(moments), moments)
        ways = ways + _log_falling(peers, moments) + moments * np.log(even)
        whole = float(log_rising(np.array([size * even]), np.array([peers]))[0])
        result: Floats = ways + apart - whole
        return result

    def log_tail(self, found: int) -> float:
        """Bound on log P(at least `found` alone): Markov's inequality on the factorial moments, the best."""
        most = int(min(found, self.size))
        moments = np.unique(np.linspace(1, most, min(most, 512)).astype(np.int64)).astype(np.float64)
        choose = _log_falling(float(found), moments) - log_rising(np.ones_like(moments), moments)
        return min(float(np.min(self._log_moments(moments) - choose)), 0.0)


def main_groups(columns: Columns) -> Index:
    """The group that has most of each peer's flows, shape (P,), -1 for a peer without any."""
    order = np.argsort(columns.cell_flows, kind="stable")
    group = np.full(columns.peers, -1, np.intp)
    group[columns.cell_peer[order]] = columns.cell_group[order]  # the last one of a peer stays
    return group


def _log_falling(top: float, count: Floats) -> Floats:
    """Log of top (top - 1) ... (top - count + 1), as a rising factorial from its lowest factor."""
    return log_rising(top - count + 1, count)
