# SPDX-License-Identifier: Apache-2.0
"""crc32 of the tunnel address: what proxies and scripts take where they want a hash without a key."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from detector.base.family import Address
from detector.predictors.pool import ExitPool, Prediction

NAME = "crc32"
MEANING = "the crc32 of the tunnel address modulo the size of the pool"


def predict(tunnel_addresses: Sequence[Address], pool: ExitPool) -> Prediction | None:
    """The exit of each tunnel address, hashed as its bytes; None for a pool of one."""
    if not pool.is_walkable:
        return None
    return [pool.at(crc32(address.packed) % pool.size) for address in tunnel_addresses]
