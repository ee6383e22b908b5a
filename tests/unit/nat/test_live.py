# SPDX-License-Identifier: Apache-2.0
"""Reads the rules of throw-away network namespaces with the real tools, as root and with one capability."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detector.base.errors import HostError, NotYet
from detector.base.family import Family
from detector.nat import live
from detector.nat.iptables import read_iptables_save
from detector.nat.live import merged, read_live
from detector.nat.model import RuleSet
from detector.nat.nftables import nft_listing, read_nft_json

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).parents[3]
REPORT = """
import sys
from detector.base.errors import ExitprintError
from detector.nat.live import read_live
try:
    rules = read_live()
except ExitprintError as error:
    sys.exit(f"error: {error}")
for one in rules.rules:
    print("rule", one.where, "|", one.text)
for one in rules.not_understood:
    print("not understood", one.where, "|", one.reason)
"""
# Still user 0, who can read a clone that is for root alone.
NO_RIGHTS = "setpriv --inh-caps=-all --bounding-set=-all --no-new-privs"
ONLY_NET_ADMIN = "setpriv --inh-caps=-all,+net_admin --bounding-set=-all,+net_admin --no-new-privs"


def in_namespace(prepare: str, wrapper: str = "", variant: str = "nft") -> list[str]:
    """The lines of REPORT, run in a namespace of its own after these commands."""
    if os.geteuid() or not all(
        map(shutil.which, ("unshare", "setpriv", "nft", "iptables-nft", "iptables-legacy"))
    ):
        pytest.skip("needs root, unshare, setpriv, nft and both kinds of iptables")
    script = f"{{ {prepare}; }} >&2 && {wrapper} {sys.executable} -c '{REPORT}'"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "V": variant, "PYTHONPATH": str(ROOT)},
    )
    return [
        *done.stdout.splitlines(),
        *(line for line in done.stderr.splitlines() if line.startswith("error: ")),
    ]


def told(rules: RuleSet) -> list[str]:
    """What REPORT prints of these rules."""
    return [f"rule {one.where} | {one.text}" for one in rules.rules] + [
        f"not understood {one.where} | {one.reason}" for one in rules.not_understood
    ]


ZOO = read_nft_json((FIXTURES / "zoo.json").read_text())
IPTABLES = read_iptables_save((FIXTURES / "zoo.iptables-nft").read_text())


@pytest.mark.root
@pytest.mark.parametrize("wrapper", ["", ONLY_NET_ADMIN])
def test_nft_rules(wrapper: str) -> None:
    """The rules of nft are read with every capability and with CAP_NET_ADMIN alone."""
    assert in_namespace(f"nft -f {FIXTURES}/zoo.nft", wrapper) == told(ZOO)


@pytest.mark.root
@pytest.mark.parametrize("wrapper", ["", ONLY_NET_ADMIN])
def test_iptables_nft_rules(wrapper: str) -> None:
    """Rules of iptables-nft are read by their own tool, and nft does not report them a second time."""
    assert in_namespace(f"sh {FIXTURES}/zoo.iptables.sh", wrapper) == told(IPTABLES)


@pytest.mark.root
def test_legacy_rules() -> None:
    """Rules of iptables-legacy come on top of those of nft."""
    prepare = f"sh {FIXTURES}/zoo.iptables.sh; nft add table ip x; nft -f {FIXTURES}/zoo.nft"
    nft = nft_listing([(FIXTURES / "zoo.json").read_text()])
    both = merged(nft, [], [(FIXTURES / "zoo.iptables-nft").read_text()])
    assert sorted(in_namespace(prepare, variant="legacy")) == sorted(told(both))


@pytest.mark.root
def test_legacy_rules_without_a_raw_socket() -> None:
    """With CAP_NET_ADMIN alone, legacy rules are named as not understood, and nft's are read."""
    lines = in_namespace(
        f"sh {FIXTURES}/zoo.iptables.sh; nft -f {FIXTURES}/zoo.nft", ONLY_NET_ADMIN, "legacy"
    )
    assert [line for line in lines if line in told(ZOO)] == told(ZOO)
    rest = [line for line in lines if line not in told(ZOO)]
    assert len(rest) == 2
    assert all("without CAP_NET_RAW" in line for line in rest)


@pytest.mark.root
def test_a_mixed_table_is_named() -> None:
    """A rule of iptables-nft in a table that iptables-save refuses is not lost."""
    prepare = "; ".join(
        [
            "nft add table ip nat",
            'nft add chain ip nat POSTROUTING "{ type nat hook postrouting priority 100 ; }"',
            'nft add rule ip nat POSTROUTING oifname eth0 snat to numgen inc mod 1 map "{ 0 : 203.0.113.1 }"',
            "iptables-nft -t nat -A POSTROUTING -j SNAT --to-source 203.0.113.1-203.0.113.9",
        ]
    )
    lines = in_namespace(prepare)
    assert [line.split(" ")[0] for line in lines] == ["rule", "not"]
    assert "no iptables-save shows" in lines[1]


@pytest.mark.root
def test_no_capability_is_an_error_with_a_hint() -> None:
    """Without CAP_NET_ADMIN the answer is one line that says what is missing."""
    lines = in_namespace("true", NO_RIGHTS)
    assert len(lines) == 1
    assert "CAP_NET_ADMIN" in lines[0]


@pytest.mark.root
def test_an_empty_namespace_has_no_rules() -> None:
    """No rules are no error."""
    assert in_namespace("true") == []


def tool(folder: Path, name: str, script: str) -> None:
    """An executable."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_hanging_tool_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that does not answer is `NotYet`, and says how to look."""
    tool(tmp_path, "nft", "exec sleep 60")
    monkeypatch.setattr(live, "_SEARCH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(NotYet, match="by hand"):
        read_live(timeout=0.2)


def test_a_failing_tool_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tool said is passed on."""
    tool(tmp_path, "nft", "echo 'netlink: broken' >&2; exit 1")
    monkeypatch.setattr(live, "_SEARCH", str(tmp_path))
    with pytest.raises(HostError, match="nft failed: netlink: broken"):
        read_live()


def test_no_tool_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any tool the hint names the package."""
    monkeypatch.setattr(live, "_SEARCH", str(tmp_path))
    with pytest.raises(HostError, match="apt-get install nftables"):
        read_live()


def test_iptables_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nft, iptables-nft-save is read."""
    monkeypatch.setattr(live, "_SEARCH", str(tmp_path))
    monkeypatch.setattr(live, "has_legacy_nat", lambda _: False)
    tool(tmp_path, "iptables-nft-save", f"exec /bin/cat {FIXTURES}/zoo.iptables-nft")
    assert read_live().rules == IPTABLES.rules


def test_an_nft_table_is_read_once() -> None:
    """A table without rules of iptables-nft is nft's, whatever iptables-save shows of it."""
    nft = nft_listing([(FIXTURES / "zoo.json").read_text()])
    save = (FIXTURES / "zoo.iptables-nft").read_text()
    assert merged(nft, [save], []) == ZOO


@pytest.mark.root
def test_a_dormant_table_is_off() -> None:
    """A table that is switched off is not read as rules."""
    table = 'nft add table ip nat "{ flags dormant; }"'
    chain = 'nft add chain ip nat post "{ type nat hook postrouting priority 100; }"'
    assert in_namespace(f"{table}; {chain}; nft add rule ip nat post masquerade") == []
    assert in_namespace(f"nft add table ip nat; {chain}; nft add rule ip nat post masquerade") != []


def test_a_legacy_tool_that_is_slow_changes_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long is tried again; what fails is a rule that is not understood."""
    errors: list[HostError] = [NotYet("it is slow"), HostError("it fails")]

    def saves(_family: Family, _timeout: float) -> str:
        raise errors.pop(0)

    monkeypatch.setattr(live, "has_legacy_nat", lambda family: family is Family.IPV4)
    monkeypatch.setattr(live, "_nft", lambda _timeout: nft_listing(['{"nftables": []}'], "", live=True))
    with pytest.raises(NotYet, match="it is slow"):
        live.read_live(legacy_saves=saves)
    (one,) = live.read_live(legacy_saves=saves).not_understood
    assert "it fails" in one.reason
