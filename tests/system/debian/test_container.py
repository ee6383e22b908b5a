# SPDX-License-Identifier: Apache-2.0
"""The recipe for a container is built, and the service runs in it with the named capabilities alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.debian.packages import built
from tests.system.debian.roots import Root
from tests.system.vm.mirror import KEYRING, mirror_address

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: cannot make a container"),
]

RECIPE = Path(__file__).parents[3] / "deploy" / "container"
NET_ADMIN = 1 << 12
_PATIENCE = 90.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """What `build` makes of the package."""
    folder = tmp_path_factory.mktemp("container", numbered=True) / "root"
    folder.parent.chmod(0o755)
    source = f"deb [signed-by={KEYRING}] {mirror_address()} trixie main"
    subprocess.run([str(RECIPE / "build"), str(built()), str(folder), "trixie", source], check=True)
    yield Root(folder)
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


@pytest.fixture
def service(root: Root, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service as `run` starts it, in a network namespace of its own; its process is the sensor."""
    start = f"ip link set lo up; exec {shlex.quote(str(RECIPE / 'run'))} {shlex.quote(str(root.folder))}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["unshare", "--net", "sh", "-euc", start], stderr=log, stdout=log)
    limit = time.monotonic() + _PATIENCE
    while "nat rules read" not in (tmp_path / "log").read_text():
        late = time.monotonic() > limit
        assert process.poll() is None and not late, (tmp_path / "log").read_text()
        time.sleep(0.2)
    yield process
    process.terminate()
    assert process.wait(30) == 0, (tmp_path / "log").read_text()


def status_of(process: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_serves_with_the_named_capabilities_alone(service: subprocess.Popen[bytes]) -> None:
    """Metrics answer, the sensor keeps CAP_NET_ADMIN, the aggregator nothing, and the root is read-only."""
    asks = ["nsenter", "-t", str(service.pid), "-n", "curl", "-fsS", "http://127.0.0.1:9973/metrics"]
    assert "exitprint_build_info" in subprocess.run(asks, capture_output=True, text=True, check=True).stdout
    (child,) = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    sensor, aggregator = status_of(service.pid), status_of(int(child))
    assert [int(sensor[name], 16) for name in ("CapBnd", "CapEff")] == [NET_ADMIN, NET_ADMIN]
    assert [int(aggregator[name], 16) for name in ("CapBnd", "CapEff", "CapPrm")] == [0, 0, 0]
    assert sensor["NoNewPrivs"] == aggregator["NoNewPrivs"] == "1"
    mounts = Path(f"/proc/{service.pid}/mountinfo").read_text().splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    assert "ro" in options["/"] and "ro" in options["/sys"]


def test_there_is_nothing_to_build_kernels_with(root: Root) -> None:
    """No kernel headers and no compiler of the system's are in it."""
    assert not (root.folder / "usr/bin/gcc").exists()
    assert not list((root.folder / "usr/src").glob("linux*"))
