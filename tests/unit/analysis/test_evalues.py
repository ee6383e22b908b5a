# SPDX-License-Identifier: Apache-2.0
"""Evidence on cases small enough to know."""

from __future__ import annotations

import math

import numpy as np

from detector.analysis.anonymity import alone
from detector.analysis.columns import columns_of
from detector.analysis.consistency import consistency_of, population_of
from detector.analysis.evalues import flag, pinned_evidence, trial_evidence
from tools.simulated_relays import MAPPINGS, relay, traffic


def test_flagging_follows_the_rule() -> None:
    """e-BH flags the k largest for the largest k that passes, and nobody where none does."""
    log_e = np.log(np.array([1e9, 400.0, 210.0, 0.5]))
    assert flag(log_e, among=4).tolist() == [True, True, True, False]
    assert flag(np.log(np.array([390.0, 1.0, 1.0, 1.0])), among=4).tolist() == [False] * 4
    assert not flag(np.array([]), among=0).any()


def test_evidence_tends_to_the_plain_formula() -> None:
    """In a large population, evidence is that of docs/leak-modes.md §5, which takes exit shares as known."""
    rng = np.random.default_rng(3)
    columns = columns_of(relay(rng, MAPPINGS["random"], 8, traffic(rng, 20_000, 6, 10**6)))
    population = population_of(columns, consistency_of(columns, columns.votes, columns.peer_votes))
    log_e = pinned_evidence(columns, population)
    shares = population.shares / population.voters[0]
    for peer in range(5):
        rows = columns.peer == peer
        plain = math.lgamma(0.1) - math.lgamma(0.1 + columns.peer_votes[peer])
        for exit_, votes in zip(columns.exit[rows], columns.votes[rows], strict=True):
            q = float(shares[exit_])
            plain += math.lgamma(0.1 * q + votes) - math.lgamma(0.1 * q) - votes * math.log(q)
        assert abs(float(log_e[peer]) - plain) < 0.05


def test_evidence_is_fair_on_average() -> None:
    """Without a leak the mean of the e-values does not exceed one: that is what makes them e-values."""
    rng = np.random.default_rng(3)
    tried = rng.integers(1, 30, 200_000).astype(np.float64)
    true = rng.binomial(tried.astype(np.int64), 0.1).astype(np.float64)
    e = np.exp(trial_evidence(tried, true, np.full(tried.size, 0.1)))
    assert e.mean() < 1.2


def test_consistency_is_the_share_of_equal_pairs() -> None:
    """The unbiased sum is the share of equal pairs of votes, counted one by one."""
    rng = np.random.default_rng(5)
    flows = traffic(rng, 1, 9, 10**6)
    made = MAPPINGS["random"](rng, flows, 3)
    columns = columns_of(relay(np.random.default_rng(5), lambda *_: made, 3, flows))
    said = consistency_of(columns, columns.votes, columns.peer_votes)[0]
    pairs = [made.exit[i] == made.exit[j] for i in range(9) for j in range(i)]
    assert said == np.mean(pairs)


def test_alone_by_chance_is_expected() -> None:
    """Peers pinned at random leave as many alone as the formula says, and that is no finding."""
    rng = np.random.default_rng(8)
    columns = columns_of(relay(rng, MAPPINGS["jhash"], 400, traffic(rng, 300, 6, 10**6)))
    found = alone(columns, columns.judged)
    assert abs(found.count - found.expected) < 40
    assert found.log_p > math.log(0.01)
