# SPDX-License-Identifier: Apache-2.0
"""Sign tests, long lags and bounds, against figures that are reckoned another way."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from detector.analysis.bits import mutual_information
from detector.analysis.bounds import LARGEST_MISSED, bounds_of
from detector.analysis.controls import LOG_NEEDED, sign_evidence
from detector.analysis.evalues import flag
from detector.analysis.evidence import weigh
from detector.analysis.panes import far_agreement, panes_of
from detector.analysis.verdict import judge_family
from detector.base.verdicts import Verdict
from tools.simulated_relays import MAPPINGS, relay, traffic


@pytest.mark.parametrize("even", [0.5, 0.7])
def test_the_sign_evidence_is_an_e_value(even: float) -> None:
    """Its mean under chance, summed over every outcome in whole numbers, is one, and below it for less."""
    for chance in (even, even - 0.1):
        mean = Fraction(0)
        for mine in range(13):
            weight = (
                Fraction(math.comb(12, mine)) * Fraction(chance) ** mine * Fraction(1 - chance) ** (12 - mine)
            )
            mean += weight * Fraction(float(np.exp(sign_evidence(mine, 12 - mine, even))))
        assert float(mean) == pytest.approx(1.0, abs=1e-9) if chance == even else float(mean) < 1


def test_the_sign_evidence_by_hand() -> None:
    """Nine of nine are not enough for a relay, fifteen are; as many on either side are never."""
    by_hand = np.mean([((0.5 + 0.5 * better) / 0.5) ** 9 for better in (0.1, 0.3, 0.6, 0.9)])
    assert float(sign_evidence(9, 0)) == pytest.approx(math.log(by_hand))
    assert float(sign_evidence(9, 0)) < LOG_NEEDED < float(sign_evidence(15, 0))
    assert float(sign_evidence(500, 500)) < 0


def test_e_bh_against_trying_every_number() -> None:
    """The largest k of which each has P / (level k), by trying all of them."""
    rng = np.random.default_rng(4)
    for _ in range(50):
        log_e = rng.normal(2, 4, 40)
        best: set[int] = set()
        for k in range(1, 41):
            top = np.argsort(-log_e)[:k]
            if np.exp(log_e[top]).min() >= 40 / (0.01 * k):
                best = set(top.tolist())
        assert set(np.flatnonzero(flag(log_e, 40)).tolist()) == best


def test_far_pairs_by_counting_them() -> None:
    """Pairs of votes that lie two panes apart or more, one by one."""
    rng = np.random.default_rng(6)
    votes = [(int(rng.integers(6)), int(rng.integers(4)), int(rng.integers(3))) for _ in range(120)]
    triples, count = np.unique(np.array(votes), axis=0, return_counts=True)
    pane_, peer_, exit__ = triples.T.astype(np.intp)
    made = panes_of(pane_, peer_, exit__, count.astype(np.float64), (6, 4, 3))
    tried, same = np.zeros(4), np.zeros(4)
    for number, (pane, peer, exit_) in enumerate(votes):
        for other, who, again in votes[:number]:
            if who == peer and abs(pane - other) >= 2:
                tried[peer] += 1
                same[peer] += exit_ == again
    assert (made.far_tried.tolist(), made.far_same.tolist()) == (tried.tolist(), same.tolist())


def test_far_agreement_is_corrected_for_what_all_share() -> None:
    """One exit for everybody in each pane, drawn anew with each: nothing; an exit for each peer: all."""
    pane, peer = (one.ravel() for one in np.meshgrid(np.arange(8), np.arange(30), indexing="ij"))
    everybody = np.ones(30, bool)
    shared = np.random.default_rng(2).integers(0, 8, 8)[pane]
    ones = np.ones(pane.size)
    both = far_agreement(panes_of(pane, peer, shared, ones, (8, 30, 8)), everybody)
    assert abs(both.kappa) < 1e-9
    own = far_agreement(panes_of(pane, peer, peer % 8, ones, (8, 30, 8)), everybody)
    assert own.kappa == pytest.approx(1.0)


def test_the_variance_of_agreement_is_that_of_a_simulation() -> None:
    """Of the relay's mean over 400 relays, within three percent and its own error."""
    found, said = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        evidence = weigh(relay(rng, MAPPINGS["random"], 16, traffic(rng, 60, 12, 10**6, sessions=2)))
        found.append(evidence.any.observed)
        said.append(evidence.any.variance / evidence.any.peers)
    assert np.var(found) == pytest.approx(np.mean(said), rel=0.03 + 3 * math.sqrt(2 / 400))


def test_mutual_information_of_one_and_none() -> None:
    """All keep: the entropy of the exits; none: nothing."""
    shares = np.array([0.5, 0.25, 0.25])
    assert mutual_information(1.0, shares) == pytest.approx(1.5)
    assert mutual_information(0.0, shares) == 0.0
    assert 0 < mutual_information(0.5, shares) < 0.75


def test_unlinkable_keeps_to_its_bound() -> None:
    """With fewer and fewer flows, the bound grows, and the verdict goes where it passes five percent."""
    before = 0.0
    for flows in (60, 30, 16, 10, 7, 5):
        rng = np.random.default_rng(3)
        observation = relay(rng, MAPPINGS["random"], 16, traffic(rng, 60, flows, 18, sessions=3))
        bounds, report = bounds_of(weigh(observation)), judge_family(observation)
        assert bounds.largest >= before - 0.02
        assert (report.verdict is Verdict.UNLINKABLE) == (bounds.largest <= LARGEST_MISSED)
        before = bounds.largest
    assert before > LARGEST_MISSED
    assert judge_family(replace(observation, seconds=600.0)).seconds_to_go is not None
