# SPDX-License-Identifier: Apache-2.0
"""Draws that are written as several rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detector.nat.iptables import read_iptables_save
from detector.nat.model import Chooser, Chosen, Field, JHash, NatRule, Numgen, NumgenMode, SingleAddress
from detector.nat.nftables import read_nft_json

SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
SEEDED = {"jhash": {"mod": 3, "seed": 7, "expr": SADDR}}
DRAWN = {"jhash": {"mod": 3, "expr": SADDR}}


def listing(*rules: tuple[str, list[Any]]) -> str:
    """A listing of these (chain, expressions); packets come in by chain post."""
    objects: list[Any] = [
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        {
            "chain": {
                "family": "ip",
                "table": "nat",
                "name": "post",
                "type": "nat",
                "hook": "postrouting",
                "prio": 100,
            }
        },
    ]
    for handle, (chain, expr) in enumerate(rules, 10):
        objects.append(
            {"rule": {"family": "ip", "table": "nat", "chain": chain, "handle": handle, "expr": expr}}
        )
    return json.dumps({"nftables": objects})


def case(key: Any, number: int, address: str) -> tuple[str, list[Any]]:
    """``KEY NUMBER snat to ADDRESS``."""
    return "post", [{"match": {"op": "==", "left": key, "right": number}}, {"snat": {"addr": address}}]


def save(*lines: str) -> tuple[NatRule, ...]:
    """The rules of a POSTROUTING chain with these lines."""
    text = "\n".join(
        ["*nat", ":POSTROUTING ACCEPT [0:0]", *(f"-A POSTROUTING {line}" for line in lines), "COMMIT"]
    )
    return read_iptables_save(text).rules


def exits(rule: NatRule) -> tuple[Chooser, list[str] | None]:
    """The draw, and the addresses by number."""
    assert isinstance(rule.mapping, Chosen)
    found = rule.mapping.addresses
    return rule.mapping.chooser, None if found is None else [str(one) for one in found]


SEEDED_HASH = JHash((Field("ip saddr"),), 3, 7)


def test_a_verdict_map_of_a_draw() -> None:
    """A vmap over an unseeded jhash looks once, so its chains are one choice."""
    data = {"set": [[number, {"jump": {"target": f"c{number}"}}] for number in range(3)]}
    chains = [(f"c{number}", [{"snat": {"addr": f"203.0.113.{9 - number}"}}]) for number in range(3)]
    (rule,) = read_nft_json(listing(("post", [{"vmap": {"key": DRAWN, "data": data}}]), *chains)).rules
    assert exits(rule) == (JHash((Field("ip saddr"),), 3), ["203.0.113.9", "203.0.113.8", "203.0.113.7"])
    assert rule.drawn_at_load


def test_rules_that_compare_one_seeded_hash() -> None:
    """Rules on the same seeded hash are one choice, and a rule without a condition takes the rest."""
    cases = [case(SEEDED, 0, "203.0.113.1"), case(SEEDED, 2, "203.0.113.2")]
    (rule,) = read_nft_json(listing(*cases, ("post", [{"snat": {"addr": "203.0.113.3"}}]))).rules
    assert exits(rule) == (SEEDED_HASH, ["203.0.113.1", "203.0.113.3", "203.0.113.2"])


def test_an_incomplete_choice_keeps_its_gap() -> None:
    """A number that no rule takes has no exit."""
    (rule,) = read_nft_json(listing(case(SEEDED, 0, "203.0.113.1"), case(SEEDED, 2, "203.0.113.2"))).rules
    assert exits(rule) == (SEEDED_HASH, None)
    assert [str(pool) for pool in rule.pools] == ["203.0.113.1", "203.0.113.2"]


def test_unseeded_hashes_of_two_rules_are_two_draws() -> None:
    """Each rule draws a seed of its own, so they are not one choice."""
    rules = read_nft_json(listing(case(DRAWN, 0, "203.0.113.1"), case(DRAWN, 1, "203.0.113.2"))).rules
    assert [type(rule.mapping) for rule in rules] == [SingleAddress, SingleAddress]


@pytest.mark.parametrize(
    ("first", "second", "mode"),
    [
        ("--mode random --probability 0.333", "--mode random --probability 0.5", NumgenMode.RANDOM),
        ("--mode nth --every 3 --packet 0", "--mode nth --every 2 --packet 0", NumgenMode.INC),
    ],
)
def test_a_ladder_of_statistic_rules(first: str, second: str, mode: NumgenMode) -> None:
    """The way of iptables to spread flows over addresses is one choice of all three."""
    (rule,) = save(
        f"-s 10.0.0.0/8 -m statistic {first} -j SNAT --to-source 203.0.113.1",
        f"-s 10.0.0.0/8 -m statistic {second} -j SNAT --to-source 203.0.113.2",
        "-s 10.0.0.0/8 -j SNAT --to-source 203.0.113.3",
    )
    assert exits(rule) == (Numgen(mode, 3), ["203.0.113.1", "203.0.113.2", "203.0.113.3"])
    assert [str(one) for one in rule.matches] == ["ip saddr 10.0.0.0/8"]


def test_other_conditions_keep_rules_apart() -> None:
    """Rules for other sources, or with other flags, are choices of their own."""
    rules = save(
        "-s 10.0.0.0/8 -m statistic --mode nth --every 2 --packet 0 -j SNAT --to-source 203.0.113.1",
        "-s 10.1.0.0/16 -j SNAT --to-source 203.0.113.2",
        "-m statistic --mode nth --every 2 --packet 0 -j SNAT --to-source 203.0.113.3",
        "-j SNAT --to-source 203.0.113.4 --random",
    )
    assert len(rules) == 4
