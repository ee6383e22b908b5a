# SPDX-License-Identifier: Apache-2.0
"""`snat to A-B persistent`: the kernel's own hash of the tunnel address (docs/leak-modes.md §2)."""

from __future__ import annotations

from collections.abc import Sequence

from detector.base.family import Address
from detector.predictors.kernel_hash import position, source_hash
from detector.predictors.pool import ExitPool, Prediction

NAME = "kernel_persistent"
MEANING = "the kernel's hash of the tunnel address alone, with no secret in it (a range with persistent)"


def predict(tunnel_addresses: Sequence[Address], pool: ExitPool) -> Prediction | None:
    """The exit of each tunnel address; None for a pool that is not a range."""
    if not pool.is_range or pool.size < 2:
        return None
    return [position(source_hash(address), pool.first, pool.last) for address in tunnel_addresses]
