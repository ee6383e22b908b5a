# SPDX-License-Identifier: Apache-2.0
"""Which peers leak: e-values, which stay valid however often one looks, and e-BH (docs/leak-modes.md §5)."""

from __future__ import annotations

import numpy as np

from detector.analysis.columns import Columns, Mask
from detector.analysis.consistency import PRIOR, Population
from detector.analysis.numerics import Floats, log_rising, sums

CONCENTRATION = 0.1  # a: a peer that is pinned has nearly all of its votes on few exits
FALSE_DISCOVERIES = 0.01
_CHUNK = 1 << 18  # pairs (or peers) at a time, at least: bounds the memory
_BETTER = np.array([0.1, 0.25, 0.5, 0.8, 0.99])  # shares of trials that may be more than chance


def pinned_evidence(columns: Columns, population: Population) -> Floats:
    """``log E_i`` that peer i is pinned, shape (P,); -inf where the peer is not judged.

    The formula of docs/leak-modes.md §5 with one change: the exit shares q of the others are not taken as
    known, but as a Dirichlet that is worth `Population.effective` votes, so that

        log E = log DM(v; a q) - log DM(v; A q),   log DM(v; x) = sum_e (x_e)_{v_e} - (sum x)_{V}

    with rising factorials (x)_n. For a large population the second term tends to ``sum v log q``, the formula
    as written; for a handful of peers it keeps an unseen exit from looking like a miracle. Votes are
    compared within each group of exits.
    """
    _, total = _others(population)
    votes = columns.cell_votes
    whole = total[columns.cell_group]
    log_e = columns.over_cells(
        log_rising(whole, votes) - log_rising(np.full(votes.shape, CONCENTRATION), votes)
    )
    chunk = max(_CHUNK, columns.peers)  # each adds P sums, so that the whole stays linear
    for begin in range(0, columns.peer.size, chunk):
        _add_gains(log_e, columns, population, slice(begin, begin + chunk))
    log_e[~columns.judged] = -np.inf
    return log_e


def _add_gains(log_e: Floats, columns: Columns, population: Population, rows: slice) -> None:
    """Add what these pairs say, ``log (a q)_v - log (A q)_v``, to the evidence of their peers."""
    peer, exit_, votes = columns.peer[rows], columns.exit[rows], columns.votes[rows]
    group = columns.group[exit_]
    weight, total = _others(population)
    others = population.voters - 1
    each = np.divide(weight, others, out=np.zeros_like(weight), where=others > 0)
    own = np.maximum(columns.cell_votes[columns.cell[rows]], 1)
    alpha = np.maximum(population.shares[exit_] - votes / own, 0.0)
    alpha *= each[group]
    alpha += (PRIOR / columns.group_sizes)[group]
    gain = log_rising(alpha * (CONCENTRATION / total)[group], votes)
    gain -= log_rising(alpha, votes)
    log_e += sums(peer, gain, columns.peers)


def pinned_evidence_at_most(columns: Columns, population: Population) -> Floats:
    """``log E_i`` that peer i would have, were all its votes on one typical exit (share c0): its power."""
    _, total = _others(population)
    votes = columns.cell_votes
    typical, whole = population.same[columns.cell_group], total[columns.cell_group]
    rise = log_rising(typical * CONCENTRATION, votes) - log_rising(typical * whole, votes)
    fall = log_rising(np.full(votes.shape, CONCENTRATION), votes) - log_rising(whole, votes)
    log_e = columns.over_cells(rise - fall)
    log_e[~columns.judged] = -np.inf
    return log_e


def _others(population: Population) -> tuple[Floats, Floats]:
    """Votes that the other peers are worth, and with the prior, each of shape (G,)."""
    voters = np.maximum(population.voters, 1)
    weight = population.effective * (voters - 1) / voters
    return weight, weight + PRIOR


def trial_evidence(tried: Floats, true: Floats, chance: Floats) -> Floats:
    """``log E_i`` that trials come true more often than `chance`, each of shape (P,); -inf without trials.

    A mixture of likelihood ratios against alternatives above the chance, hence an e-value.
    """
    log_e = np.empty(len(tried))
    for begin in range(0, len(tried), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        log_e[rows] = _trial_evidence(tried[rows], true[rows], chance[rows])
    return log_e


def _trial_evidence(tried: Floats, true: Floats, chance: Floats) -> Floats:
    usable = (tried > 0) & (chance < 1 - 1e-9)
    base = np.where(usable, np.maximum(chance, 1e-30), 0.5)[:, None]
    better = base + (1 - base) * _BETTER
    ratios = true[:, None] * np.log(better / base)
    ratios += (tried - true)[:, None] * np.log1p((base - better) / (1 - base))
    log_e: Floats = np.logaddexp.reduce(ratios, axis=1) - np.log(len(_BETTER))
    log_e[~usable] = -np.inf
    return log_e


def flag(log_e: Floats, among: int, level: float = FALSE_DISCOVERIES) -> Mask:
    """e-BH (Wang and Ramdas 2022): the k largest, for the largest k with E_(k) >= among / (level k).

    Args:
        log_e: shape (P,).
        among: how many of them are hypotheses at all.
        level: share of false discoveries among the flagged ones.
    """
    flagged = np.zeros(len(log_e), bool)
    rows = np.flatnonzero(log_e >= np.log(1 / level))  # no smaller one can pass, since k <= among
    order = rows[np.argsort(-log_e[rows], kind="stable")]
    needed = np.log(max(among, 1) / level) - np.log(np.arange(1, len(order) + 1))
    passed = np.flatnonzero(log_e[order] >= needed)
    if passed.size:
        flagged[log_e >= log_e[order[passed[-1]]]] = True  # ties belong together
    return flagged


def log_threshold(among: int, share: float, level: float = FALSE_DISCOVERIES) -> float:
    """What `flag` asks of each when `share` of them leak."""
    return float(np.log(among / (level * max(1.0, share * among)))) if among else float("inf")
