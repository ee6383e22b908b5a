# SPDX-License-Identifier: Apache-2.0
"""The package is built, is without faults, and works in a fresh Debian 12: the part of a minute."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector import __version__
from tests.system.debian.packages import built, dependencies
from tests.system.debian.roots import Root, fresh
from tools import dist

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(1800),  # the first time, a whole system comes from the mirror
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: cannot change the root file system"),
]

LEAKS = """
table inet nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "eth0" ip saddr 10.64.0.0/10 snat to 203.0.113.68-203.0.113.126 persistent
    }
}
"""


@pytest.fixture(scope="module")
def root() -> Iterator[Root]:
    """A fresh system with the package installed by apt."""
    with fresh("bookworm", *dependencies(), "nftables") as root:
        shutil.copy(built(), root.folder / "root/exitprint.deb")
        root.install("/root/exitprint.deb")
        yield root


def test_it_is_installed_with_what_it_needs(root: Root) -> None:
    """The command is in PATH, configuration is root's, the aggregator has its user, nothing is started."""
    assert root.run("exitprint", "--version").stdout == f"exitprint, version {__version__}\n"
    for name in ("exitprint", "web"):
        assert (root.folder / f"etc/exitprint/{name}.yml").stat().st_mode & 0o777 == 0o640
    assert root.run("getent", "passwd", "exitprint").stdout.endswith(":/usr/sbin/nologin\n")
    assert not list((root.folder / "etc/systemd/system").glob("*.wants/exitprint.service"))


def test_its_configuration_is_valid(root: Root) -> None:
    """What the package brings is accepted, and what is wrong is named with its line."""
    root.run("exitprint", "check-config", "/etc/exitprint/exitprint.yml")
    root.write("/tmp/wrong.yml", "relay: a\nhook: xdp\n")
    done = root.run("exitprint", "check-config", "/tmp/wrong.yml", check=False)
    assert (done.returncode, "/tmp/wrong.yml:2: hook:" in done.stderr) == (2, True)


def test_the_doctor_loads_the_kernel_program(root: Root) -> None:
    """Debian's compiler and our C files work together, with no kernel headers in sight."""
    done = root.run("exitprint", "doctor", "--json", check=False)
    checks = {one["check"]: one for one in json.loads(done.stdout)["checks"]}
    assert checks["hooks"]["status"] == checks["bcc"]["status"] == checks["user"]["status"] == "ok", checks
    assert not (root.folder / "usr/src").exists() or not list((root.folder / "usr/src").iterdir())


def test_it_audits_rules(root: Root) -> None:
    """A rule that leaks is found by the installed command."""
    root.write("/tmp/rules.nft", LEAKS)
    done = root.run("exitprint", "audit", "/tmp/rules.nft", check=False)
    assert (done.returncode, "persistent" in done.stdout) == (1, True), done.stdout + done.stderr


def test_completion_knows_the_commands(root: Root) -> None:
    """Bash offers commands, a command's options, and the words of a choice."""
    ask = (
        ". /usr/share/bash-completion/completions/exitprint; "
        'offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _exitprint; echo "${COMPREPLY[*]}"; }; '
        "offer exitprint ch; offer exitprint audit --j; offer exitprint lab --hook net"
    )
    offered = root.run("bash", "-c", ask).stdout.splitlines()
    assert offered == ["check-config", "--json", "netfilter"]


@pytest.mark.skipif(not shutil.which("lintian"), reason="NO lintian here")
def test_lintian_finds_nothing() -> None:
    """Neither errors nor warnings, nor what is only worth a look."""
    command = [
        "lintian",
        "--allow-root",
        "--profile",
        "debian",
        "--display-info",
        "--fail-on",
        "info,warning,error",
    ]
    done = subprocess.run([*command, str(built())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another time, folder, language and umask change not a byte of .deb, wheel or sdist."""
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("LC_ALL", "C")
    before = os.umask(0o077)
    try:
        again = dist.main(tmp_path)
    finally:
        os.umask(before)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again}
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in built().parent.iterdir()}
    assert digests == first
    assert len(digests) == 3


def test_both_licences_go_with_the_wheel() -> None:
    """Whoever gets the wheel gets the texts that both parts are under."""
    (wheel,) = built().parent.glob("*.whl")
    listed = subprocess.run(["unzip", "-l", str(wheel)], capture_output=True, text=True, check=True).stdout
    for name in (
        "licenses/LICENSES/Apache-2.0.txt",
        "licenses/LICENSES/GPL-2.0-only.txt",
        "detector/py.typed",
    ):
        assert name in listed
