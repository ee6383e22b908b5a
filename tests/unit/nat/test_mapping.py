# SPDX-License-Identifier: Apache-2.0
"""From rules and configuration to pools, predictions, and what the aggregator is told."""

from __future__ import annotations

import json
import os
import subprocess
from ipaddress import ip_address

import pytest

from detector.base.family import Address, Family
from detector.base.ranges import parse_pool
from detector.base.verdicts import Verdict
from detector.counts.observing import PoolRanges
from detector.lab.layout import DEFAULT_POOLS
from detector.lab.mappings import MAPPINGS
from detector.nat.mapping import Mapping, mapping_of
from detector.nat.model import RuleSet
from detector.nat.nftables import read_nft_json
from detector.predictors.kernel_hash import kernel_exit
from detector.wireguard.model import AllowedIp

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="nft reads rules in a namespace of root's"),
]

PEERS = [ip_address(f"10.64.3.{host}") for host in (4, 5, 9)] + [ip_address("fc00:bbbb:bbbb:bb01::7")]
V4, V6 = DEFAULT_POOLS


def rules(text: str) -> RuleSet:
    """What nft makes of rules, in a namespace that lasts for this call."""
    script = "nft -f - && nft -j list ruleset"
    command = ["unshare", "--net", "sh", "-c", script]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return read_nft_json(done.stdout)


def named(name: str, exits: tuple[str, ...] = ()) -> Mapping:
    """The mapping of a lab's named rules."""
    text = MAPPINGS[name].ruleset(DEFAULT_POOLS, "eth0")
    return mapping_of(rules(text), [parse_pool(one) for one in exits])


def allowed(address: Address, prefix: int | None = None) -> AllowedIp:
    """An allowed-ip, of one address unless a prefix length is given."""
    return AllowedIp(address.packed, address.max_prefixlen if prefix is None else prefix)


def test_pools_are_those_of_the_rules() -> None:
    """Each family's pool, with its size and range, as the aggregator reads it back."""
    mapping = named("persistent")
    assert [(pool.family, pool.size) for pool in mapping.pools] == [
        (one.family, one.size) for one in DEFAULT_POOLS
    ]
    told = json.loads(json.dumps(mapping.as_message()))
    pools = [PoolRanges.of(pool) for pool in told["pools"]]
    assert [(pool.family, pool.size) for pool in pools] == [(Family.IPV4, V4.size), (Family.IPV6, V6.size)]
    assert (told["rules"], told["not_understood"], told["exclusive"]) == (2, 0, [])


def test_the_configuration_wins() -> None:
    """Configured exits take the place of those of the rules, and are in the kernel's list too."""
    mapping = named("persistent", ("203.0.113.1-203.0.113.4",))
    assert [pool.size for pool in mapping.pools if pool.family is Family.IPV4] == [4]
    assert (ip_address("203.0.113.1"), ip_address("203.0.113.4")) in mapping.ranges
    assert (V4.first, V4.last) in mapping.ranges


def test_each_tunnel_address_is_predicted_in_its_family() -> None:
    """What the kernel's hash gives for each address, one exit for each pool; nothing of networks."""
    mapping = named("persistent")
    wanted = [*map(allowed, PEERS), allowed(ip_address("10.64.8.0"), 24)]
    said = mapping.predict(wanted, PEERS)
    for address, one in zip(PEERS, said, strict=False):
        pool = V4 if address.version == 4 else V6
        assert one["kernel_persistent"] == [str(kernel_exit(address, None, pool.first, pool.last))]
    assert said[-1] == {}


def test_a_seed_in_the_rules_is_used() -> None:
    """Only rules with a seed let the seeded hash be computed."""
    assert all(one["seeded_jhash"][0] for one in named("jhash-seeded").predict([*map(allowed, PEERS)], PEERS))
    assert not any("seeded_jhash" in one for one in named("jhash").predict([*map(allowed, PEERS)], PEERS))


def test_a_mapping_is_another_one_when_it_is_drawn_anew() -> None:
    """The identity stays over a reload of `persistent` and changes with its text."""
    assert named("persistent").identity == named("persistent").identity
    assert len({named(name).identity for name in ("persistent", "plain", "jhash", "numgen-random")}) == 4


def test_nothing_is_predicted_before_rules_are_read() -> None:
    """Without rules there are no pools and no predictions, and the message says so."""
    nothing = Mapping.nothing()
    assert nothing.predict([allowed(PEERS[0])], PEERS) == [{}]
    assert nothing.as_message() == {"rules": 0, "not_understood": 0, "exclusive": [], "pools": []}


def test_predictors_are_told_of_each_rule() -> None:
    """Two ranges over the same addresses are two choices; a map of ranges is its ranges, and the whole."""
    text = """table ip nat { chain post { type nat hook postrouting priority 100;
        meta mark 1 snat to 203.0.113.1-203.0.113.30
        snat to 203.0.113.1-203.0.113.59 persistent
        }
        }
    """
    mapping = mapping_of(rules(text), [])
    assert [(one.size, "handle" in one.origin) for one in mapping.choices] == [(30, True), (59, True)]
    text = """table ip nat { chain post { type nat hook postrouting priority 100;
        snat ip to ip saddr map {
            10.0.0.0/24 : 203.0.113.1-203.0.113.4, 10.0.1.0/24 : 203.0.113.8-203.0.113.9
        }
        }
        }
    """
    assert [one.size for one in mapping_of(rules(text), []).choices] == [4, 2, 6]
    configured = mapping_of(RuleSet(), [parse_pool("198.51.100.1-198.51.100.9")])
    assert [(one.size, one.origin) for one in configured.choices] == [(9, "configuration")]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("persistent", Verdict.PINNED),
        ("jhash", Verdict.PINNED),
        ("jhash-seeded", Verdict.PINNED),
        ("plain", Verdict.DESTINATION_LINKED),
        ("jhash-src-dst", Verdict.DESTINATION_LINKED),
        ("numgen-random", None),
        ("numgen-inc", None),
        ("masquerade", None),
    ],
)
def test_what_a_rule_keeps_it_keeps_for_long(name: str, verdict: Verdict | None) -> None:
    """What is chosen by source, or by source and destination, lasts; a draw for each flow does not."""
    said = named(name).lasting
    assert said == (frozenset() if verdict is None else frozenset((one, verdict) for one in Family))
