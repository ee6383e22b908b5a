# SPDX-License-Identifier: Apache-2.0
"""The little numerics that the evidence needs, on NumPy alone: rising factorials and tail bounds.

SciPy would cost the service more memory than everything else together. All tails are upper bounds on the
true probability (conservative: they err towards "not significant"), and all are natural logarithms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detector.predictors.tails import log_binomial_tail

__all__ = [
    "Floats",
    "detectable_mean",
    "log_binomial_tail",
    "log_gamma",
    "log_mean_tail",
    "log_rising",
    "sums",
]

Floats = NDArray[np.float64]

_DIRECT = 8  # factors multiplied one by one; from there on Stirling's series is exact to 1e-11


def sums(index: NDArray[np.intp], weights: Floats, length: int) -> Floats:
    """Sums of `weights` by `index`, shape (length,): a ``bincount`` that is float whatever it is given."""
    return np.bincount(index, weights, length).astype(np.float64, copy=False)


def log_gamma(x: Floats) -> Floats:
    """``lgamma`` for x >= 8 by Stirling's series (Abramowitz & Stegun 6.1.41), relative error below 1e-13."""
    inverse = 1.0 / x
    square = inverse * inverse
    series = inverse * (
        1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    )
    result: Floats = (x - 0.5) * np.log(x) - x + 0.9189385332046727 + series
    return result


def log_rising(x: Floats, n: Floats) -> Floats:
    """``lgamma(x + n) - lgamma(x)`` elementwise, for x > 0 and whole n >= 0; same shape as the two.

    The first eight factors x (x + 1) ... are multiplied, so a tiny x loses nothing, and the rest is the
    difference of two `log_gamma` with arguments of at least eight.
    """
    shape = x.shape
    x, n = np.ravel(x), np.ravel(n)
    product = np.where(n > 0, x, 1.0)
    for factor in range(1, _DIRECT):
        rows = np.flatnonzero(n > factor)
        if not rows.size:
            break
        product[rows] *= x[rows] + factor
    result: Floats = np.log(product)
    rows = np.flatnonzero(n > _DIRECT)
    if rows.size:
        result[rows] += log_gamma(x[rows] + n[rows]) - log_gamma(x[rows] + _DIRECT)
    return result.reshape(shape)


def log_mean_tail(count: float, excess: float, variance: float, reach: float = 1.0) -> float:
    """Bernstein's bound on log P(a mean of `count` independent variables is `excess` above its expectation).

    Args:
        count: number of variables.
        excess: by how much the mean is above.
        variance: mean variance of one of them.
        reach: how far one of them can be above its expectation.
    """
    if count <= 0 or excess <= 0:
        return 0.0
    return -count * excess * excess / (2 * (variance + reach * excess / 3))


def detectable_mean(count: float, variance: float, log_level: float) -> float:
    """The smallest excess that `log_mean_tail` finds at a level: its inverse. Infinite without variables."""
    if count <= 0:
        return float("inf")
    linear = -log_level * 2 / 3
    return float((linear + np.sqrt(linear * linear - 8 * count * log_level * variance)) / (2 * count))
