# SPDX-License-Identifier: Apache-2.0
"""Tail bounds without NumPy, since the sensor needs them too. Upper bounds, as natural logarithms."""

from __future__ import annotations

import math


def log_binomial_tail(trials: float, hits: float, chance: float) -> float:
    """Bound on log P(at least `hits` hits in `trials`, each with `chance`): -n KL(h/n || c).

    The Chernoff–Hoeffding bound (Hoeffding 1963, theorem 1). It holds for independent variables in [0, 1]
    whose mean chance is `chance`, so fractional hits and peers with chances of their own are fine. 0.0 where
    there is no excess.
    """
    if trials <= 0 or chance >= 1 or hits <= trials * chance:
        return 0.0
    if chance <= 0:
        return -math.inf
    ratio = min(hits / trials, 1.0)
    divergence = ratio * math.log(ratio / chance)
    if ratio < 1:
        divergence += (1 - ratio) * (math.log1p(-ratio) - math.log1p(-chance))
    return -trials * divergence
