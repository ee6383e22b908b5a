# SPDX-License-Identifier: Apache-2.0
"""Rank of the tunnel address against position in the pool: exits handed out in the order of the peers."""

from __future__ import annotations

from collections.abc import Sequence

from detector.base.family import Address
from detector.predictors.pool import ExitPool, Prediction

NAME = "linear"
MEANING = "the order of the tunnel addresses, as the order of the positions in the pool"


def predict(tunnel_addresses: Sequence[Address], pool: ExitPool) -> Prediction | None:
    """The exit of each tunnel address; None for a pool of one.

    With no more peers than exits the n-th peer has the n-th exit; with more of them, each exit has an equal
    block of neighbours.
    """
    if not pool.is_walkable:
        return None
    ordered = sorted(set(map(int, tunnel_addresses)))
    blocks = len(ordered) > pool.size
    position = {
        number: rank * pool.size // len(ordered) if blocks else rank for rank, number in enumerate(ordered)
    }
    return [pool.at(position[int(address)]) for address in tunnel_addresses]
