# SPDX-License-Identifier: Apache-2.0
"""`snat ip prefix to`, NETMAP: the network part is replaced, the host bits are kept."""

from __future__ import annotations

from collections.abc import Sequence

from detector.base.family import Address
from detector.predictors.pool import ExitPool, Prediction

NAME = "netmap"
MEANING = "the host bits of the tunnel address, kept under the prefix of the pool"


def predict(tunnel_addresses: Sequence[Address], pool: ExitPool) -> Prediction | None:
    """The exit of each tunnel address; None for a pool that is not a whole prefix of two or more."""
    host_bits = pool.size - 1
    if not pool.is_range or pool.size < 2 or pool.size & host_bits or int(pool.first) & host_bits:
        return None
    return [pool.at(int(address) & host_bits) for address in tunnel_addresses]
