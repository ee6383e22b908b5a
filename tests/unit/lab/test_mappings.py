# SPDX-License-Identifier: Apache-2.0
"""The named mappings, and pools and addresses of a lab."""

from itertools import pairwise

import numpy as np
import pytest

from detector.base.errors import UsageError
from detector.base.family import Family, pack
from detector.base.ranges import parse_pool
from detector.conntrack.addresses import is_inside
from detector.lab import layout
from detector.lab.layout import DEFAULT_POOLS
from detector.lab.mappings import MAPPINGS, ROUTED, find


def test_the_named_mappings_are_those_of_the_command() -> None:
    """Every mapping that the documentation names is there, each with a sentence and a verdict."""
    names = (
        "persistent plain random fully-random jhash jhash-seeded jhash-src-dst jhash-src-sport symhash "
        "numgen-random numgen-inc masquerade netmap"
    )
    assert list(MAPPINGS) == names.split()
    assert list(ROUTED) == ["routed6", "routed4"]
    every = MAPPINGS | ROUTED
    assert all(mapping.summary.endswith(".") and mapping.verdict for mapping in every.values())
    assert all(find(name) is mapping for name, mapping in every.items())


def test_a_mapping_names_the_pool_it_is_given() -> None:
    """A rule draws from the addresses of its pool: the range itself, or every one of them in a map."""
    pool = parse_pool("203.0.113.68-203.0.113.70")
    assert "snat to 203.0.113.68-203.0.113.70 persistent" in find("persistent").ruleset([pool], "eth0")
    text = find("jhash").ruleset([pool], "eth0")
    assert "jhash ip saddr mod 3 map { 0 : 203.0.113.68, 1 : 203.0.113.69, 2 : 203.0.113.70 }" in text


def test_routed_peers_are_in_no_pool() -> None:
    """No rule of `routed6` translates IPv6; the one of `routed4` for IPv4 takes none of the routed ones."""
    six = find("routed6").ruleset(DEFAULT_POOLS, "eth0")
    assert "snat" in six.partition("table ip6")[0]
    assert "snat" not in six.partition("table ip6")[2]
    four = find("routed4").ruleset(DEFAULT_POOLS, "eth0")
    assert four.count("snat to numgen random") == 2
    assert f"ip saddr {layout.TUNNELS[Family.IPV4]} snat" in four
    assert not any(layout.TUNNELS[family].overlaps(layout.ROUTED[family]) for family in Family)


@pytest.mark.parametrize(("every", "routed"), [(1, 30), (8, 4)])
@pytest.mark.parametrize("family", Family)
def test_routed_addresses_are_global_and_of_one_peer_each(family: Family, every: int, routed: int) -> None:
    """Every so manyth peer has an address of its own in that family, and the others are as they were."""
    before = layout.tunnel_addresses(30, 1)
    after = layout.Routed(family, every).given(before, 1)
    own = [peer[family] for peer in after if peer[family] in layout.ROUTED[family]]
    assert len(own) == len(set(own)) == routed
    assert not is_inside(np.array([list(pack(one)) for one in own], np.uint8)).any()
    changed = [number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert changed == list(range(0, 30, every))
    (other,) = set(Family) - {family}
    assert [peer[other] for peer in after] == [peer[other] for peer in before]


def test_netmap_stays_inside_the_pool() -> None:
    """The network that netmap maps to is the largest one within the range, not one around it."""
    assert "snat prefix to 203.0.113.80/28" in find("netmap").ruleset(DEFAULT_POOLS, "eth0")


def test_an_unknown_mapping_is_answered_with_those_there_are() -> None:
    """A mistyped name is an error that lists the right ones."""
    with pytest.raises(UsageError, match="fully-random"):
        find("fuly-random")


def test_a_map_has_a_largest_size() -> None:
    """A pool too large to be written out is refused, and still taken by a mapping that names its ends."""
    pool = parse_pool("2001:db8::/64")
    with pytest.raises(UsageError, match="too large"):
        find("jhash").ruleset([pool], "eth0")
    assert f"snat to {pool} persistent" in find("persistent").ruleset([pool], "eth0")


def test_tunnel_addresses_are_scattered_and_repeatable() -> None:
    """Peers have distinct addresses of both families that are not neighbours, the same for the same seed."""
    addresses = layout.tunnel_addresses(300, 1)
    for family in Family:
        numbers = sorted(int(address[family]) for address in addresses)
        assert len(set(numbers)) == 300
        assert sum(second - first == 1 for first, second in pairwise(numbers)) < 5
    assert addresses == layout.tunnel_addresses(300, 1)
