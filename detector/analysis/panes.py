# SPDX-License-Identifier: Apache-2.0
"""Votes by pane: what lies far apart, how much a pane agrees with itself, and whether that has jumped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.analysis.columns import Index, Mask
from detector.analysis.numerics import Floats, sums
from detector.analysis.observation import Panes

FAR = 2  # panes between votes that are far apart: one whole pane lies between them
_LATE = 3  # panes within which a silent change shows
_JUMP = 0.3  # of k between early and late panes
_SIGMAS = 4.5
_FEWEST = 5  # peers with two votes in a pane, early and late


def panes_of(pane: Index, peer: Index, exit_: Index, votes: Floats, shape: tuple[int, int, int]) -> Panes:
    """The panes of a window from its counts; linear in them but for one sort.

    Args:
        pane: shape (m,): 0 is the oldest.
        peer: shape (m,).
        exit_: shape (m,); each triple once.
        votes: shape (m,).
        shape: K panes, P peers, E exits.
    """
    count, peers, exits = shape
    kept = votes > 0
    pane, peer, exit_, votes = pane[kept], peer[kept], exit_[kept], votes[kept]
    order = np.lexsort((pane, exit_, peer))
    pane, peer, exit_, votes = pane[order], peer[order], exit_[order], votes[order]
    pair = peer * max(exits, 1) + exit_
    near = _near(pair, pane, votes)
    _, begins = np.unique(pair, return_index=True)
    of_pair = np.add.reduceat(votes, begins) if begins.size else votes
    far_same = sums(peer[begins], of_pair**2, peers) - sums(peer, near, peers)
    cell, where = np.unique(peer * count + pane, return_inverse=True)
    cell_votes = sums(where.reshape(-1).astype(np.intp), votes, cell.size)
    cell_peer, cell_pane = cell // max(count, 1), cell % max(count, 1)
    total = sums(cell_peer, cell_votes, peers)
    far_tried = total**2 - sums(cell_peer, _near(cell_peer, cell_pane, cell_votes), peers)
    same = sums(where.reshape(-1).astype(np.intp), votes * (votes - 1), cell.size)
    several = cell_votes > 1
    share = same[several] / (cell_votes * (cell_votes - 1))[several]
    at = cell_pane[several]
    return Panes(
        exits=sums(pane * max(exits, 1) + exit_, votes, count * exits).reshape(count, exits),
        voters=np.bincount(at, minlength=count).astype(np.float64),
        agreement=sums(at, share, count),
        agreement_squares=sums(at, share * share, count),
        far_tried=far_tried / 2,
        far_same=far_same / 2,
    )


def _near(key: Index, pane: Index, votes: Floats) -> Floats:
    """Ordered pairs of votes of one key less than `FAR` panes apart, by row; keys, then panes, ascend."""
    near = votes * votes
    following = np.flatnonzero((key[1:] == key[:-1]) & (pane[1:] - pane[:-1] < FAR))
    near[following] += 2 * votes[following] * votes[following + 1]
    return near


@dataclass(frozen=True, slots=True)
class Far:
    """Agreement of votes that are far apart, over some peers, with that of different peers taken off.

    Attributes:
        kappa: chance-corrected, the mean over the peers.
        error: its standard error.
        peers: how many have such votes.
    """

    kappa: float
    error: float
    peers: int


def far_agreement(panes: Panes, who: Mask) -> Far:
    """How far the peers of `who`, shape (P,), keep their exits over panes.

    Chance is how often votes of different peers, as far apart, meet: what everybody shares drops out.
    """
    votes = panes.exits.astype(np.float64)
    each, total = votes.sum(axis=0), votes.sum(axis=1)
    same = float((each * each).sum() - _near_panes(votes).sum() - 2 * panes.far_same.sum())
    pairs = float(total.sum() ** 2 - _near_panes(total[:, None]).sum() - 2 * panes.far_tried.sum())
    tried = who & (panes.far_tried > 0)
    count = int(np.count_nonzero(tried))
    if not count or pairs <= 0:
        return Far(0.0, np.inf, 0)
    chance = min(max(same / pairs, 0.0), 1.0)
    if chance >= 1 - 1e-9:
        return Far(0.0, np.inf, 0)
    kappa = (panes.far_same[tried] / panes.far_tried[tried] - chance) / (1 - chance)
    spread = float(kappa.var()) + 1 / count**2
    return Far(float(kappa.mean()), float(np.sqrt(spread / count)), count)


def _near_panes(votes: Floats) -> Floats:
    near = (votes * votes).sum(axis=0)
    near += 2 * (votes[1:] * votes[:-1]).sum(axis=0)
    result: Floats = near
    return result


def drifts(panes: Panes) -> bool:
    """Whether the exits of everybody are others in some panes than in others."""
    votes = panes.exits.astype(np.float64)
    total = votes.sum(axis=1)
    filled = total >= _FEWEST
    if np.count_nonzero(filled) < 2:
        return False
    votes, total = votes[filled], total[filled]
    shares = votes.sum(axis=0) / total.sum()
    used = shares > 0
    expected = total[:, None] * shares[used]
    freedom = (len(total) - 1) * (np.count_nonzero(used) - 1)
    if not freedom:
        return False
    square = float((((votes[:, used] - expected) ** 2) / expected).sum())
    return bool(square / freedom > 3.0)  # votes of one peer hang together, so mere significance is nothing


def jumped(panes: Panes) -> float | None:
    """By how much k has jumped within the last panes; None where it has not, or nobody can tell."""
    votes = panes.exits.astype(np.float64)
    total = votes.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = ((votes**2).sum(axis=1) - total) / (total * (total - 1))
        observed = panes.agreement / panes.voters
        spread = np.maximum(panes.agreement_squares / panes.voters - observed**2, 0.0)
        kappa = (observed - chance) / (1 - chance)
        error = (spread + 1 / panes.voters) / panes.voters / (1 - chance) ** 2
    able = (panes.voters >= _FEWEST) & np.isfinite(kappa) & (chance < 0.9)
    found = np.flatnonzero(able)
    best: tuple[float, float] | None = None
    for cut in range(max(len(found) - _LATE, 1), len(found)):
        early, late = _level(kappa, error, found[:cut]), _level(kappa, error, found[cut:])
        jump = late[0] - early[0]
        sigmas = abs(jump) / max((early[1] + late[1]) ** 0.5, 1e-9)
        if abs(jump) >= _JUMP and sigmas >= _SIGMAS and (best is None or sigmas > best[0]):
            best = sigmas, jump
    return None if best is None else best[1]


def _level(kappa: Floats, error: Floats, panes: NDArray[np.intp]) -> tuple[float, float]:
    """Mean k of some panes, and the square of its error."""
    weight = 1 / error[panes]
    return float((kappa[panes] * weight).sum() / weight.sum()), float(1 / weight.sum())
