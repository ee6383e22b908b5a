# SPDX-License-Identifier: Apache-2.0
"""Every remedy of the audit, proved with flows: the same are translated, the same exempt, the leak is gone.

A rule set is loaded on a relay, flows are sent, and conntrack says where each one left. Then the rules are
loaded anew with what the audit wrote in the place of those that leak, and the same flows are sent again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from detector.base.family import Address
from detector.base.verdicts import Severity
from detector.lab.namespaces import entered
from detector.nat.audit import Form, Judgement, audit
from detector.nat.live import read_live
from detector.nat.remedy_text import Remedy
from tests.system.kernel.topology import Flow, Relay, built, peer, site
from tests.system.nat.forms import IP6TABLES, IPTABLES, NFT

PEERS = range(1, 17)
SITES = (1, 2, 3, 4, 5, 50)

pytestmark = pytest.mark.root

_LINE = re.compile(
    r"udp +17 .*?src=(\S+) dst=(\S+) sport=(\d+) dport=\d+ .*?src=\S+ dst=(\S+) sport=\d+ dport=(\d+)"
)


@dataclass(frozen=True, slots=True)
class Left:
    """Where a flow left."""

    exit: Address
    port: int


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    """The namespaces, once for all tests."""
    missing = [tool for tool in ("ip", "nft", "conntrack", "iptables-restore") if shutil.which(tool) is None]
    if os.geteuid() or missing:
        pytest.skip(f"needs root and {', '.join(missing) or 'its commands'}")
    with built() as relay:
        yield relay


def load(relay: Relay, tool: str, text: str) -> None:
    """Replace all rules of the relay."""
    relay.rules()
    with entered(relay.middle):
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        command = ["nft", "-f", "-"] if tool == "nft" else [f"{tool}-restore"]
        subprocess.run(command, input=text, text=True, check=True)


def judged(relay: Relay) -> tuple[Judgement, ...]:
    """What the audit says of the rules that the relay has now."""
    with entered(relay.middle):
        return audit(read_live())


def remedies(found: tuple[Judgement, ...]) -> list[Remedy]:
    """Each remedy once, in the order of the rules."""
    return list({id(one.remedy): one.remedy for one in found if one.remedy is not None}.values())


def put(relay: Relay, remedy: Remedy, tool: str, *, iptables: bool) -> None:
    """Put a remedy in place, as its words say; `iptables` takes its other form where it has one."""
    if iptables and remedy.iptables:
        command, text = [f"{tool}-restore", "--noflush"], remedy.iptables
    elif remedy.language == "iptables":
        command, text = [f"{tool}-restore", "--noflush"], remedy.text
    else:
        command, text = ["nft", "-f", "-"], remedy.commands or remedy.text
    with entered(relay.middle):
        check = [*command, "--test"] if command[0] != "nft" else ["nft", "-c", "-f", "-"]
        subprocess.run(check, input=text, text=True, check=True)
        if remedy.commands:
            subprocess.run(["nft", "-c", "-f", "-"], input=remedy.text, text=True, check=True)
        subprocess.run(command, input=text, text=True, check=True)


def exits(relay: Relay, version: int) -> dict[Flow, Left]:
    """Send a flow of each peer to each site, and see where it leaves."""
    relay.forget()
    flows = [
        Flow(peer(at, version), site(number, version), 20000 + 100 * at + place)
        for at in PEERS
        for place, number in enumerate(SITES)
    ]
    relay.send(flows)
    with entered(relay.middle):
        family = "ipv4" if version == 4 else "ipv6"
        command = ["conntrack", "-L", "-p", "udp", "-f", family]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {
        Flow(ip_address(source), ip_address(destination), int(port)): Left(ip_address(exit_), int(new))
        for source, destination, port, exit_, new in _LINE.findall(listed)
    }
    assert set(flows) <= set(found)
    return {flow: found[flow] for flow in flows}


def translated(left: dict[Flow, Left]) -> set[Flow]:
    """The flows whose source address was changed."""
    return {flow for flow, where in left.items() if where.exit != flow.source}


def proved(relay: Relay, tool: str, text: str, *, iptables: bool = False) -> None:
    """Put the rules, then their remedy, and compare what leaves."""
    version = 6 if tool == "ip6tables" else 4
    load(relay, tool, text)
    found = judged(relay)
    leaks = [one for one in found if one.severity is Severity.CRITICAL]
    assert leaks, text
    assert all(one.remedy is not None for one in leaks), leaks
    stateless = any(one.where.startswith("ip6tables -t mangle") for one in found)
    before = {} if stateless else exits(relay, version)
    again = before if stateless else exits(relay, version)
    load(relay, tool, text)
    for remedy in remedies(found):
        put(relay, remedy, tool, iptables=iptables)
    after = exits(relay, version)
    still = [one for one in judged(relay) if one.severity in {Severity.CRITICAL, Severity.UNKNOWN}]
    assert still == []
    if stateless:  # conntrack does not see what was translated before: the rule's own prefix says it
        assert len(translated(after)) == len(after)
    else:
        assert translated(after) == translated(before)
    assert {left.exit for left in after.values() if left.exit in EXITS} <= EXITS
    gone({form.form for form in leaks}, before, again, after)


EXITS = {ip_address(f"203.0.113.{at}") for at in range(64)} | {
    ip_address(f"2001:db8:e::{at:x}") for at in range(64)
}


def gone(
    forms: set[Form], before: dict[Flow, Left], again: dict[Flow, Left], after: dict[Flow, Left]
) -> None:
    """The exit (or port) tells no more who sends."""
    moved = translated(after)
    if Form.PORT_BLOCK in forms:
        assert blocks(before, moved) == {1}
        assert max(blocks(after, moved)) > 1
    elif Form.ONE_TO_ONE in forms:
        alone = {exit_: users for exit_, users in by_exit(before, moved).items() if len(users) == 1}
        now = by_exit(after, moved)
        assert alone
        assert sum(now.get(exit_) == users for exit_, users in alone.items()) <= len(alone) / 2
    elif before is not again:
        fixed = [flow for flow in moved if before[flow].exit == again[flow].exit]
        assert len(fixed) > len(moved) / 3  # a rule of half of the flows fixes those alone
        same = sum(before[flow].exit == after[flow].exit for flow in fixed)
        assert same / len(fixed) < 0.75


def by_exit(left: dict[Flow, Left], flows: set[Flow]) -> dict[Address, set[Address]]:
    """The peers on each exit."""
    users: defaultdict[Address, set[Address]] = defaultdict(set)
    for flow in flows:
        users[left[flow].exit].add(flow.source)
    return users


def blocks(left: dict[Flow, Left], flows: set[Flow]) -> set[int]:
    """How many peers each block of 2,000 ports has, of all that are used."""
    users: defaultdict[int, set[Address]] = defaultdict(set)
    for flow in flows:
        users[left[flow].port // 2000].add(flow.source)
    return {len(peers) for peers in users.values()}


@pytest.mark.parametrize("name", NFT)
def test_rules_of_nft(relay: Relay, name: str) -> None:
    """Each form of nft, and its remedy in the place of the rule."""
    proved(relay, "nft", NFT[name])


@pytest.mark.parametrize("name", IPTABLES)
def test_rules_of_iptables(relay: Relay, name: str) -> None:
    """Each form of iptables, and the chain beside it."""
    proved(relay, "iptables", IPTABLES[name])


@pytest.mark.parametrize("name", IPTABLES)
def test_iptables_in_its_own_words(relay: Relay, name: str) -> None:
    """Each form of iptables, and the remedy that is iptables' own."""
    proved(relay, "iptables", IPTABLES[name], iptables=True)


@pytest.mark.parametrize("name", IP6TABLES)
def test_rules_of_ip6tables(relay: Relay, name: str) -> None:
    """IPv6 by iptables, prefix translation without conntrack among it."""
    proved(relay, "ip6tables", IP6TABLES[name])
