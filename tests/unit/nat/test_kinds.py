# SPDX-License-Identifier: Apache-2.0
"""Kinds of rule sets that people have, each with what the audit has to say of it."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from detector.base.errors import ExitprintError
from detector.nat.audit import Form, Judgement, audit
from detector.nat.audit_command import Findings, status_of, to_json
from detector.nat.files import decoded, read_rules_text
from detector.nat.nftables import read_nft_json

CLEAN, LEAKS, UNCLEAR, NOTHING = 0, 1, 2, 4


def save(*lines: str, chains: str = "", table: str = "nat") -> str:
    """A table of iptables-save; a line without a chain is of POSTROUTING."""
    rules = "\n".join(line if line.startswith(("-A", ":")) else f"-A POSTROUTING {line}" for line in lines)
    return f"*{table}\n:POSTROUTING ACCEPT [0:0]\n{chains}{rules}\nCOMMIT\n"


def nft(*rules: str, more: str = "", family: str = "ip") -> str:
    """A table of nft with one base chain at srcnat."""
    lines = "\n".join(rules)
    hook = "type nat hook postrouting priority srcnat; policy accept;"
    return f"table {family} nat {{\n{more}\nchain post {{\n{hook}\n{lines}\n}}\n}}\n"


def found(text: str) -> tuple[Judgement, ...]:
    """What the audit says."""
    if not looks_saved(text) and (os.geteuid() or not shutil.which("nft")):
        pytest.skip("nft text needs nft and root")
    return audit(read_rules_text(text))


def looks_saved(text: str) -> bool:
    """Whether a text needs no nft to be read."""
    return "*nat" in text or "*mangle" in text or "iptables" in text or text.startswith(("-", "{"))


def forms(judged: tuple[Judgement, ...]) -> list[str]:
    """The kinds of finding, in the order of the rules."""
    return [one.form.value for one in judged]


POOL = "203.0.113.20-203.0.113.29"

WG_QUICK = f"""[Interface]
PrivateKey = none
PostUp = iptables -A INPUT -i %i -j ACCEPT; iptables -t nat -A POSTROUTING -o eth0 -j SNAT --to-source {POOL}
PostDown = iptables -t nat -D POSTROUTING -o eth0 -j MASQUERADE
"""

LISTED = f"""# iptables -t nat -L -v -n
Chain POSTROUTING (policy ACCEPT 3 packets, 180 bytes)
 pkts bytes target     prot opt in   out     source         destination
    0     0 SNAT       all  --  *    ppp0    10.7.0.0/24    0.0.0.0/0     to:{POOL} persistent
    4   240 MASQUERADE  all  --  *   ppp0    0.0.0.0/0      0.0.0.0/0
"""

NO_INTERFACES = """Chain POSTROUTING (policy ACCEPT)
target     prot opt source               destination
SNAT       all  --  anywhere             anywhere             to:192.0.2.1
"""

TOMORROW = """table ip nat {
chain p { type nat hook postrouting priority srcnat; masquerade nonsense-of-tomorrow
}
}
"""

SAVED: dict[str, tuple[str, int, list[str]]] = {
    "a set of the kernel decides": (
        save(
            "-m set --match-set vip src -j SNAT --to-source 192.0.2.1",
            "-m set ! --match-set vip src -j SNAT --to-source 192.0.2.2",
        ),
        CLEAN,
        ["groups", "groups"],
    ),
    "a set of destinations decides": (
        save("-m set --match-set cdn dst -j SNAT --to-source 192.0.2.1", "-j SNAT --to-source 192.0.2.2"),
        CLEAN,
        ["one_exit", "one_exit"],
    ),
    "conntrack's source is the source": (
        save("-m conntrack --ctorigsrc 10.7.0.5 -j SNAT --to-source 192.0.2.5", "-j MASQUERADE"),
        LEAKS,
        ["one_to_one", "groups"],
    ),
    "a mark that nobody here sets": (
        save("-m mark --mark 0x7 -j SNAT --to-source 192.0.2.1", "-j MASQUERADE"),
        UNCLEAR,
        ["one_exit", "not_understood"],
    ),
    "one exit, whatever the mark": (
        save(
            "-m connmark --mark 0x7 -j OUT",
            "-A OUT -o ppp0 -j SNAT --to-source 192.0.2.1",
            chains=":OUT - [0:0]\n",
        ),
        CLEAN,
        ["one_exit"],
    ),
    "a program decides": (
        save('-m bpf --bytecode "4,48 0 0 9" -j SNAT --to-source 192.0.2.1', "-j SNAT --to-source 192.0.2.2"),
        UNCLEAR,
        ["one_exit", "not_understood"],
    ),
    "a module that is not known decides": (
        save("-m sorcery --spell 3 -j SNAT --to-source 192.0.2.1", "-j SNAT --to-source 192.0.2.2"),
        UNCLEAR,
        ["one_exit", "not_understood"],
    ),
    "the hardware address decides": (
        save(
            "-m mac --mac-source 02:00:00:00:00:01 -j SNAT --to-source 192.0.2.1",
            "-j SNAT --to-source 192.0.2.2",
        ),
        CLEAN,
        ["groups", "groups"],
    ),
    "bits under a mask": (
        save("-s 0.0.0.0/0.0.0.2 -j SNAT --to-source 192.0.2.1", "-j SNAT --to-source 192.0.2.2"),
        LEAKS,
        ["address_bits", "address_bits"],
    ),
    "a byte in the middle": (
        save(
            "-s 10.0.4.0/255.0.255.0 -j SNAT --to-source 192.0.2.1",
            "-s 10.0.5.0/255.0.255.0 -j SNAT --to-source 192.0.2.2",
        ),
        LEAKS,
        ["address_bits", "address_bits"],
    ),
    "a dotted mask is a prefix": (
        save("-s 10.9.0.0/255.255.0.0 -j SNAT --to-source 192.0.2.1"),
        CLEAN,
        ["one_exit"],
    ),
    "everybody but one": (
        save(
            "! -s 10.7.0.9/32 -o ppp0 -j SNAT --to-source 192.0.2.1", "-o ppp0 -j SNAT --to-source 192.0.2.2"
        ),
        LEAKS,
        ["groups", "one_to_one"],
    ),
    "everybody but a network": (
        save("! -s 10.7.0.0/24 -j SNAT --to-source 192.0.2.1", "-j SNAT --to-source 192.0.2.2"),
        CLEAN,
        ["groups", "groups"],
    ),
    "a customer with a pool of its own": (
        save(
            "-s 10.7.0.9/32 -m statistic --mode nth --every 2 --packet 0 -j SNAT --to-source 192.0.2.8",
            "-s 10.7.0.9/32 -j SNAT --to-source 192.0.2.9",
            "-j SNAT --to-source 192.0.2.1",
        ),
        LEAKS,
        ["one_to_one", "groups"],
    ),
    "protocols are no groups": (
        save(
            "-s 10.7.0.0/24 -p tcp -j SNAT --to-source 192.0.2.1",
            "-s 10.7.0.0/24 -p udp -j SNAT --to-source 192.0.2.2",
        ),
        CLEAN,
        ["one_exit", "one_exit"],
    ),
    "uplinks are no groups": (
        save(
            "-s 10.7.0.0/24 -o ppp0 -j SNAT --to-source 192.0.2.1",
            "-s 10.8.0.0/24 -o lte0 -j SNAT --to-source 192.0.2.2",
        ),
        CLEAN,
        ["one_exit", "one_exit"],
    ),
    "a port for all is no group": (
        save(
            "-s 10.7.0.0/16 -p tcp -m tcp --dport 25 -j SNAT --to-source 192.0.2.1",
            "-s 10.7.1.0/24 -j SNAT --to-source 192.0.2.2",
        ),
        CLEAN,
        ["one_exit", "one_exit"],
    ),
    "a hairpin": (
        save("-s 192.168.7.2/32 -d 192.168.7.0/24 -j SNAT --to-source 192.168.7.1", "-o ppp0 -j MASQUERADE"),
        CLEAN,
        ["own_network", "one_exit"],
    ),
    "a range for the own network": (
        save(f"-d 10.0.0.0/8 -j SNAT --to-source {POOL}", "-j MASQUERADE"),
        CLEAN,
        ["own_network", "one_exit"],
    ),
    "a private exit is no proof that no site sees it": (
        save("-j SNAT --to-source 10.0.0.20-10.0.0.29 --persistent"),
        LEAKS,
        ["kernel_hash"],
    ),
    "blocks of ports": (
        save(
            "-s 100.64.7.2/32 -p udp -j SNAT --to-source 192.0.2.1:10000-10999",
            "-s 100.64.7.3/32 -p udp -j SNAT --to-source 192.0.2.1:11000-11999",
        ),
        LEAKS,
        ["port_block", "port_block"],
    ),
    "the same ports for all": (
        save(
            "-s 100.64.7.2/32 -p udp -j SNAT --to-source 192.0.2.1:10000-10999",
            "-s 100.64.7.3/32 -p udp -j SNAT --to-source 192.0.2.1:10000-10999",
        ),
        CLEAN,
        ["one_exit", "one_exit"],
    ),
    "ports of a group": (
        save(
            "-s 100.64.7.0/25 -p udp -j SNAT --to-source 192.0.2.1:10000-10999",
            "-s 100.64.7.128/25 -p udp -j SNAT --to-source 192.0.2.1:11000-11999",
        ),
        CLEAN,
        ["groups", "groups"],
    ),
    "two rules of one peer are one peer": (
        save(
            "-s 10.7.0.2/32 -p tcp -j SNAT --to-source 192.0.2.2",
            "-s 10.7.0.2/32 -p icmp -j SNAT --to-source 192.0.2.2",
        ),
        LEAKS,
        ["one_to_one", "one_to_one"],
    ),
    "a rule behind one that takes all of its packets": (
        save("-o ppp+ -j MASQUERADE", f"-s 10.7.0.0/24 -o ppp0 -j SNAT --to-source {POOL}"),
        CLEAN,
        ["one_exit", "translates_nothing"],
    ),
    "the same rule twice": (
        save("-s 10.7.0.0/24 -j SNAT --to-source 192.0.2.1", "-s 10.7.0.0/24 -j SNAT --to-source 192.0.2.1"),
        CLEAN,
        ["one_exit", "translates_nothing"],
    ),
    "a limit takes not everything": (
        save("-m limit --limit 5/sec -j MASQUERADE", f"-j SNAT --to-source {POOL}"),
        LEAKS,
        ["one_exit", "kernel_hash"],
    ),
    "prefixes outside of conntrack": (
        save("-o ppp0 -j SNPT --src-pfx fd07::/64 --dst-pfx 2001:db8:7::/64", table="mangle").replace(
            "*mangle", "# ip6tables-save\n*mangle"
        ),
        LEAKS,
        ["netmap"],
    ),
    "targets that let packets go on": (
        save(
            "-j CLASSIFY --set-class 1:1",
            "-j LED --led-trigger-id wan",
            "-j TTL --ttl-set 64",
            "-j MASQUERADE",
        ),
        CLEAN,
        ["one_exit"],
    ),
    "no rule": (save(), NOTHING, []),
    "no rule that is reached": (
        save("-A NEVER -j MASQUERADE", "-j ACCEPT", "-j MASQUERADE", chains=":NEVER - [0:0]\n"),
        NOTHING,
        ["translates_nothing"],
    ),
    "lines of -S": (
        f"-P POSTROUTING ACCEPT\n-N OUT\n-A POSTROUTING -o ppp0 -j OUT\n-A OUT -j SNAT --to-source {POOL}\n",
        LEAKS,
        ["kernel_hash"],
    ),
    "a file of wg-quick": (
        WG_QUICK,
        LEAKS,
        ["kernel_hash"],
    ),
    "a listing by -L -v -n": (
        LISTED,
        LEAKS,
        ["kernel_hash", "groups"],
    ),
    "a terminal": (
        f"me@relay:~$ sudo iptables-save -t nat\n{save('-j MASQUERADE')}me@relay:~$ exit\n",
        CLEAN,
        ["one_exit"],
    ),
    "indented": (
        "\n".join(f"\t{line}" for line in save(f"-j SNAT --to-source {POOL}").splitlines()),
        LEAKS,
        ["kernel_hash"],
    ),
}

NFT: dict[str, tuple[str, int, list[str]]] = {
    "a comparison of addresses": (
        nft("ip saddr > 10.7.0.100 snat to 192.0.2.1", "ip saddr <= 10.7.0.100 snat to 192.0.2.2"),
        CLEAN,
        ["groups", "groups"],
    ),
    "bits of the address": (
        nft("ip saddr & 0.0.0.4 == 0.0.0.4 snat to 192.0.2.1", "snat to 192.0.2.2"),
        LEAKS,
        ["address_bits", "address_bits"],
    ),
    "a mask that is a prefix": (
        nft("ip saddr & 255.255.255.0 == 10.7.0.0 snat to 192.0.2.1", "snat to 192.0.2.2"),
        CLEAN,
        ["groups", "groups"],
    ),
    "conntrack's source": (
        nft(
            "ct original ip saddr 10.7.0.5 snat ip to 192.0.2.5",
            "meta nfproto ipv4 masquerade",
            family="inet",
        ),
        LEAKS,
        ["one_to_one", "groups"],
    ),
    "verdicts by peer and uplink": (
        nft(
            'ip saddr . oifname vmap { 10.7.0.2 . "ppp0" : jump a, 10.7.0.3 . "ppp0" : jump b }',
            more="chain a { snat to 192.0.2.2\n}\nchain b { snat to 192.0.2.3\n}",
        ),
        LEAKS,
        ["one_to_one", "one_to_one"],
    ),
    "one peer in a concatenation": (
        nft('ip saddr . oifname { 10.7.0.2 . "ppp0" } snat to 192.0.2.2', "snat to 192.0.2.1"),
        LEAKS,
        ["one_to_one", "groups"],
    ),
    "elements for one and for many": (
        nft("snat to ip saddr map { 10.7.0.2 : 192.0.2.2, 10.7.1.0/24 : 192.0.2.9 }"),
        LEAKS,
        ["one_to_one"],
    ),
    "an element for whoever is left": (
        nft("snat to ip saddr map { 10.7.0.0/25 : 192.0.2.2, * : 192.0.2.9 }"),
        CLEAN,
        ["groups"],
    ),
    "blocks of ports in a map": (
        nft(
            "ip protocol udp snat ip to ip saddr map { 10.7.0.2 : 192.0.2.1 . 1024-2047, "
            "10.7.0.3 : 192.0.2.1 . 2048-3071 }"
        ),
        LEAKS,
        ["port_block"],
    ),
    "interfaces of peers": (
        nft('iifname "wg-a" snat to 192.0.2.1', 'iifname "wg-b" snat to 192.0.2.2'),
        CLEAN,
        ["interfaces", "interfaces"],
    ),
    "a mark": (nft("ct mark 7 snat to 192.0.2.1", "masquerade"), UNCLEAR, ["one_exit", "not_understood"]),
    "sets that packets fill": (
        nft(
            "ip saddr @seen snat to 192.0.2.1",
            "snat to 192.0.2.2",
            more="set seen { type ipv4_addr; flags dynamic; }",
        ),
        CLEAN,
        ["groups", "groups"],
    ),
    "a map that is filled later": (
        nft("snat to ip saddr map @homes", more="map homes { type ipv4_addr : ipv4_addr; }"),
        UNCLEAR,
        ["not_understood"],
    ),
    "host bits by mask and or": (
        nft("ip saddr 10.7.0.0/26 snat ip to ip saddr & 0.0.0.63 | 192.0.2.64"),
        LEAKS,
        ["netmap"],
    ),
    "two chains of one priority": (
        nft("masquerade")
        + nft(f"snat to {POOL} persistent")
        .replace("table ip nat", "table inet other", 1)
        .replace("snat to", "snat ip to"),
        LEAKS,
        ["one_exit", "kernel_hash"],
    ),
    "two chains of one priority, the other way": (
        nft(f"snat to {POOL} persistent") + nft("masquerade").replace("table ip nat", "table ip other", 1),
        LEAKS,
        ["kernel_hash", "one_exit"],
    ),
    "a chain that is asked before": (
        nft(f"snat to {POOL} persistent")
        + nft("masquerade")
        .replace("table ip nat", "table ip first", 1)
        .replace("priority srcnat", "priority srcnat - 1"),
        CLEAN,
        ["one_exit", "translates_nothing"],
    ),
    "hairpins of two ports": (
        nft(
            "ip saddr 10.7.0.0/24 ip daddr 10.7.0.9 tcp dport 22 snat to 10.7.0.1",
            "ip saddr 10.7.0.0/24 ip daddr 10.7.0.9 tcp dport 80 snat to 192.0.2.1",
        ),
        CLEAN,
        ["own_network", "own_network"],
    ),
    "interfaces behind define": (
        "define out = ppp0\ndefine ins = { eth7, wg7 }\n" + nft(f"iif $ins oif $out snat to {POOL}"),
        LEAKS,
        ["kernel_hash"],
    ),
    "interfaces in a set and a concatenation": (
        nft(
            f"oif @outs snat to {POOL}",
            'oif . ip saddr { "lte7" . 10.7.0.1 } masquerade',
            more='set outs { type iface_index; elements = { "ppp7", "ppp8" }; }',
        ),
        LEAKS,
        ["kernel_hash", "one_exit"],
    ),
    "interfaces as keys": (
        nft('oif vmap { "lo" : accept, "ppp7" : jump out }', more=f"chain out {{ snat to {POOL}\n}}"),
        LEAKS,
        ["kernel_hash"],
    ),
    "a terminal": ("me@relay:~$ sudo nft list ruleset\n" + nft(f"snat to {POOL}"), LEAKS, ["kernel_hash"]),
    "raw bits of the source": (
        nft("@nh,124,4 3 snat to 192.0.2.1", "snat to 192.0.2.2"),
        LEAKS,
        ["address_bits", "address_bits"],
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_kinds_of_iptables(name: str) -> None:
    """Status and kinds of finding."""
    text, status, kinds = SAVED[name]
    judged = found(text)
    assert (status_of(judged), sorted(forms(judged))) == (status, sorted(kinds))


@pytest.mark.root
@pytest.mark.parametrize("name", NFT)
def test_kinds_of_nft(name: str) -> None:
    """Status and kinds of finding."""
    text, status, kinds = NFT[name]
    judged = found(text)
    assert (status_of(judged), sorted(forms(judged))) == (status, sorted(kinds))


def test_bits_are_of_peers() -> None:
    """Two peers on two uplinks are one bit, one peer is none."""
    pairs = [
        f"-s 10.7.0.{at}/32 -o {out} -j SNAT --to-source {net}.{at}" for out, net in UPLINKS for at in (2, 3)
    ]
    assert {one.bits for one in found(save(*pairs))} == {1.0}
    assert {one.bits for one in found(save("-s 10.7.0.2/32 -j SNAT --to-source 192.0.2.2"))} == {None}


UPLINKS = (("ppp0", "192.0.2"), ("lte0", "198.51.100"))


def test_a_remedy_has_the_exits_of_its_own_place() -> None:
    """Neither another uplink's exits nor the private one of a hairpin come in."""
    pairs = [
        f"-s 10.7.0.{at}/32 -o {out} -j SNAT --to-source {net}.{at}" for out, net in UPLINKS for at in (2, 3)
    ]
    hairpin = "-s 10.7.0.0/24 -d 10.7.0.2/32 -j SNAT --to-source 10.7.0.1"
    judged = [one for one in found(save(*pairs, hairpin)) if one.remedy is not None]
    assert len({id(one.remedy) for one in judged}) == 2
    for one in judged:
        assert one.remedy is not None
        assert ("ppp0" in one.remedy.text) == ("192.0.2.2" in one.remedy.text)
        assert ("ppp0" in one.remedy.text) != ("198.51.100.2" in one.remedy.text)
        assert "10.7.0.1" not in one.remedy.text.replace("10.7.0.2", "")


def test_chains_of_one_priority_are_named() -> None:
    """What depends on the order of registration is said with both."""
    if os.geteuid() or not shutil.which("nft"):
        pytest.skip("nft text needs nft and root")
    judged = found(NFT["two chains of one priority"][0])
    assert ["inet other post" in one.note or "ip nat post" in one.note for one in judged] == [True, True]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            '# Warning: managed by iptables-nft\ntable ip nat {\nchain P {\nxt target "SNAT"\n}\n}\n',
            "iptables-save",
        ),
        (NO_INTERFACES, "-L -v -n"),
        (TOMORROW, "nft -j list ruleset"),
        ('include "./no-such-file.nft"\ntable ip nat { }\n', "no-such-file.nft"),
    ],
)
def test_what_cannot_be_read_says_the_way_out(text: str, hint: str) -> None:
    """Each refusal names what to give instead."""
    if os.geteuid() or not shutil.which("nft"):
        pytest.skip("nft text needs nft and root")
    with pytest.raises(ExitprintError) as caught:
        read_rules_text(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_encodings(encoding: str) -> None:
    """Marks of byte order, UTF-16 and the letters of old terminals do not hide the rules."""
    text = save(f'-m comment --comment "für alle" -j SNAT --to-source {POOL}')
    judged = found(decoded(text.encode(encoding), "x"))
    assert [one.form for one in judged] == [Form.KERNEL_HASH]
    assert judged[0].comment == "für alle"


def test_flags_with_many_operands() -> None:
    """What newer nft lists as one operation of many operands is written back with parentheses."""
    mask = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["fin", "syn", "rst", "ack"]}]}
    expr: list[Any] = [
        {"match": {"op": "==", "left": mask, "right": "syn"}},
        {"snat": {"addr": {"range": ["192.0.2.1", "192.0.2.4"]}}},
    ]
    head = {"family": "ip", "table": "n", "name": "p", "handle": 1}
    chain = {**head, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    rule = {"family": "ip", "table": "n", "chain": "p", "handle": 2, "expr": expr}
    (one,) = audit(read_nft_json(json.dumps({"nftables": [{"chain": chain}, {"rule": rule}]})))
    assert one.text.startswith("tcp flags & (fin | syn | rst | ack) == syn snat")
    assert one.remedy is not None
    assert "tcp flags & (fin | syn | rst | ack) == syn snat" in one.remedy.text


def test_two_thousand_pairs_are_one_finding() -> None:
    """Output grows with the kinds of findings, not with the rules: under 200 kB, and the remedy once."""
    pairs = [
        f"-s 10.7.{at >> 8}.{at & 255}/32 -o ppp0 -j SNAT --to-source 203.0.{at >> 8}.{at & 255}"
        for at in range(2000)
    ]
    rules = read_rules_text(save(*pairs))
    printed = to_json(Findings(audit(rules), rules, "a file"))
    assert len(printed) < 200_000
    (one,) = json.loads(printed)["rules"]
    assert one["count"] == 2000
    assert printed.count("jhash ip saddr mod") == 2
