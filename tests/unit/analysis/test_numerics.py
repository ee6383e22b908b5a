# SPDX-License-Identifier: Apache-2.0
"""The numerics against the standard library and against exact sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detector.analysis.numerics import (
    detectable_mean,
    log_binomial_tail,
    log_gamma,
    log_mean_tail,
    log_rising,
)


def test_log_gamma_is_exact_enough() -> None:
    """From eight on, Stirling's series agrees with the standard library."""
    x = np.array([8.0, 8.1, 9.5, 30.0, 1e3, 1e6, 1e9])
    assert log_gamma(x) == pytest.approx([math.lgamma(value) for value in x], rel=1e-12)


@pytest.mark.parametrize("x", [1e-20, 1e-6, 0.1, 3.3, 700.0])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 40, 512])
def test_log_rising_is_the_product(x: float, n: int) -> None:
    """The rising factorial is the product of its factors, also where x is tiny or n is large."""
    expected = math.fsum(math.log(x + k) for k in range(n))
    said = log_rising(np.full((2, 2), x), np.full((2, 2), float(n)))
    assert said.shape == (2, 2)
    assert said[0, 0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("trials", "hits", "chance"), [(5, 5, 1 / 60), (90, 8, 0.05), (30, 29, 0.5)])
def test_the_binomial_bound_bounds(trials: int, hits: int, chance: float) -> None:
    """The bound is never below the exact tail."""
    exact = sum(
        math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(hits, trials + 1)
    )
    assert math.log(exact) <= log_binomial_tail(trials, hits, chance) + 1e-9
    assert log_binomial_tail(trials, trials * chance / 2, chance) == 0


def test_detectable_is_the_inverse_of_the_tail() -> None:
    """An excess that is just detectable has a tail of just the level."""
    excess = detectable_mean(40, 0.02, math.log(0.002))
    assert log_mean_tail(40, excess, 0.02) == pytest.approx(math.log(0.002))
    assert detectable_mean(0, 0.02, -5) == math.inf
