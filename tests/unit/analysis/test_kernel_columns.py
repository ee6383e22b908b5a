# SPDX-License-Identifier: Apache-2.0
"""The hash over columns against the hash of one flow, and against running kernels."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import numpy as np
import pytest

from detector.analysis.kernel_columns import Packed, kernel_exits, within
from detector.base.family import Address, pack
from detector.predictors.kernel_hash import kernel_exit

VECTORS = Path(__file__).parents[2] / "vectors" / "kernel_exit_choice.json"
CASES = [case for case in json.loads(VECTORS.read_text())["cases"] if "persistent" not in case["rule"]]


def packed(addresses: Sequence[Address]) -> Packed:
    """Addresses as a column."""
    return np.frombuffer(b"".join(map(pack, addresses)), np.uint8).reshape(-1, 16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["rule"]))
def test_every_recorded_exit_is_reproduced(case: dict[str, object]) -> None:
    """Each exit that a running kernel chose without `persistent` comes out, zones too."""
    rows: list[dict[str, object]] = case["rows"]  # type: ignore[assignment]
    source, destination, exits = (
        packed([ip_address(str(row[name])) for row in rows]) for name in ("source", "destination", "exit")
    )
    zone = np.array([row["zone"] for row in rows], np.uint32)
    ends = ip_address(str(case["pool_first"])), ip_address(str(case["pool_last"]))
    assert np.array_equal(kernel_exits(source, destination, zone, *ends), exits)
    assert within(exits, *ends).all()


def test_wide_ipv6_pools_agree_with_the_scalar() -> None:
    """Pools over several words give what the scalar gives, and lie within their ends."""
    draw = random.Random(1)  # noqa: S311 - repeatable on purpose
    first, last = ip_address("2001:db8:1:fffe::"), ip_address("2001:db8:2:3:4::5")
    peers = [IPv6Address(draw.getrandbits(128)) for _ in range(200)]
    sites = [IPv6Address(draw.getrandbits(128)) for _ in range(200)]
    truth = [kernel_exit(peer, site, first, last, 5) for peer, site in zip(peers, sites, strict=True)]
    found = kernel_exits(packed(peers), packed(sites), np.full(200, 5, np.uint32), first, last)
    assert np.array_equal(found, packed(truth))
    outside = [ip_address("2001:db8:1:fffd::"), ip_address("2001:db8:2:3:4::6")]
    assert not within(packed(outside), first, last).any()
