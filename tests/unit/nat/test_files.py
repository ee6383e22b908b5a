# SPDX-License-Identifier: Apache-2.0
"""Rules from files: what wrote them is told by their text, and nft text is loaded aside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detector.base.errors import ExitprintError, UsageError
from detector.nat.files import read_rules_file, read_rules_text
from tests.rights import AS_STRANGER

FIXTURES = Path(__file__).parent / "fixtures"


def needs_nft() -> None:
    """Skips where nft text cannot be loaded."""
    if os.geteuid() or not shutil.which("nft") or not shutil.which("unshare"):
        pytest.skip("needs root, nft and unshare")


@pytest.mark.root
def test_text_and_json_read_the_same() -> None:
    """Text, loaded aside, is what its JSON listing is; the rules of this namespace stay as they are."""
    needs_nft()
    before = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout
    text, listed = read_rules_file(FIXTURES / "zoo.nft"), read_rules_file(FIXTURES / "zoo.json")
    assert [rule.text for rule in text.rules] == [rule.text for rule in listed.rules]
    assert text.fingerprint == listed.fingerprint
    assert subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout == before


def test_iptables_text_is_known() -> None:
    """iptables-save is told from nft by its tables."""
    assert read_rules_file(FIXTURES / "zoo.iptables-legacy").rules[0].where.reader == "iptables"


@pytest.mark.root
@pytest.mark.parametrize("condition", ["iif wg0 oif eth9", 'oif "eth9"', "oif { eth8, eth9 }"])
def test_interfaces_need_not_be_here(condition: str) -> None:
    """Rules that name interfaces of another host by index load all the same."""
    needs_nft()
    chain = f"chain post {{ type nat hook postrouting priority srcnat; {condition} masquerade; }}"
    assert len(read_rules_text(f"table ip nat {{ {chain}; }}").rules) == 1


@pytest.mark.root
def test_includes_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    """A file may include its neighbours."""
    needs_nft()
    (tmp_path / "pool.nft").write_text("define EXITS = 203.0.113.1-203.0.113.9\n")
    chain = "chain post { type nat hook postrouting priority srcnat; snat to $EXITS; }"
    (tmp_path / "main.nft").write_text(f'include "./pool.nft"\ntable ip nat {{ {chain}; }}\n')
    assert [str(pool) for pool in read_rules_file(tmp_path / "main.nft").rules[0].pools] == [
        "203.0.113.1-203.0.113.9"
    ]


@pytest.mark.root
@pytest.mark.parametrize(
    "text", ["hello", "table ip nat { chain", "table ip nat { chain c { snat to 10.0.0.300; }; }"]
)
def test_text_that_nft_refuses(text: str) -> None:
    """What nft said of it is passed on, in one line."""
    needs_nft()
    with pytest.raises(UsageError, match="nft does not take these rules: line") as caught:
        read_rules_text(text)
    assert "\n" not in str(caught.value)


def test_no_rights_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no namespace can be made, the hint names the input that needs none."""
    monkeypatch.setattr("detector.nat.files._OWN_NAMESPACE", ("--no-such-option",))
    with pytest.raises(ExitprintError, match="nft -j list ruleset"):
        read_rules_text("table ip nat { }")


def test_not_text(tmp_path: Path) -> None:
    """A file that is no text is named."""
    (tmp_path / "rules").write_bytes(b"\x00\x01 binary, no text")
    with pytest.raises(UsageError, match="is not text"):
        read_rules_file(tmp_path / "rules")


@pytest.mark.root
def test_nobody_can_read_text_too() -> None:
    """With no right but to read our code, text is read in a user namespace, where the host allows that."""
    needs_nft()
    if subprocess.run([*AS_STRANGER, "unshare", "--net", "--map-root-user", "true"], check=False).returncode:
        pytest.skip("this host gives nobody a user namespace")
    read = "from detector.nat.files import read_rules_text as read"
    script = f"import sys; {read}; print(len(read(sys.stdin.read()).rules))"
    chain = "chain post { type nat hook postrouting priority srcnat; masquerade; }"
    done = subprocess.run(
        [*AS_STRANGER, sys.executable, "-c", script],
        input=f"table ip nat {{ {chain}; }}",
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == "1\n"
