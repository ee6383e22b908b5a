# SPDX-License-Identifier: Apache-2.0
"""The mapping of before is remembered for as long as a window, and for those peers that are still there."""

from __future__ import annotations

import numpy as np

from detector.analysis.changes import Outcome
from detector.base.family import Family, pack
from detector.counts.observing import Observed, PoolRanges
from detector.counts.previous_epoch import PreviousEpoch
from detector.counts.roster import Exits, Member, Roster
from tools.simulated_relays import MAPPINGS, relay, traffic

PEERS, POOL = 40, 59
UNTIL = 100.0


def seen(mapping: str, seed: int, flows: int = 12) -> Observed:
    """A made-up relay whose peers are the first rows of a roster."""
    rng = np.random.default_rng(seed)
    made = relay(rng, MAPPINGS[mapping], POOL, traffic(rng, PEERS, flows))
    return Observed(made, np.arange(PEERS))


def roster() -> Roster:
    """Everybody in the slot of their number."""
    table = Roster(Exits())
    table.add([Member(slot, Family.IPV4, False, f"peer{slot}", {}) for slot in range(PEERS)])
    return table


def pools() -> list[PoolRanges]:
    """The pool of the made-up relay."""
    exits = seen("jhash", 1).observation.exits
    return [PoolRanges(Family.IPV4, POOL, ((pack(exits[0]), pack(exits[-1])),))]


def remembered() -> PreviousEpoch:
    """What an epoch with a mapping left."""
    before = PreviousEpoch()
    before.remember([seen("jhash", 1)], roster(), pools(), 1, UNTIL)
    return before


def outcome(before: PreviousEpoch, mapping: str, seed: int, now: float = 0.0) -> Outcome | None:
    """What is said of the rules that this mapping stands for."""
    told = before.compare([seen(mapping, seed)], roster(), pools(), 2, now)
    return told[Family.IPV4].outcome if Family.IPV4 in told else None


def test_the_first_rules_changed_nothing() -> None:
    """Without anything before there is nothing to say."""
    assert outcome(PreviousEpoch(), "jhash", 1) is None


def test_an_epoch_is_compared_with_the_one_before() -> None:
    """The same mapping is kept, another is drawn anew, and each peer is remembered once."""
    before = remembered()
    assert len(before) == PEERS
    assert outcome(before, "jhash", 1) is Outcome.KEPT
    assert outcome(before, "jhash", 2) is Outcome.REDRAWN


def test_an_epoch_without_evidence_is_passed_over() -> None:
    """Rules that are loaded twice in a row are compared with what was seen before both."""
    before = remembered()
    before.remember([seen("jhash", 2, flows=1)], roster(), pools(), 2, UNTIL)
    assert outcome(before, "jhash", 1) is Outcome.KEPT


def test_slots_of_others_are_let_go() -> None:
    """A slot that stands for another peer is not compared."""
    before = remembered()
    before.release(range(10))
    assert len(before) == PEERS - 10
    told = before.compare([seen("jhash", 1)], roster(), pools(), 2, 0.0)
    assert told[Family.IPV4].peers == PEERS - 10


def test_it_is_forgotten_with_the_window() -> None:
    """When the window has passed, nobody's exit of before is held; what was said of all of them stands."""
    before = remembered()
    assert outcome(before, "jhash", 2) is Outcome.REDRAWN
    assert outcome(before, "jhash", 1, UNTIL) is Outcome.REDRAWN
    assert len(before) == 0
