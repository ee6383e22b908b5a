# SPDX-License-Identifier: Apache-2.0
"""Tunnel address modulo the size of the pool: what hand-made scripts do."""

from __future__ import annotations

from collections.abc import Sequence

from detector.base.family import Address
from detector.predictors.pool import ExitPool, Prediction

NAME = "modulo"
MEANING = "the tunnel address, its last octet or its rank, plus a constant, modulo the size of the pool"


def predict(tunnel_addresses: Sequence[Address], pool: ExitPool) -> Prediction | None:
    """The exit of each tunnel address; None for a pool of one."""
    if not pool.is_walkable:
        return None
    return [pool.at(int(address) % pool.size) for address in tunnel_addresses]
