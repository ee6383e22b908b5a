# SPDX-License-Identifier: Apache-2.0
"""What an operator does with the package, in a fresh Debian 12 and 13, each under its own systemd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.debian.machine import Machine, booted
from tests.system.debian.packages import built, dependencies
from tests.system.debian.roots import SUITES, fresh

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: cannot boot a system"),
]

_TOOLS = (
    "nftables",
    "conntrack",
    "iproute2",
    "procps",
    "kmod",
    "wireguard-go",
    "wireguard-tools",
    "curl",
    "netbase",
)
_CONFIG = "/etc/exitprint/exitprint.yml"
_SMOKE = Path(__file__).parents[3] / "debian" / "tests" / "smoke"
_PATIENCE = 60.0


@pytest.fixture(scope="module", params=SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A booted system that has what the package depends on: it has no network but its own."""
    suite = str(request.param)
    with fresh(suite, *dependencies(), *_TOOLS) as root:
        shutil.copy(built(), root.folder / "root/exitprint.deb")
        shutil.copy(_SMOKE, root.folder / "root/smoke")
        with booted(root, f"exitprint-{suite}") as machine:
            yield machine


def files_of_ours(machine: Machine) -> list[str]:
    """Everything that is called as we are, apart from what dpkg itself remembers and what lies in /root."""
    where = "/etc /usr /var/cache /var/lib /run /tmp"
    script = f"find {where} -iname '*exitprint*' 2>/dev/null || true"
    return machine.shell(script).splitlines()


def links(machine: Machine) -> int:
    """Kernel programs that some process of the system keeps attached."""
    found = machine.shell("cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -c '^link_type:' || true")
    return int(found)


def main_process(machine: Machine) -> int:
    """The service's main process, 0 where it is not running."""
    return int(machine.shell("systemctl show --property MainPID --value exitprint"))


def test_one_command_installs_it(machine: Machine) -> None:
    """It is installed and not started: the operator looks at the configuration first."""
    begun = time.monotonic()
    machine.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/exitprint.deb")
    print(f"\ninstalled in {time.monotonic() - begun:.0f} s")
    assert machine.shell("systemctl is-active exitprint || true") == "inactive\n"
    assert machine.shell("systemctl is-enabled exitprint || true") == "disabled\n"


def test_it_starts_and_serves(machine: Machine) -> None:
    """`systemctl enable --now` comes back when metrics, page and commands answer."""
    begun = time.monotonic()
    machine.run("systemctl", "enable", "--now", "exitprint")
    print(f"\nstarted in {time.monotonic() - begun:.1f} s")
    assert "exitprint_build_info" in machine.shell("curl -fsS http://127.0.0.1:9973/metrics")
    assert "<html" in machine.shell("curl -fsS http://127.0.0.1:9973/")
    status = json.loads(machine.run("exitprint", "status", "--json", check=False).stdout)
    assert status["verdict"] == "unknown"  # nobody is there yet
    assert links(machine) >= 2
    assert machine.shell("pgrep -u exitprint -f detector.daemon.aggregator").strip().isdigit()


def test_the_watchdog_is_fed(machine: Machine) -> None:
    """Systemd hears from it, and it does not restart."""
    before = main_process(machine)
    stamp = "systemctl show --property WatchdogTimestampMonotonic --value exitprint"
    first = int(machine.shell(stamp))
    limit = time.monotonic() + _PATIENCE
    while int(machine.shell(stamp)) == first:
        assert time.monotonic() < limit, "the watchdog hears nothing"
        time.sleep(1)
    assert main_process(machine) == before


def test_a_process_that_hangs_is_restarted(machine: Machine) -> None:
    """A stopped aggregator starves the watchdog, and systemd makes the service anew."""
    folder = "/etc/systemd/system/exitprint.service.d"
    machine.shell(f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=8s\\n' >{folder}/test.conf")
    machine.shell("systemctl daemon-reload; systemctl restart exitprint")
    before = main_process(machine)
    machine.shell("kill -STOP $(systemctl show --property MainPID --value exitprint)")
    limit = time.monotonic() + _PATIENCE
    while main_process(machine) in (before, 0):
        assert time.monotonic() < limit, "a service that hangs is left alone"
        time.sleep(1)
    machine.shell(
        "rm -r /etc/systemd/system/exitprint.service.d; systemctl daemon-reload; systemctl restart exitprint"
    )


def test_it_does_its_job_on_a_relay(machine: Machine) -> None:
    """A relay of this system's own, with real WireGuard, NAT and traffic: the leak is found and named."""
    done = machine.run(
        "exitprint", "lab", "--json", "--mapping", "persistent", "--peers", "24", "--flows", "960"
    )
    report = json.loads(done.stdout)
    assert (report["verdict"], report["predictor"]) == ("predictable", "kernel_persistent")


def test_a_good_reload_is_taken_over(machine: Machine) -> None:
    """`systemctl reload` with a changed key: the same process goes on with it."""
    before = main_process(machine)
    machine.shell(f"sed -i 's/^# interval: 10s/interval: 3s/' {_CONFIG}; systemctl reload exitprint")
    limit = time.monotonic() + _PATIENCE
    while not any("configuration reloaded" in line and "interval" in line for line in machine.journal()):
        assert time.monotonic() < limit, machine.journal()
        time.sleep(0.5)
    assert main_process(machine) == before


def test_a_bad_reload_is_refused_where_the_operator_stands(machine: Machine) -> None:
    """`systemctl reload` fails with the line that is wrong, and the service goes on as it was."""
    before = main_process(machine)
    machine.shell(f"cp -p {_CONFIG} /root/good.yml; echo 'hook: xdp' >>{_CONFIG}")
    done = machine.run("systemctl", "reload", "exitprint", check=False)
    assert done.returncode != 0
    assert any("hook:" in line and "is not auto" in line for line in machine.journal("-p", "err"))
    assert main_process(machine) == before


def test_what_cannot_work_is_not_tried_again(machine: Machine) -> None:
    """A start with that file fails once, with the reason in the journal; the good one starts again."""
    done = machine.run("systemctl", "restart", "exitprint", check=False)
    assert done.returncode != 0
    time.sleep(7)  # RestartSec and more
    assert machine.shell("systemctl is-active exitprint || true").strip() == "failed"
    assert machine.shell("systemctl show --property NRestarts --value exitprint").strip() == "0"
    machine.shell(f"cp -p /root/good.yml {_CONFIG}; systemctl restart exitprint")
    assert main_process(machine)


def test_only_what_is_worth_it_is_a_warning(machine: Machine) -> None:
    """`journalctl -p warning` has the warnings and not the rest."""
    assert any("waiting for WireGuard" in line for line in machine.journal("-p", "warning"))
    assert not any("kernel program attached" in line for line in machine.journal("-p", "warning"))


def test_debians_own_smoke_test_passes(machine: Machine) -> None:
    """The autopkgtest of the source package, on the installed one."""
    machine.shell("systemctl stop exitprint; sh /root/smoke", seconds=300)
    machine.shell("systemctl start exitprint")


def test_an_upgrade_keeps_a_changed_file_and_restarts(machine: Machine, tmp_path: Path) -> None:
    """The operator's configuration stands though the package has another, and the new code runs."""
    newer = newer_package(tmp_path)
    shutil.copy(newer, machine.root.folder / "root/newer.deb")
    before = main_process(machine)
    machine.run("apt-get", "install", "--yes", "-o", "Dpkg::Options::=--force-confold", "/root/newer.deb")
    assert "interval: 3s" in machine.shell(f"cat {_CONFIG}")
    assert "new in this release" in machine.shell(f"cat {_CONFIG}.dpkg-dist")
    assert machine.shell("dpkg-query -W -f '${Version}' exitprint").endswith("+newer")
    assert main_process(machine) not in (0, before)
    assert machine.shell(f"stat -c %a {_CONFIG}").strip() == "640"


def newer_package(folder: Path) -> Path:
    """The package once more, as a later release whose example has another line."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(built()), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text("\n".join(f"{x}+newer" if x.startswith("Version: ") else x for x in lines) + "\n")
    config = tree / _CONFIG.lstrip("/")
    config.write_text(config.read_text() + "# new in this release\n")
    (tree / "DEBIAN/md5sums").unlink()
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(folder / "newer.deb")], check=True
    )
    return folder / "newer.deb"


def test_the_exposure_is_as_documented(machine: Machine) -> None:
    """systemd-analyze security: no worse than docs/install.md says."""
    done = machine.run("systemd-analyze", "security", "exitprint", "--no-pager", check=False)
    score = float(done.stdout.split("exposure level for exitprint.service: ")[1].split()[0])
    print(f"\nexposure {score}")
    assert score <= 3.3


def test_a_purge_leaves_nothing(machine: Machine) -> None:
    """No file, no folder, no user, no process, nothing attached."""
    machine.run("apt-get", "purge", "--yes", "exitprint")
    assert files_of_ours(machine) == []
    assert machine.run("getent", "passwd", "exitprint", check=False).stdout == ""
    assert machine.run("pgrep", "-f", "detector.daemon", check=False).stdout == ""
    assert links(machine) == 0
