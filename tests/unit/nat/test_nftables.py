# SPDX-License-Identifier: Apache-2.0
"""Reads listings of nft: `zoo.nft` is what is loaded, `zoo.json` and `zoo.listing` what nft 1.0.6 prints."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import AddressRange
from detector.nat.audit import audit
from detector.nat.model import (
    Chosen,
    Field,
    FieldMap,
    JHash,
    Masquerade,
    NatRule,
    Netmap,
    Numgen,
    NumgenMode,
    PortsOnly,
    RangeHash,
    RuleSet,
    SingleAddress,
    SymHash,
)
from detector.nat.nftables import needs_outline, read_nft_json
from tests.unit.nat.zoo import alone, listings

FIXTURES = Path(__file__).parent / "fixtures"
ZOO = (FIXTURES / "zoo.json").read_text()
EXITS = AddressRange(ip_address("203.0.113.68"), ip_address("203.0.113.126"))


def pool(first: str, last: str = "") -> AddressRange:
    """A pool from text."""
    return AddressRange(ip_address(first), ip_address(last or first))


@pytest.fixture(scope="module")
def zoo() -> RuleSet:
    """Every shape of rule, each by itself."""
    return alone()


@pytest.fixture(scope="module")
def whole() -> RuleSet:
    """Every shape of rule, one behind the other."""
    return read_nft_json(ZOO)


def the(rules: RuleSet, text: str) -> NatRule:
    """The one rule whose text contains this."""
    found = {rule.where: rule for rule in rules.rules if text in rule.text}
    assert len(found) == 1, [rule.text for rule in rules.rules]
    return next(iter(found.values()))


def ruleset(rules: list[Any], *more: Any, chain: str = "post") -> str:
    """A listing with these expressions as the rules of one postrouting chain."""
    head: list[Any] = [
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        {
            "chain": {
                "family": "ip",
                "table": "nat",
                "name": chain,
                "type": "nat",
                "hook": "postrouting",
                "prio": 100,
            }
        },
    ]
    made = [
        {"rule": {"family": "ip", "table": "nat", "chain": chain, "handle": 10 + at, "expr": expr}}
        for at, expr in enumerate(rules)
    ]
    return json.dumps({"nftables": [*head, *more, *made]})


def test_flags_tell_range_hashes_apart(zoo: RuleSet) -> None:
    """A range is read with its persistent flag, and the port flags are kept beside it."""
    rule = the(zoo, "@customers")
    assert rule.mapping == RangeHash(EXITS, persistent=True)
    assert rule.flags == {"persistent", "random"}
    assert not rule.reuses_ports
    plain = the(zoo, 'oif "lo"')
    assert plain.mapping == RangeHash(EXITS, persistent=False)
    assert plain.reuses_ports


def test_conditions_limit_a_rule(zoo: RuleSet) -> None:
    """Named sets are opened, so a rule says which sources it may take."""
    rule = the(zoo, "@customers")
    assert rule.sources == (pool("10.0.0.0", "10.255.255.255"), pool("192.168.0.0", "192.168.255.255"))
    assert rule.may_take(ip_address("10.9.9.9"))
    assert not rule.may_take(ip_address("172.16.0.1"))
    assert not rule.may_take(ip_address("fd00::1"))


def test_a_seeded_jhash_has_all_that_a_predictor_needs(zoo: RuleSet) -> None:
    """Seed, fields, modulus, offset and the exits in the order of their numbers come out of the listing."""
    rule = the(zoo, "jhash ip saddr mod 4 seed 0xdeadbeef map")
    assert isinstance(rule.mapping, Chosen)
    assert rule.mapping.chooser == JHash((Field("ip saddr"),), 4, 0xDEADBEEF)
    assert rule.mapping.addresses == tuple(ip_address(f"203.0.113.{last}") for last in (4, 3, 2, 1))
    assert not rule.drawn_at_load
    both = the(zoo, "jhash ip saddr . ip daddr")
    assert isinstance(both.mapping, Chosen)
    assert both.mapping.chooser == JHash((Field("ip saddr"), Field("ip daddr")), 4, 0xDEADBEEF, 10)
    assert both.mapping.addresses == tuple(ip_address(f"203.0.113.{last}") for last in (1, 2, 3, 4))


def test_a_jhash_without_seed_is_drawn_at_load(zoo: RuleSet) -> None:
    """No seed in the listing means that the kernel drew one; an explicit seed of 0 is a seed."""
    assert the(zoo, "jhash ip saddr mod 4 map").drawn_at_load
    zero = the(zoo, "tcp sport")
    assert isinstance(zero.mapping, Chosen)
    assert zero.mapping.chooser == JHash((Field("ip saddr"), Field("tcp sport")), 2, 0)
    assert zero.mapping.addresses == (ip_address("203.0.113.1"),) * 2
    assert "meta l4proto tcp" in map(str, zero.matches)


@pytest.mark.parametrize(
    ("text", "chooser"),
    [
        ("symhash", SymHash(2, 5)),
        ("to numgen random", Numgen(NumgenMode.RANDOM, 2)),
        ("to numgen inc", Numgen(NumgenMode.INC, 2, 3)),
    ],
)
def test_draws_for_each_flow(zoo: RuleSet, text: str, chooser: object) -> None:
    """The choosers that draw for each flow are told apart."""
    mapping = the(zoo, text).mapping
    assert isinstance(mapping, Chosen)
    assert mapping.chooser == chooser
    assert mapping.addresses is not None


def test_prefix_maps_are_netmaps(zoo: RuleSet) -> None:
    """`snat prefix to` keeps host bits, `snat to` a prefix is a range hash; nft prints the address alike."""
    netmap = the(zoo, "snat prefix to")
    assert isinstance(netmap.mapping, Netmap)
    assert [(pair.source, pair.exits) for pair in netmap.mapping.pairs] == [
        (None, pool("203.0.113.0", "203.0.113.15"))
    ]
    mapped = the(zoo, "snat ip prefix to")
    assert isinstance(mapped.mapping, Netmap)
    assert mapped.mapping.pairs[1].source == pool("10.2.0.0", "10.2.0.15")
    assert the(zoo, "ip protocol tcp").mapping == RangeHash(
        pool("203.0.113.0", "203.0.113.15"), persistent=False
    )


@pytest.mark.parametrize(
    ("text", "sources", "exits"),
    [
        ("map @one", ["10.64.0.2", "10.64.0.3"], "203.0.113.2"),
        ("map { 10.64.0.2 : ", ["10.64.0.2", "10.64.0.3"], "203.0.113.2"),
        ("map @ranges", ["10.64.0.0-10.64.0.255", "10.65.0.0-10.65.0.255"], "203.0.113.2-203.0.113.9"),
        ("0.0.0.3 map", ["None", "None"], "203.0.113.1"),
        ("ip daddr map", ["None"], "203.0.113.2"),
        ("meta l4proto map", ["10.64.0.2"], "203.0.113.2"),
    ],
)
def test_maps_of_fields(zoo: RuleSet, text: str, sources: list[str], exits: str) -> None:
    """Maps of addresses, prefixes, masks and concatenations keep their order and name their sources."""
    mapping = the(zoo, text).mapping
    assert isinstance(mapping, FieldMap)
    assert [str(entry.source) for entry in mapping.entries] == sources
    assert str(mapping.pools[0]) == exits


def test_single_exits(zoo: RuleSet) -> None:
    """Masquerade, one address and ports alone are each their own mapping."""
    assert the(zoo, 'oifname "eth1" masquerade').mapping == Masquerade()
    assert the(zoo, "10.4.0.1").mapping == SingleAddress(ip_address("203.0.113.40"))
    assert the(zoo, "snat to :1024-65535").mapping == PortsOnly()


def test_jumps_carry_their_conditions(zoo: RuleSet) -> None:
    """A rule in a chain is listed for each way to it, with the way's conditions, draws included."""
    ways = [rule for rule in zoo.rules if rule.where.chain == "sub"]
    assert [str(rule.matches[0]) for rule in ways] == [
        "ip saddr 10.64.0.0/24",
        "ip saddr 10.65.0.0/24",
        "numgen random mod 2 0",
        "ip saddr 10.0.0.1",
        "ip saddr 10.3.0.0/24",
    ]
    assert [rule.choosers for rule in ways] == [(), (), (Numgen(NumgenMode.RANDOM, 2),), (), ()]
    assert the(zoo, "jhash ip saddr mod 2 seed 0x7 0").choosers == (JHash((Field("ip saddr"),), 2, 7),)


def test_rules_that_nothing_reaches_are_left_out(whole: RuleSet) -> None:
    """Chains without a jump, other hooks, and what stands behind an unconditional rule are no exits."""
    exits = {address for rule in whole.rules for address in map(str, rule.pools)}
    assert not [address for address in exits if address.startswith("198.51.100.")]
    assert "198.51.100.2" in {str(pool) for rule in whole.unreached for pool in rule.pools}
    later = [rule for rule in whole.rules if rule.where.table == "later"]
    assert later
    assert {family for rule in later for family in rule.families} == {Family.IPV6}
    assert later[-1].mapping == RangeHash(pool("2001:db8::10", "2001:db8:1::40"), persistent=True)


def test_what_is_not_understood_is_named(whole: RuleSet) -> None:
    """Marks, maps that packets fill and rewriting without conntrack are reported with their rule."""
    named = [(str(one.where), one.reason) for one in whole.not_understood]
    assert [reason for _, reason in named] == [
        "it overwrites the source address without conntrack, so its flows cannot be watched",
        "the exit depends on meta mark, which other rules set",
        "it uses a map that packets fill while traffic flows",
    ]
    assert named[0][0].startswith("ip mangle post handle ")


def test_text_is_what_nft_writes(whole: RuleSet) -> None:
    """Each rule's text is nft's own line, without its counter and comment."""
    listing = re.sub(
        r" counter(?= )| counter name \"c\"| comment \"[^\"]*\"", "", (FIXTURES / "zoo.listing").read_text()
    )
    lines = {
        line.strip().removeprefix('counter name "c" ')
        for line in re.sub(r" # handle \d+", "", listing).splitlines()
    }
    texts = [one.text for one in (*whole.rules, *whole.unreached)]
    texts += [one.text for one in whole.not_understood]
    wrong = [text for text in texts if text not in lines]
    assert wrong == []


def test_repr_hides_what_may_be_a_tunnel_address(zoo: RuleSet) -> None:
    """Nothing that a rule says of sources can reach a traceback or a log by way of repr."""
    assert "10." not in repr(zoo)
    assert "203.0.113.68" in repr(zoo)


@pytest.mark.parametrize(
    ("old", "new", "same_behaviour", "same_load"),
    [
        ('"packets": 0', '"packets": 77', True, True),
        ('"the pool"', '"a pool"', True, True),
        ('"drop"', '"accept"', True, True),
        ('"handle": 26', '"handle": 126', True, False),
        ('"handle": 28', '"handle": 128', True, True),
        ('"seed": 3735928559', '"seed": 5', False, True),
        ('"203.0.113.126"', '"203.0.113.125"', False, True),
        ('["10.64.0.3", "203.0.113.3"]', '["10.64.0.4", "203.0.113.3"]', False, True),
        ('{"addr": "192.168.0.0", "len": 16}', '{"addr": "192.168.0.0", "len": 17}', False, True),
        ('"flags": "persistent"', '"flags": "random"', False, True),
    ],
)
def test_fingerprint_follows_behaviour(old: str, new: str, same_behaviour: bool, same_load: bool) -> None:
    """The fingerprint changes with the mapping, the load identity when a drawn hash is reloaded."""
    assert old in ZOO
    before = [read_nft_json(text) for text in listings()]
    after = [read_nft_json(text.replace(old, new)) for text in listings()]
    same = [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=True)]
    loads = [one.load_identity == other.load_identity for one, other in zip(before, after, strict=True)]
    assert (all(same), all(loads)) == (same_behaviour, same_load)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ({"snat": {"addr": {"map": {"key": {"fib": {"result": "oif"}}, "data": {"set": []}}}}}, "depends on"),
        ({"snat": {"addr": {"map": {"key": {"jhash": 3}, "data": {"set": []}}}}}, "hash"),
        ({"snat": {"addr": {"map": {"key": {"symhash": {"mod": 0}}, "data": {"set": []}}}}}, "modulus"),
        ({"snat": {"addr": "exits.example"}}, "addresses"),
        ({"snat": {"addr": {"range": ["203.0.113.9", "203.0.113.1"]}}}, "addresses"),
        ({"snat": {"addr": "203.0.113.9", "flags": "sideways"}}, "sideways"),
        (
            {
                "snat": {
                    "addr": {
                        "map": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": "@gone"}
                    }
                }
            },
            "gone",
        ),
        ({"snat": []}, "shape"),
        ({"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@gone"}}, "gone"),
        ({"xt": None}, "iptables"),
        ({"xt": {"type": "target", "name": "SNAT"}}, "iptables"),
    ],
)
def test_never_skipped(expression: Any, reason: str) -> None:
    """What cannot be read is named with its rule, whatever is odd about it."""
    read = read_nft_json(ruleset([[expression]]))
    assert not read.rules
    assert len(read.not_understood) == 1
    assert str(read.not_understood[0].where) == "ip nat post handle 10"
    assert reason.replace("gone", "not in the listing") in read.not_understood[0].reason


def test_rules_that_lead_in_circles_are_named() -> None:
    """A listing in which chains jump to each other ends in a report, not in a loop."""
    read = read_nft_json(ruleset([[{"jump": {"target": "post"}}], [{"masquerade": None}]]))
    assert [one.reason[:10] for one in read.not_understood] == ["its chains"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"nftables": 3}', "table ip nat {", "[" * 100_000])
def test_other_text_is_a_users_error(text: str) -> None:
    """Text that is not nft's JSON is an error that says what to give."""
    with pytest.raises(UsageError, match="nft -j list ruleset"):
        read_nft_json(text)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    inner: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        inner += [(value, key), *_places(value[key])]
    return inner


WORDS = ["snat", "jhash", "map", "@one", "10.0.0.1", "::1", "ip", "range", "", "203.0.113.0/28", "saddr"]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.sampled_from(WORDS),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from([None, 0, [], {}, "x"]), max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fuzzed_json_ends_in_an_answer(data: st.DataObject) -> None:
    """A listing with any of its parts replaced is read and judged or refused, never a traceback."""
    document = json.loads(ZOO)
    places = _places(document)
    for _ in range(data.draw(st.integers(1, 4))):
        container, key = data.draw(st.sampled_from(places))
        if isinstance(container, dict) or key < len(container):
            container[key] = data.draw(JUNK)
    with contextlib.suppress(UsageError):
        audit(read_nft_json(json.dumps(document)))


@pytest.mark.root
def test_this_nft_prints_the_same() -> None:
    """The nft of this machine lists the zoo so that it reads like the recorded listing."""
    if not (shutil.which("nft") and shutil.which("unshare")):
        pytest.skip("nft and unshare are not here")
    script = f"nft -f {FIXTURES}/zoo.nft && nft -j list ruleset"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine cannot load the rules: {done.stderr[:200]}")
    live, recorded = read_nft_json(done.stdout), read_nft_json(ZOO)
    assert [rule.text for rule in live.rules] == [rule.text for rule in recorded.rules]
    assert live.fingerprint == recorded.fingerprint


@pytest.mark.parametrize(
    ("flags", "outline"), [("dormant", ""), (["dormant"], ""), ("ip", "table ip nat {\n\tflags dormant\n")]
)
def test_a_dormant_table_does_nothing(flags: Any, outline: str) -> None:
    """A table that is switched off has no rules; where nft 1.0.6 garbles the flag, its text tells."""
    text = ruleset([[{"masquerade": None}]]).replace(
        '"handle": 1}', f'"handle": 1, "flags": {json.dumps(flags)}}}', 1
    )
    assert needs_outline(text)
    assert not read_nft_json(text, outline).rules
    assert not needs_outline(ruleset([[{"masquerade": None}]]))


def test_a_garbled_flag_alone_switches_nothing_off() -> None:
    """Without the text, a table with an unknown flag counts."""
    text = ruleset([[{"masquerade": None}]]).replace('"handle": 1}', '"handle": 1, "flags": "ip"}', 1)
    assert len(read_nft_json(text).rules) == 1


def test_a_condition_on_one_family_leaves_the_other() -> None:
    """In an inet table, even a negated condition on an IPv4 field takes IPv4 alone."""
    match = {
        "match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "10.0.0.1"}
    }
    text = ruleset([[match, {"masquerade": None}]]).replace('"family": "ip"', '"family": "inet"')
    assert [rule.families for rule in read_nft_json(text).rules] == [{Family.IPV4}]


@pytest.mark.root
@pytest.mark.parametrize("what", ["ruleset", "chain ip nat post"])
def test_a_reload_is_a_new_load(what: str) -> None:
    """The same rules loaded again have the same fingerprint and another load identity."""
    if not (shutil.which("nft") and shutil.which("unshare")):
        pytest.skip("nft and unshare are not here")
    chain = "type nat hook postrouting priority 100; "
    chain += "snat to jhash ip saddr mod 2 map { 0 : 203.0.113.1, 1 : 203.0.113.2 }; "
    rules = f"table ip nat {{ chain post {{ {chain} }}; }}"
    script = f"""
        nft '{rules}'; nft -j list ruleset; nft -j list ruleset
        nft flush {what}; nft '{rules}'; nft -j list ruleset
    """
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine cannot load the rules: {done.stderr[:200]}")
    first, same, later = (read_nft_json(line) for line in done.stdout.splitlines() if line)
    assert first == same
    assert later.fingerprint == first.fingerprint
    assert later.load_identity != first.load_identity
