# SPDX-License-Identifier: Apache-2.0
"""What the audit says of each shape of rule, and that its remedies load and are clean."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from detector.base.family import Family
from detector.base.ranges import AddressRange, parse_pool
from detector.base.verdicts import Severity
from detector.lab.mappings import MAPPINGS
from detector.nat.audit import Judgement, Reach, audit
from detector.nat.audit_command import audit_command
from detector.nat.files import read_rules_text
from detector.nat.iptables import read_iptables_save
from detector.nat.model import NatRule, RangeHash, Where, rule_set
from detector.nat.nftables import read_nft_json
from tests.unit.nat import zoo

FIXTURES = Path(__file__).parent / "fixtures"
ZOO = tuple(one for text in zoo.listings() for one in audit(read_nft_json(text)))
IPTABLES = tuple(one for text in zoo.saves() for one in audit(read_iptables_save(text)))


def the(judged: tuple[Judgement, ...], text: str) -> Judgement:
    """The one judgement on the rule that contains this."""
    found = {(one.where, one.verdict): one for one in judged if text in one.text}
    assert len(found) == 1, found
    return next(iter(found.values()))


@pytest.mark.parametrize(
    ("text", "verdict", "predictor", "reach", "bits"),
    [
        ("@customers", "predictable", "kernel_persistent", Reach.ANY_SITE_EVERY_RELAY, 5.88),
        ('oif "lo"', "predictable", "kernel_destination", Reach.ONE_SITE_EVERY_RELAY, 5.88),
        ("203.0.113.126 fully-random", "predictable", "kernel_destination", Reach.ONE_SITE_EVERY_RELAY, 5.88),
        ('oifname "eth0" snat prefix', "predictable", "netmap", Reach.ANY_SITE_EVERY_RELAY, 4),
        ("jhash ip saddr mod 4 map", "pinned", None, Reach.ANY_SITE_THIS_RELAY, 2),
        ("jhash ip saddr mod 4 seed", "predictable", "seeded_jhash", Reach.ANY_SITE_EVERY_RELAY, 2),
        ("jhash ip saddr . ip daddr", "predictable", "seeded_jhash", Reach.ONE_SITE_EVERY_RELAY, 2),
        ("symhash", "unlinkable", None, Reach.NOBODY, 0),
        ("to numgen random", "unlinkable", None, Reach.NOBODY, 0),
        ("to numgen inc", "unlinkable", None, Reach.NOBODY, 0),
        ("map @one", "exclusive", None, Reach.ANY_SITE_EVERY_RELAY, 1),
        ("10.4.0.1", "exclusive", None, Reach.ANY_SITE_EVERY_RELAY, None),
        ("0.0.0.3 map", "predictable", "modulo", Reach.ANY_SITE_EVERY_RELAY, 1),
        ("map @ranges", "predictable", "kernel_destination", Reach.ONE_SITE_EVERY_RELAY, 4),
        ("ip daddr map", "single_exit", None, Reach.NOBODY, 0),
        ('oifname "eth1" masquerade', "single_exit", None, Reach.NOBODY, 0),
        ("2001:db8:1::40", "predictable", "kernel_persistent", Reach.ANY_SITE_EVERY_RELAY, 32),
        ("@marks", "unknown", None, Reach.UNKNOWN, None),
    ],
)
def test_judgements(text: str, verdict: str, predictor: str | None, reach: Reach, bits: float | None) -> None:
    """Each shape of rule gets its verdict, to whom it leaks, and how many bits."""
    found = the(ZOO, text)
    assert (found.verdict, found.predictor, found.reach, found.bits) == (verdict, predictor, reach, bits)
    assert found.leaks == (verdict in {"predictable", "exclusive"})
    assert found.why


def test_false_cures_are_named() -> None:
    """Port flags and the dropping of persistent are said to be no cure, where they stand."""
    both = the(ZOO, "@customers").why
    assert "`random` is no cure" in both
    assert "Dropping `persistent` is no cure" in both
    assert "no cure" not in the(ZOO, 'oif "lo"').why
    assert "`fully-random` is no cure" in the(IPTABLES, "multiport").why


def test_groups_of_sources() -> None:
    """Rules that give networks an exit each tell the group: a warning, not a leak."""
    text = "*nat\n:POSTROUTING ACCEPT\n" + "".join(
        f"-A POSTROUTING -s 10.{at}.0.0/16 -j SNAT --to-source 203.0.113.{at}\n" for at in range(1, 5)
    )
    judged = audit(read_iptables_save(text))
    assert {(one.verdict, one.severity, one.bits) for one in judged} == {("pinned", Severity.WARNING, 2.0)}


def test_one_rule_for_each_peer_is_exclusive() -> None:
    """A rule for each single source is a one-to-one map; the remedy shares their exits."""
    text = "*nat\n:POSTROUTING ACCEPT\n" + "".join(
        f"-A POSTROUTING -s 10.0.0.{at}/32 -j SNAT --to-source 203.0.113.{at}\n" for at in range(1, 9)
    )
    judged = audit(read_iptables_save(text))
    assert [(one.verdict, one.bits) for one in judged] == [("exclusive", 3.0)] * 8
    assert judged[2].remedy is not None
    assert "jhash ip saddr mod 8" in judged[2].remedy.text
    assert "ip saddr 10.0.0.1-10.0.0.8 snat" in judged[2].remedy.text
    assert {id(one.remedy) for one in judged} == {id(judged[0].remedy)}


def test_a_rule_on_two_ways_is_told_once() -> None:
    """A chain that several jumps reach is one rule to mend."""
    whole = audit(read_nft_json(zoo.NFT))
    assert len([one for one in whole if one.where == "ip nat sub handle 10"]) == 1


def test_a_large_pool_gets_a_map_that_people_can_load() -> None:
    """Of a pool of 2^64, some exits evenly spread are written."""
    pool = parse_pool("2001:db8::/64")
    where = Where("nftables", "ip6", "nat", "post", 1)
    rule = NatRule(frozenset({Family.IPV6}), where, "snat to ...", (), RangeHash(pool, persistent=True))
    (judged,) = audit(rule_set([rule], []))
    assert judged.remedy is not None
    assert judged.remedy.expression == "jhash ip6 saddr mod 256"
    assert "255 : 2001:db8:0:0:ff00::" in judged.remedy.text


def test_one_address_range_has_no_remedy() -> None:
    """Where there is no second exit, the paragraph says so."""
    found = the(ZOO, "meta l4proto map")
    assert found.remedy is None
    assert "no second exit" in found.why


def needs_nft() -> None:
    """Skips where nft text cannot be loaded."""
    if os.geteuid() or not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("needs root, nft and unshare")


LOAD = """
for file in "$@"; do
    nft -c -f "$file" && nft -f "$file" && nft -j list ruleset > "$file.json" || exit 1
    nft flush ruleset
done
"""
HOOK = "type nat hook postrouting priority srcnat;"
MEMBERS = "set customers { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; };"


@pytest.mark.root
def test_remedies_load_and_are_clean(tmp_path: Path) -> None:
    """`nft -c -f` takes each remedy and its alternatives, and the audit finds no leak in what they load."""
    needs_nft()
    texts = []
    for one in (*ZOO, *IPTABLES):
        if one.remedy is not None:
            written = one.remedy.text.replace("chain sub {", f"chain sub {{ {HOOK}")
            written = re.sub(r"^table ip nat \{", f"table ip nat {{ {MEMBERS}", written)
            written = re.sub(r"^table inet later \{", "table inet later { counter c { }; ", written)
            expressions = [one.remedy.expression, *(expression for expression, _ in one.remedy.alternatives)]
            texts += [written.replace(one.remedy.expression, expression) for expression in expressions]
    files = [tmp_path / f"{number}.nft" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    subprocess.run(["unshare", "-n", "sh", "-c", LOAD, "sh", *files], check=True)
    assert len(files) > 60
    for file, text in zip(files, texts, strict=True):
        judged = audit(read_nft_json(Path(f"{file}.json").read_text()))
        clean = Severity.OK if "numgen" in text else Severity.WARNING
        assert [found.severity for found in judged] == [clean], text


@pytest.mark.root
@pytest.mark.parametrize("name", sorted(MAPPINGS))
def test_agrees_with_the_lab(name: str) -> None:
    """Of every mapping that the lab can build, the audit says before what the lab shows after."""
    needs_nft()
    pools = [parse_pool("203.0.113.64/28"), parse_pool("2001:db8::10-2001:db8::1f")]
    judged = audit(read_rules_text(MAPPINGS[name].ruleset(pools, "eth0")))
    expected = (MAPPINGS[name].verdict, MAPPINGS[name].predictor)
    assert [(one.verdict, one.predictor) for one in judged] == [expected] * 2


def run(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command."""
    done = CliRunner().invoke(audit_command, list(arguments), input=text)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_command_on_leaks() -> None:
    """Leaks are status 1, and the remedy can be copied from the screen as it is."""
    status, out, _ = run(str(FIXTURES / "zoo.json"))
    assert status == 1
    remedy = the(ZOO, "@customers").remedy
    assert remedy is not None
    assert remedy.text.expandtabs() in out.expandtabs()


def test_command_as_json() -> None:
    """`--json` prints one object with a judgement for each rule."""
    status, out, _ = run("--json", "-", text=(FIXTURES / "zoo.iptables-nft").read_text())
    told = json.loads(out)
    assert status == 1
    assert told["result"] == "leaks"
    assert told["schema_version"]
    whole = audit(read_iptables_save(zoo.SAVE))
    assert [one["where"] for one in told["rules"]] == [one.where for one in whole]
    assert {"where", "verdict", "reach", "bits", "why", "remedy", "leaks"} <= set(told["rules"][0])


def save(line: str) -> str:
    """A save with one rule."""
    return f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {line}\nCOMMIT\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (save("-j MASQUERADE"), 0),
        (save("-j SNAT --to-source 203.0.113.1-203.0.113.9"), 1),
        (save("-j SAME --to 203.0.113.1-203.0.113.9"), 2),
        ("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n", 4),
        ("", 2),
        ('{"nftables": 3}', 2),
    ],
)
def test_exit_status(text: str, status: int) -> None:
    """0 clean, 1 leaks, 2 not readable or not understood, 4 nothing translates."""
    assert run("-", text=text)[0] == status


def test_strict_calls_a_warning_a_leak() -> None:
    """`--strict` counts what is linkable on this relay alone."""
    text = save("-s 10.1.0.0/16 -j SNAT --to-source 203.0.113.1").replace(
        "COMMIT", "-A POSTROUTING -s 10.2.0.0/16 -j SNAT --to-source 203.0.113.2\nCOMMIT"
    )
    assert run("-", text=text)[0] == 0
    assert run("--strict", "-", text=text)[0] == 1


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """The error names the file and ends in status 2."""
    status, out, err = run(str(tmp_path / "gone"))
    assert (status, out) == (2, "")
    assert err.startswith("exitprint audit: ")
    assert "gone" in err


def test_bits_of_a_small_range() -> None:
    """Two exits are one bit."""
    pool = AddressRange(ip_address("203.0.113.1"), ip_address("203.0.113.2"))
    where = Where("nftables", "ip", "nat", "post", 1)
    rule = NatRule(frozenset({Family.IPV4}), where, "snat to ...", (), RangeHash(pool, persistent=True))
    assert [one.bits for one in audit(rule_set([rule], []))] == [1.0]


def test_an_exit_that_others_share_is_not_exclusive() -> None:
    """A rule for one peer whose exit others have too does not name the peer."""
    rules = "-s 10.0.0.1/32 -j SNAT --to-source 203.0.113.1\n-A POSTROUTING "
    shared = audit(read_iptables_save(save(rules + "-s 10.0.0.2/32 -j SNAT --to-source 203.0.113.1")))
    assert [one.verdict for one in shared] == ["single_exit", "single_exit"]
    pooled = audit(read_iptables_save(save(rules + "-j SNAT --to-source 203.0.113.1-203.0.113.9")))
    assert [one.verdict for one in pooled] == ["pinned", "predictable"]


def test_two_thousand_rules() -> None:
    """One rule for each of many peers: each is told, and each remedy keeps to a map that can be loaded."""
    lines = "\n".join(
        f"-A POSTROUTING -s 10.0.{at >> 8}.{at & 255}/32 -j SNAT --to-source 203.0.{at >> 8}.{at & 255}"
        for at in range(2000)
    )
    judged = audit(read_iptables_save(f"*nat\n:POSTROUTING ACCEPT\n{lines}\nCOMMIT\n"))
    assert {one.verdict for one in judged} == {"exclusive"}
    assert judged[0].remedy is not None
    assert judged[0].remedy.expression == "jhash ip saddr mod 256"
    assert judged[0].bits == round(math.log2(2000), 2)
