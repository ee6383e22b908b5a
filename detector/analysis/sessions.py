# SPDX-License-Identifier: Apache-2.0
"""Whether a peer's exit outlives its session: the first exits of sessions tell (docs/leak-modes.md §5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.analysis.columns import Columns, Mask
from detector.analysis.consistency import Contrast, Population, consistency_of, pair_contrast
from detector.analysis.numerics import Floats

_FEWEST = 3  # peers with two sessions: below that, sessions say nothing
_LEAST_SHARE = 0.25  # of the peers in question
_STAYS = 0.5  # k over first exits from which a peer counts as keeping its exit
_VOTES_TO_EXPECT = 5.0
_LOG_LIKELY = float(np.log(0.05))


@dataclass(frozen=True, slots=True)
class Sessions:
    """What the sessions of some peers say.

    Attributes:
        all: the contrast over the first exits of all judged peers.
        some: the same over the peers in question.
        asked, judged: how many peers are in question, and how many are judged.
        moved: shape (P,): peers in question whose sessions never began on the same exit twice.
    """

    all: Contrast
    some: Contrast
    asked: int
    judged: int
    moved: Mask

    def contradict(self, agreement: float, log_level: float) -> bool:
        """Whether the exits are re-drawn with each session, so that no peer keeps one over sessions.

        Args:
            agreement: k of the relay over votes. First exits that agree much less, where so much would have
                shown, mean that what agrees are the votes within a session.
            log_level: of the test that first exits agree at all.
        """
        if self.all.log_p <= log_level or (self.some.kappa or 0.0) >= _STAYS:
            return False
        return self._enough_of_some() or self._less_than(agreement)

    def _enough_of_some(self) -> bool:
        """Whether enough of the peers in question had a second session, and kept no exit over it."""
        return self.some.peers >= max(_FEWEST, _LEAST_SHARE * self.asked)

    def _less_than(self, agreement: float) -> bool:
        """Whether first exits agree less than half as much as votes do, and that would have been seen."""
        enough = self.all.peers >= max(_FEWEST, _LEAST_SHARE * self.judged)
        less = (self.all.kappa or 0.0) < agreement / 2
        return enough and less and self.all.detectable(_LOG_LIKELY) <= agreement


def sessions_of(columns: Columns, population: Population, who: Mask) -> Sessions:
    """What the sessions of the peers `who`, shape (P,), say."""
    persistence = consistency_of(columns, columns.session_starts, columns.peer_firsts)
    totals = columns.peer_firsts

    def over(peers: Mask) -> Contrast:
        return pair_contrast(columns, population, persistence, totals, peers)

    moved = who & (totals > 1) & (persistence == 0)
    asked, judged = int(np.count_nonzero(who)), int(np.count_nonzero(columns.judged))
    return Sessions(over(columns.judged), over(who), asked, judged, moved)


def follow_sessions(columns: Columns, population: Population, who: Mask) -> bool:
    """Whether votes keep to the exits on which sessions began: one exit within a session, for these peers.

    Compares the votes on other exits with how many there would be, were each vote after the first of a
    session a new draw.
    """
    begun = columns.session_starts > 0
    outside = columns.per_peer(columns.votes * ~begun)
    covered: Floats = columns.per_peer(population.smooth[columns.exit] * begun)
    drawn = np.maximum(columns.peer_votes - columns.peer_firsts, 0) * np.maximum(1 - covered, 0)
    several = who & (columns.peer_firsts > 1)
    expected = float(drawn[several].sum())
    return expected >= _VOTES_TO_EXPECT and float(outside[several].sum()) < expected / 4
