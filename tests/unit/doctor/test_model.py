# SPDX-License-Identifier: Apache-2.0
"""Relays that verdicts are not about: each is told from one that they are about, on both sides."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from detector.base.family import Family
from detector.doctor.check import Status
from detector.doctor.model import Facts, facts_of, judged
from detector.nat.files import read_rules_text
from detector.nat.model import RuleSet
from detector.wireguard.model import AllowedIp, Interface, InterfacePeers, Kind, PublicKey

NAT = """
table {nft} nat {{
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "eth0" snat to {exits}
  }}
}}
"""
BOTH = NAT.format(nft="ip", exits="203.0.113.1-203.0.113.9") + NAT.format(
    nft="ip6", exits="2001:db8::1-2001:db8::9"
)


def rules(text: str = BOTH) -> RuleSet:
    """Rules as nft lists them."""
    return read_rules_text(text) if text else RuleSet()


def interface(number: int, *addresses: str) -> InterfacePeers:
    """An interface with a peer for each of these addresses; an empty one has none."""
    peers = {
        PublicKey(bytes([number, index]) + bytes(30)): (
            (AllowedIp(ip_address(text).packed, 8 * len(ip_address(text).packed)),) if text else ()
        )
        for index, text in enumerate(addresses)
    }
    return InterfacePeers(Interface(f"wg{number}", number, Kind.KERNEL), peers)


def told(*interfaces: InterfacePeers, text: str = BOTH, **changed: object) -> str:
    """What is said of a relay, empty where it is one of ours."""
    facts = facts_of(interfaces, rules(text), (), frozenset())
    values = {name: getattr(facts, name) for name in Facts.__slots__} | changed
    finding = judged(Facts(**values))
    assert (finding.status is Status.OK) == (not finding.mend)
    return finding.text if finding.status is Status.NOTE else ""


def test_a_relay_as_it_should_be() -> None:
    """Addresses of their own, and rules for both families."""
    assert told(interface(1, "10.64.0.1", "10.64.0.2", "fd00::1")) == ""
    assert told() == ""


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        (["10.2.0.2", "10.2.0.2"], ""),
        (["10.2.0.2", "10.2.0.2", "10.2.0.3"], "2 of 3 peers share"),
        (["10.2.0.2", "10.2.0.2", "10.2.0.3", "10.2.0.4"], ""),
        (["10.2.0.2", "10.2.0.2", "10.2.0.2"], "3 of 3 peers share"),
    ],
)
def test_peers_that_share_an_address(addresses: list[str], said: str) -> None:
    """Most of three or more peers have an address that others have: one interface each, as some do it."""
    relay = [interface(number, address) for number, address in enumerate(addresses)]
    assert said in told(*relay)
    assert bool(told(*relay)) == bool(said)


def test_peers_without_an_address() -> None:
    """WireGuard gives an address to the last peer that asks, so the others have none."""
    assert "3 of 4 peers have no tunnel address" in told(interface(1, "10.2.0.2", "", "", ""))
    assert told(interface(1, "10.2.0.2", "10.2.0.3", "", "")) == ""
    assert told(interface(1, "", "")) == ""


def test_a_family_that_nobody_here_translates() -> None:
    """Private addresses without a rule: somebody else translates; global ones are for another check."""
    four = NAT.format(nft="ip", exits="203.0.113.1-203.0.113.9")
    assert "no source-NAT rule for IPv6:" in told(interface(1, "10.64.0.1", "fd00::1"), text=four)
    assert told(interface(1, "10.64.0.1", "2a00::1"), text=four) == ""
    assert "for IPv4 and IPv6" in told(interface(1, "10.64.0.1", "fd00::1"), rules=RuleSet())


def test_exits_that_are_translated_again() -> None:
    """Private exits are somebody else's tunnel addresses."""
    twice = NAT.format(nft="ip", exits="192.168.7.1-192.168.7.9")
    assert "translates once more" in told(interface(1, "10.64.0.1"), text=twice)


def test_programs_of_others() -> None:
    """Interfaces are named."""
    assert "eBPF programs of others on eth0" in told(interface(1, "10.64.0.1"), programs=("eth0",))


def test_a_kernel_that_follows_only_what_is_translated() -> None:
    """Peers of that family without a rule leave unseen; with a rule they are seen."""
    late = frozenset({Family.IPV6})
    four = NAT.format(nft="ip", exits="203.0.113.1-203.0.113.9")
    peers = interface(1, "10.64.0.1", "2a00::1")
    assert "does not follow IPv6" in told(peers, text=four, untracked=late)
    assert told(peers, untracked=late) == ""
    assert told(interface(1, "10.64.0.1"), text=four, untracked=late) == ""


def test_no_address_of_a_peer_is_told() -> None:
    """Numbers and families only, also in what the facts look like."""
    peers = [interface(number, "10.2.0.2") for number in range(4)]
    facts = facts_of(peers, RuleSet(), (), frozenset())
    assert "10.2.0" not in repr(facts) + told(*peers, text="")
