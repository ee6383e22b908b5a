# SPDX-License-Identifier: Apache-2.0
"""What of routes and addresses begins an epoch, and what of the rules does not."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from detector.nat.iptables import read_iptables_save
from detector.nat.mapping import identity_of, mapping_of
from detector.nat.model import RuleSet

HEAD = "*nat\n:POSTROUTING ACCEPT [0:0]\n"

LOOK = """
import subprocess, sys
from detector.nat.iptables import read_iptables_save
from detector.nat.routing import routing_identity
rules = read_iptables_save(sys.argv[1])
def run(*commands):
    for one in commands:
        subprocess.run(["ip", *one.split()], check=True)
    print(routing_identity(rules))
run("link add wan0 type veth peer name far0", "link set wan0 up", "link set far0 up", "link set lo up")
run("address add 192.0.2.2/24 dev wan0", "route add default via 192.0.2.1")
run("address add 10.0.0.1/8 dev lo")
run("address add 192.0.2.3/24 dev wan0")
run("rule add fwmark 7 lookup 100")
run("route add default via 192.0.2.9 table 100")
"""


def save(*lines: str) -> RuleSet:
    """The rules of a save."""
    return read_iptables_save(HEAD + "\n".join(f"-A POSTROUTING {line}" for line in lines) + "\nCOMMIT\n")


def identity(rules: RuleSet) -> str:
    """What an epoch hangs on."""
    return mapping_of(rules, []).identity


@pytest.mark.root
@pytest.mark.parametrize(
    ("line", "changes"),
    [("-j MASQUERADE", [True, False, True, True, True]), ("-j SNAT --to-source 192.0.2.7", [False] * 5)],
)
def test_what_masquerading_hangs_on(line: str, changes: list[bool]) -> None:
    """The uplink's address, policy rules and next hops count for masquerade, none for one exit."""
    if os.geteuid():
        pytest.skip("a namespace needs root")
    text = f"{HEAD}-A POSTROUTING {line}\nCOMMIT\n"
    command = ["unshare", "-n", sys.executable, "-c", LOOK, text]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
    seen = done.stdout.split("\n")[:6]
    assert [before != after for before, after in pairwise(seen)] == changes


def test_a_peer_that_comes_to_a_set_of_senders_changes_nothing() -> None:
    """The exits and how they are chosen are the epoch, not who is named."""
    one = save("-s 10.0.0.2/32 -j SNAT --to-source 192.0.2.2-192.0.2.9", "-j SNAT --to-source 192.0.2.2")
    more = save("-s 10.0.0.2/31 -j SNAT --to-source 192.0.2.2-192.0.2.9", "-j SNAT --to-source 192.0.2.2")
    other = save("-s 10.0.0.2/31 -j SNAT --to-source 192.0.2.2-192.0.2.8", "-j SNAT --to-source 192.0.2.2")
    assert identity(one) == identity(more)
    assert identity(more) != identity(other)


def test_marks_count_where_a_rule_asks_for_one() -> None:
    """Rules that set marks belong to the epoch of those that look at marks."""
    mark = "-j MARK --set-mark 7\nCOMMIT\n"
    marks = [f"*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -s 10.0.0.{at} {mark}" for at in (2, 3)]
    rest = "-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    asked = f"{HEAD}-A POSTROUTING -m mark --mark 7 -j SNAT --to-source 192.0.2.2\n{rest}"
    plain = f"{HEAD}-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    by_mark = {identity_of(read_iptables_save(one + asked), []) for one in marks}
    without = {identity_of(read_iptables_save(one + plain), []) for one in marks}
    assert (len(by_mark), len(without)) == (2, 1)
