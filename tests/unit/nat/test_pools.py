# SPDX-License-Identifier: Apache-2.0
"""Pools from the configuration's text and from the rules."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from detector.base.family import Family
from detector.base.ranges import AddressRange, parse_pool
from detector.nat.model import rule_set
from detector.nat.nftables import read_nft_json
from detector.nat.pools import effective_pools
from tests.unit.nat.zoo import alone

ZOO = (Path(__file__).parent / "fixtures" / "zoo.json").read_text()


RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(
        lambda ends: AddressRange(ip_address(1000 + ends[0]), ip_address(1000 + ends[0] + ends[1]))
    ),
    max_size=12,
)


@given(RANGES)
def test_effective_pools_are_disjoint(pools: list[AddressRange]) -> None:
    """No address is in two pools, none is lost, and two pools that share no address stay apart."""
    made = effective_pools(rule_set([], []), pools)
    held = [address for pool in made for part in pool.ranges for address in part.addresses()]
    assert len(held) == len(set(held)) == sum(pool.size for pool in made)
    assert set(held) == {address for pool in pools for address in pool.addresses()}
    apart = all(not a.overlaps(b) for at, a in enumerate(pools) for b in pools[at + 1 :])
    assert not apart or len(made) == len(pools)


def test_pools_of_the_rules() -> None:
    """What shares an address is joined, what only touches stays apart, and masquerade adds none."""
    made = effective_pools(alone())
    assert [" ".join(map(str, pool.ranges)) for pool in made if pool.size > 1] == [
        "203.0.113.0-203.0.113.15 203.0.113.40",
        "203.0.113.16-203.0.113.31",
        "203.0.113.68-203.0.113.126",
        "2001:db8::-2001:db8:1::40",
    ]
    assert next(one for one in made if one.size == 59).origin.startswith("ip nat sub handle 10; ")


def test_the_configuration_wins_for_its_family() -> None:
    """Configured IPv4 pools replace those of the rules; IPv6 is still read from the rules."""
    made = effective_pools(read_nft_json(ZOO), [parse_pool("192.0.2.1-192.0.2.9")])
    assert [(pool.family, pool.origin == "configuration") for pool in made] == [
        (Family.IPV4, True),
        (Family.IPV6, False),
    ]
