# SPDX-License-Identifier: Apache-2.0
"""The doctor: what it finds on this host, and on hosts that lack something (file trees in a folder)."""

from __future__ import annotations

import io
import json
import os
import pwd
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from detector.base.errors import HostError
from detector.config.model import Config
from detector.doctor import attach, kernel, network, software
from detector.doctor.check import Check, Finding, Host, Status, examine, fail, note, ok
from detector.doctor.command import CHECKS, can_run, doctor, show, to_json

LINK = "ffffffff81f2e370 T bpf_nf_link_attach\n"
CONFIRM = "ffffffff81f37be0 T __nf_conntrack_confirm\t[nf_conntrack]\n"


def tree(root: Path, files: dict[str, str]) -> Host:
    """A host whose file tree has these files and nothing else."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root=root, commands=str(root / "bin"), modules=(str(root / "modules"),))


ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"
NOTHING: dict[str, str] = {}
KPROBE = {"sys/bus/event_source/devices/kprobe/type": "8"}
CONNTRACK = "proc/sys/net/netfilter/nf_conntrack_"


@pytest.mark.parametrize(
    ("check", "files", "status", "said"),
    [
        (kernel.btf, {"sys/kernel/btf/vmlinux": ""}, Status.OK, "vmlinux"),
        (kernel.btf, NOTHING, Status.FAIL, "apt install linux-image"),
        (
            kernel.hooks_by_symbols,
            {"proc/kallsyms": LINK + CONFIRM} | KPROBE,
            Status.OK,
            "netfilter and kprobe",
        ),
        (kernel.hooks_by_symbols, {"proc/kallsyms": LINK}, Status.OK, "the kernel has netfilter;"),
        (kernel.hooks_by_symbols, KPROBE, Status.NOTE, "modprobe nf_conntrack"),
        (kernel.hooks_by_symbols, {"proc/kallsyms": CONFIRM}, Status.FAIL, "CONFIG_KPROBES"),
        (
            kernel.lockdown,
            {"sys/kernel/security/lockdown": "none [integrity] confidentiality"},
            Status.OK,
            "integ",
        ),
        (
            kernel.lockdown,
            {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"},
            Status.FAIL,
            "lockdown=integrity",
        ),
        (kernel.lockdown, NOTHING, Status.OK, "not built in"),
        (kernel.capabilities, {"proc/self/status": "CapEff:\t000001ffffffffff"}, Status.OK, "has"),
        (
            kernel.capabilities,
            {"proc/self/status": "CapEff:\t0000000000001000"},
            Status.FAIL,
            "CAP_SYS_ADMIN",
        ),
        (kernel.capabilities, NOTHING, Status.FAIL, "CAP_NET_ADMIN"),
        (
            kernel.perf_event_paranoid,
            {"proc/sys/kernel/perf_event_paranoid": "3"},
            Status.OK,
            "CAP_SYS_ADMIN",
        ),
        (kernel.perf_event_paranoid, {"proc/sys/kernel/perf_event_paranoid": "-1"}, Status.OK, "-1"),
        (kernel.perf_event_paranoid, NOTHING, Status.NOTE, "kprobe hook is out"),
        (
            kernel.unprivileged_bpf,
            {"proc/sys/kernel/unprivileged_bpf_disabled": "0"},
            Status.NOTE,
            "sysctl -w",
        ),
        (kernel.unprivileged_bpf, {"proc/sys/kernel/unprivileged_bpf_disabled": "2"}, Status.OK, "2"),
        (kernel.unprivileged_bpf, NOTHING, Status.NOTE, "bpf() system call"),
        (
            software.bcc,
            {"modules/bcc/__init__.py": "", "modules/bcc/libbcc.py": ""},
            Status.OK,
            "modules/bcc",
        ),
        (
            software.bcc,
            {"modules/bcc/__init__.py": "class Lattice: ..."},
            Status.FAIL,
            "pip uninstall -y bcc",
        ),
        (software.bcc, {"modules/bcc.py": ""}, Status.FAIL, "a package about lattices"),
        (software.bcc, NOTHING, Status.FAIL, "apt install python3-bpfcc"),
        (software.nat_tools, NOTHING, Status.FAIL, "apt install nftables"),
        (network.conntrack, NOTHING, Status.NOTE, "modprobe nf_conntrack"),
        (network.conntrack, {CONNTRACK + "max": "100", CONNTRACK + "count": "5\n"}, Status.OK, "5 of 100"),
        (network.conntrack, {CONNTRACK + "max": "100", CONNTRACK + "count": "95"}, Status.NOTE, "max=200"),
    ],
)
def test_a_check(tmp_path: Path, check: Check, files: dict[str, str], status: Status, said: str) -> None:
    """A host that has what a check looks for passes it; one that lacks it is told the mend."""
    finding = check(tree(tmp_path, files))
    assert finding.status is status
    assert said in f"{finding.text} {finding.mend}"
    assert finding.mend or finding.status is not Status.FAIL


def test_a_virtual_environment_that_sees_too_little(tmp_path: Path) -> None:
    """With python3-bpfcc installed but out of sight, the mend is to let the environment see it."""
    host = tree(tmp_path, {"usr/lib/python3/dist-packages/bcc/libbcc.py": ""})
    assert "venv --system-site-packages" in software.bcc(host).mend


def test_pypis_bcc_beside_the_right_one(tmp_path: Path) -> None:
    """PyPI's package in front of an installed binding only has to go."""
    files = {"usr/lib/python3/dist-packages/bcc/libbcc.py": "", "modules/bcc/__init__.py": ""}
    assert software.bcc(tree(tmp_path, files)).mend == f"{sys.executable} -m pip uninstall -y bcc"


def test_nat_tools_are_named(tmp_path: Path) -> None:
    """A tool that is there is found; none is needed when the configuration names the exits."""
    configured = Host(Config(exits=("192.0.2.1",)), tmp_path, commands=str(tmp_path))
    assert software.nat_tools(configured).status is Status.NOTE
    (tmp_path / "nft").write_text("")
    (tmp_path / "nft").chmod(0o755)
    assert software.nat_tools(configured) == ok("nft")


def test_the_user() -> None:
    """A user that is there is taken; otherwise nobody, with the command that adds the one wanted."""
    name = pwd.getpwuid(os.getuid()).pw_name
    assert software.user(Host(Config(user=name))) == ok(name)
    finding = software.user(Host(Config(user="no-such-user")))
    assert finding.status is Status.NOTE
    assert finding.mend.startswith("useradd --system")
    assert finding.mend.endswith(" no-such-user")


def test_the_namespace(tmp_path: Path) -> None:
    """A namespace that is configured has to be there."""
    here = Host(Config(network_namespace="/proc/self/ns/net"))
    assert network.network_namespace(here).status is Status.OK
    assert network.network_namespace(Host(Config(network_namespace="no-such"))).status is Status.FAIL
    assert network.network_namespace(tree(tmp_path, {})) == ok("our own")


def test_wireguard_that_is_not_there_yet() -> None:
    """A configured interface that is missing is named, and no reason not to start."""
    finding = network.wireguard(Host(Config(wireguard=("wg-no-such",))))
    assert finding.status is Status.NOTE
    assert (finding.text.count("wg-no-such"), finding.mend) == (1, "wg-quick up wg-no-such")


def breaks(_host: Host) -> Finding:
    """A check with a mistake."""
    raise ZeroDivisionError


def refuses(_host: Host) -> Finding:
    """A check that meets an error for people."""
    raise HostError("no hook", "boot another kernel")


def test_a_check_that_breaks_stops_no_other() -> None:
    """A broken check is a note, an error for people a failure with its hint; the next check runs."""
    checks: list[tuple[str, Check]] = [("a", breaks), ("b", refuses), ("c", lambda _host: ok("fine"))]
    findings = dict(examine(Host(), checks))
    assert findings["a"].status is Status.NOTE
    assert findings["b"] == fail("no hook", "boot another kernel")
    assert findings["c"] == ok("fine")


FINDINGS = [("one", ok("fine")), ("second", fail("broken [red]", "mend it --now")), ("third", note("odd"))]


def test_what_people_see() -> None:
    """One line a check, the mend under it, and at the end whether the service can run."""
    stream = io.StringIO()
    show(FINDINGS, Console(file=stream, soft_wrap=True, highlight=False))
    assert stream.getvalue().splitlines() == [
        "ok   one     fine",
        "fail second  broken [red]",
        "             mend: mend it --now",
        "note third   odd",
        "The service cannot run on this host: 1 to mend.",
    ]


def test_json_is_one_object() -> None:
    """`--json` has every finding and the sum of them."""
    told = json.loads(to_json(FINDINGS))
    assert told["can_run"] is False
    assert told["checks"][1] == {
        "check": "second", "status": "fail", "text": "broken [red]", "mend": "mend it --now",
    }  # fmt: skip
    assert can_run([FINDINGS[0], FINDINGS[2]])


def test_the_command(tmp_path: Path) -> None:
    """Each check is told once, and the exit status is 3 when one fails."""
    file = tmp_path / "exitprint.yaml"
    file.write_text("network_namespace: no-such\n")
    done = CliRunner().invoke(doctor, ["--json", "--config", str(file)])
    told = json.loads(done.stdout)
    assert [check["check"] for check in told["checks"]] == [name for name, _ in CHECKS]
    assert (done.exit_code, told["can_run"]) == (3, False)
    assert {check["check"]: check["status"] for check in told["checks"]}["namespace"] == "fail"


@pytest.mark.root
def test_a_hook_is_tried() -> None:
    """On this kernel the program is attached for a moment, and the hook that works is named."""
    if os.geteuid():
        pytest.skip("needs root")
    finding = attach.hooks(Host())
    assert finding.status is Status.OK
    assert "would be used" in finding.text


@pytest.mark.root
def test_a_hook_that_cannot_be_had(tmp_path: Path) -> None:
    """Without conntrack nothing is tried yet; where no hook can be attached the mend is another kernel."""
    if os.geteuid() or Path("/sys/bus/event_source/devices/kprobe").exists():
        pytest.skip("needs root and a kernel without kprobes")
    tree(tmp_path, {"proc/self/status": ALL_CAPABILITIES})
    without = Host(Config(hook="kprobe"), root=tmp_path)
    finding = attach.hooks(without)
    assert (finding.status, finding.mend) == (Status.NOTE, "modprobe nf_conntrack")
    tree(tmp_path, {CONNTRACK + "max": "5"})
    finding = attach.hooks(without)
    assert finding.status is Status.FAIL
    assert "this kernel has no kprobes" in finding.text
    assert "apt install linux-image" in finding.mend


@pytest.mark.root
def test_what_a_hook_needs_is_told_before_it_is_tried(tmp_path: Path) -> None:
    """Root without capabilities is told how to get them, and nothing is attached."""
    if os.geteuid():
        pytest.skip("needs root")
    finding = attach.hooks(tree(tmp_path, {"proc/self/status": "CapEff:\t0\n"}))
    assert finding.status is Status.FAIL
    assert "not tried without CAP_SETGID" in finding.text
    assert "--cap-add" in finding.mend


@pytest.mark.root
def test_under_lockdown_the_mend_is_lockdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that fails there is not mended by another kernel; without lockdown it may be."""
    if os.geteuid():
        pytest.skip("needs root")

    def refuses(*_: object) -> None:
        raise HostError("no hook could be attached", "see: exitprint doctor")

    monkeypatch.setattr(attach, "load", refuses)
    files = {"proc/self/status": ALL_CAPABILITIES, CONNTRACK + "max": "5"}
    locked = files | {"sys/kernel/security/lockdown": "none integrity [confidentiality]"}
    assert "lockdown=integrity" in attach.hooks(tree(tmp_path / "locked", locked)).mend
    assert "apt install linux-image" in attach.hooks(tree(tmp_path / "open", files)).mend
