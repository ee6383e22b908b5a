# SPDX-License-Identifier: Apache-2.0
"""Reads what iptables-save 1.8.9 prints of `fixtures/zoo.iptables.sh`, nft and legacy variants."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.ranges import parse_pool
from detector.nat.audit import audit
from detector.nat.iptables import nat_families, read_iptables_save
from detector.nat.model import (
    Mapping,
    Masquerade,
    NatRule,
    Netmap,
    Numgen,
    NumgenMode,
    PortsOnly,
    RangeHash,
    RuleSet,
    SingleAddress,
)
from tests.unit.nat.zoo import saved_alone

FIXTURES = Path(__file__).parent / "fixtures"
NFT = (FIXTURES / "zoo.iptables-nft").read_text()
EXITS = parse_pool("203.0.113.68-203.0.113.126")


@pytest.fixture(scope="module")
def zoo() -> RuleSet:
    """Every shape of rule."""
    return read_iptables_save(NFT)


def the(rules: RuleSet, text: str) -> NatRule:
    """The first rule whose text contains this."""
    return next(rule for rule in rules.rules if text in rule.text)


def single(address: str) -> SingleAddress:
    """The mapping to one exit."""
    return SingleAddress(ip_address(address))


def rules(*lines: str) -> str:
    """A save with these lines in POSTROUTING."""
    return "\n".join(
        ["*nat", ":POSTROUTING ACCEPT [0:0]", *(f"-A POSTROUTING {line}" for line in lines), "COMMIT"]
    )


@pytest.mark.parametrize(
    ("text", "mapping", "flags"),
    [
        ("-s 10.64.0.0/10", RangeHash(EXITS, persistent=True), {"persistent", "random"}),
        ("multiport", RangeHash(EXITS, persistent=False), {"fully-random"}),
        ("! -s 10.1.0.0/28", Masquerade(), {"random"}),
        ("-A SUB -p udp", Masquerade(), {"fully-random"}),
        ("-A SUB -p tcp", PortsOnly(), set()),
        ("-s fd00::/64", RangeHash(parse_pool("2001:db8::1-2001:db8::9"), persistent=True), {"persistent"}),
        ("-s fd01::/64", RangeHash(parse_pool("2001:db8::1-2001:db8::9"), persistent=False), set()),
        ("2001:db8::5", single("2001:db8::5"), set()),
    ],
)
def test_targets(zoo: RuleSet, text: str, mapping: Mapping, flags: set[str]) -> None:
    """Each target is read with its addresses and flags, IPv4 and IPv6, with and without ports."""
    rule = the(zoo, text)
    assert rule.mapping == mapping
    assert rule.flags == flags


def test_netmap_keeps_its_prefix(zoo: RuleSet) -> None:
    """NETMAP is a prefix map, its sources are those of the rule's condition."""
    rule = the(zoo, "-s 10.1.0.0/28 -j NETMAP")
    assert isinstance(rule.mapping, Netmap)
    assert [str(pair.exits) for pair in rule.mapping.pairs] == ["203.0.113.0-203.0.113.15"]
    assert rule.sources == (parse_pool("10.1.0.0/28"),)


def test_statistic_is_a_number_generator(zoo: RuleSet) -> None:
    """`-m statistic` draws for each flow, as numgen does."""
    assert the(zoo, "--mode random").choosers == (Numgen(NumgenMode.RANDOM, 1 << 31),)
    assert the(zoo, "--mode nth").choosers == (Numgen(NumgenMode.INC, 2),)


def test_chains_are_followed(zoo: RuleSet) -> None:
    """Jumps and gotos carry their conditions; comments mislead nobody; dead rules are left out."""
    ways = [rule for rule in zoo.rules if rule.where.chain == "SUB" and rule.where.number == 1]
    assert [str(rule.matches[0]) for rule in ways] == ["ip saddr 10.2.0.0/16", "ip saddr 10.3.0.0/16"]
    assert not [rule for rule in zoo.rules if "198.51.100" in rule.text]
    assert [rule.mapping for rule in zoo.rules if rule.where.number == 10] == [single("203.0.113.9")]


def test_what_may_choose_by_peer_is_named(zoo: RuleSet) -> None:
    """Cluster, u32 and marks that HMARK sets are kept with their exits and reported as not understood."""
    assert [(str(one.where), one.reason) for one in saved_alone().not_understood][:3] == [
        ("iptables -t nat SUB rule 3", "-m u32 decides which packets it takes"),
        ("iptables -t nat SUB rule 4", "-m cluster decides which sources it takes"),
        ("iptables -t nat SUB rule 5", "a mark that other rules set decides which packets it takes"),
    ]
    assert the(zoo, "-m mark").mapping == single("203.0.113.6")


def test_both_variants_read_the_same(zoo: RuleSet) -> None:
    """The legacy and the nft variant of the tool print rules that read alike."""
    legacy = read_iptables_save((FIXTURES / "zoo.iptables-legacy").read_text())
    assert legacy == zoo
    assert nat_families(NFT) == frozenset(Family)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-j SNAT", "--to-source"),
        ("-j SNAT --to-source 203.0.113.1 --to-source 203.0.113.9", "options of its target SNAT"),
        ("-j SNAT --to-source 203.0.113.1 --sideways", "options of its target SNAT"),
        ("-j SNAT --to-source exits.example", "words"),
        ("-j SNAT --to-source 203.0.113.9-203.0.113.1", "words"),
        ("-j SAME --to 203.0.113.1-203.0.113.9", "target SAME is unknown"),
        ('-m comment --comment "open -j SNAT --to-source 203.0.113.1', "words"),
        ("stray -j SNAT --to-source 203.0.113.1", "no option"),
        ("-m statistic --mode sideways -j SNAT --to-source 203.0.113.1", "statistic"),
        ("-s 10.0.0.300 -j SNAT --to-source 203.0.113.1", "words"),
    ],
)
def test_never_skipped(line: str, reason: str) -> None:
    """A rule that cannot be read is named with its place."""
    read = read_iptables_save(rules(line))
    assert not read.rules
    assert [str(one.where) for one in read.not_understood] == ["iptables -t nat POSTROUTING rule 1"]
    assert reason in read.not_understood[0].reason


def test_a_stray_line_is_named() -> None:
    """A line in the nat table that is no rule is reported."""
    read = read_iptables_save("*nat\n:POSTROUTING ACCEPT\nsnat to 203.0.113.1\nCOMMIT\n")
    assert [one.reason for one in read.not_understood] == ["the line is none that iptables-save prints"]


def test_family_without_a_header() -> None:
    """Rules cut out of their file are known as IPv6 by their addresses, or by what the caller says."""
    assert read_iptables_save(rules("-j SNAT --to-source 2001:db8::5")).rules[0].families == {Family.IPV6}
    assert read_iptables_save(rules("-j MASQUERADE")).rules[0].families == {Family.IPV4}
    assert read_iptables_save(rules("-j MASQUERADE"), Family.IPV6).rules[0].families == {Family.IPV6}


@pytest.mark.parametrize("text", ["", "table ip nat {}", "iptables -t nat", "# Generated by iptables-save"])
def test_other_text_is_a_users_error(text: str) -> None:
    """Text without a table is an error that says what to give."""
    with pytest.raises(UsageError, match="iptables-save"):
        read_iptables_save(text)


ODD = ["!", "-", "--", '"', "\\", "-j", "-m", "-s", "::", "[", "]", ":", "999999999999", "nan", "inf"]
WORDS = [*NFT.split(), *ODD]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fuzzed_text_ends_in_an_answer(data: st.DataObject) -> None:
    """A save with words replaced, added or dropped is read and judged or refused, never a traceback."""
    lines = NFT.splitlines()
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        where = data.draw(st.integers(0, len(words)))
        words[where : where + data.draw(st.integers(0, 2))] = data.draw(
            st.lists(st.sampled_from(WORDS), max_size=2)
        )
        lines[at] = " ".join(words)
    with contextlib.suppress(UsageError):
        audit(read_iptables_save("\n".join(lines)))


@pytest.mark.root
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_this_iptables_prints_the_same(zoo: RuleSet, variant: str) -> None:
    """The iptables of this machine saves the zoo so that it reads like the recorded text."""
    if not shutil.which(f"iptables-{variant}-save"):
        pytest.skip(f"iptables-{variant} is not here")
    script = f"sh {FIXTURES}/zoo.iptables.sh >&2 && iptables-{variant}-save && ip6tables-{variant}-save"
    environment = {**os.environ, "V": variant}
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        pytest.skip(f"this machine cannot load the rules: {done.stderr[:200]}")
    assert read_iptables_save(done.stdout) == zoo
