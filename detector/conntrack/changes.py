# SPDX-License-Identifier: Apache-2.0
"""Whether everybody's exit was drawn anew at one moment: rules loaded again, not sessions that end.

Peers that keep their exit and get another one at the same moment, once, look like peers whose sessions ended
there, above all where nobody had traffic for a while. One such moment is no proof of a new draw for each
session, so what came before it is left out; only a second one shows that sessions decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.conntrack.votes import Votes

_FEWEST = 5  # peers that have votes on both sides
_MOST_MOVED = 0.6  # of them get another exit; with few exits some meet their old one again
_MOST_ELSEWHERE = 0.2  # of all moves are at other moments


@dataclass(frozen=True, slots=True)
class Change:
    """A moment at which exits were drawn anew.

    Attributes:
        time: seconds; the change is before it.
        moved: peers that have another exit afterwards.
        of: peers with votes on both sides.
    """

    time: float
    moved: int
    of: int


def drawn_anew_once(votes: Votes) -> Change | None:
    """The one moment at which the peers' exits were drawn anew, if that is what happened.

    Args:
        votes: of one family, in the order of time or against it.
    """
    before, after, moved = _steps(votes)
    moves = int(np.count_nonzero(moved))
    if moves < _FEWEST:
        return None
    at = _busiest_moment(before[moved], after[moved])
    spanning = (before < at) & (after >= at)
    here, of = int(np.count_nonzero(spanning & moved)), int(np.count_nonzero(spanning))
    if of < _FEWEST or here < _MOST_MOVED * of or moves - here > _MOST_ELSEWHERE * moves:
        return None
    return Change(at, here, of)


def _steps(votes: Votes) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """From each vote of a peer to its next: the two times, and whether the exit is another."""
    timed = votes.take(~np.isnan(votes.time))
    order = np.lexsort((timed.time, timed.row))
    row, exit_, time = timed.row[order], timed.exit_id[order], timed.time[order]
    same = row[1:] == row[:-1]
    return time[:-1][same], time[1:][same], (exit_[1:] != exit_[:-1])[same]


def _busiest_moment(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """The moment that most spans hold; a span holds what is after its beginning, up to its end."""
    ends = np.unique(after)
    begun = np.searchsorted(np.sort(before), ends, side="left")
    over = np.searchsorted(np.sort(after), ends, side="left")
    return float(ends[np.argmax(begun - over)])
