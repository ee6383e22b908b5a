# SPDX-License-Identifier: Apache-2.0
"""`jhash ip saddr mod N seed S`: stable, and the same on every relay that is given S."""

from __future__ import annotations

from collections.abc import Sequence

from detector.base.family import Address
from detector.predictors.kernel_hash import nft_jhash
from detector.predictors.pool import ExitPool, Prediction

NAME = "seeded_jhash"
MEANING = "nft's jhash of the tunnel address with the seed that the rules write down"


def predict(tunnel_addresses: Sequence[Address], pool: ExitPool) -> Prediction | None:
    """The exit of each tunnel address; None where the rule has no seeded hash of the source."""
    rule = pool.hashed
    if rule is None or rule.modulus < 2:
        return None
    return [
        pool.at(nft_jhash([_field(address, mask) for mask in rule.masks], rule.modulus, rule.seed))
        for address in tunnel_addresses
    ]


def _field(address: Address, mask: int | None) -> bytes:
    packed = address.packed
    return packed if mask is None else (int(address) & mask).to_bytes(len(packed), "big")
