# SPDX-License-Identifier: Apache-2.0
"""What holds on stock Debian kernels: each is booted once, tells its facts, and the facts are judged here."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from tests.vm import kernels, machine
from tests.vm.kernels import STOCK_KERNELS, StockKernel
from tests.vm.mirror import Unavailable

pytestmark = pytest.mark.vm

LIMIT = 600.0  # seconds for one boot and everything inside it


class Facts:
    """What one booted kernel told, by name."""

    def __init__(self, kernel: StockKernel, outcome: machine.Outcome) -> None:
        self.kernel = kernel
        self.outcome = outcome
        lines = [json.loads(line) for line in outcome.files.get("facts.jsonl", "").splitlines()]
        self._facts = {line["fact"]: line for line in lines}

    def __getitem__(self, fact: str) -> dict[str, Any]:
        told: dict[str, Any] | None = self._facts.get(fact)
        if told is None or "error" in told:
            pytest.fail(f"{self.kernel.line} did not tell {fact!r}: {told}\n{self.outcome.output[-3000:]}")
        return told


def boot(kernel: StockKernel) -> Facts:
    """Boot that kernel and let it tell its facts."""
    command = [sys.executable, "tests/vm/inside.py", str(machine.RESULTS / "facts.jsonl")]
    return Facts(kernel, machine.run(kernels.fetch(kernel), command, machine.Machine(seconds=LIMIT)))


@pytest.fixture(scope="session")
def boots(request: pytest.FixtureRequest) -> dict[StockKernel, Future[Facts]]:
    """Every kernel that a selected test asks for, all booted at the same time."""
    names = [item.name for item in request.session.items]
    wanted = [kernel for kernel in STOCK_KERNELS if any(f"[{kernel.line}]" in name for name in names)]
    with ThreadPoolExecutor(len(wanted) or 1) as pool:
        started = {kernel: pool.submit(boot, kernel) for kernel in wanted}
        try:
            wait(started.values())
        except BaseException:  # Ctrl-C: the pool would wait for the machines
            machine.end_all()
            raise
    return started


@pytest.fixture(params=STOCK_KERNELS, ids=lambda kernel: kernel.line, scope="session")
def facts(request: pytest.FixtureRequest, boots: dict[StockKernel, Future[Facts]]) -> Facts:
    """What the kernel told; without qemu or a mirror a skip, and a failure where every check has to run."""
    try:
        return boots[request.param].result()
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no stock kernel {request.param.line}: {error}")
        pytest.skip(f"NO STOCK KERNEL {request.param.line}: {error}")


def test_boots_the_kernel_that_was_asked_for(facts: Facts) -> None:
    """The VM runs the stock kernel of that line and not this machine's."""
    assert facts["release"]["release"].startswith(f"{facts.kernel.line}.")


def test_has_wireguard_in_the_kernel(facts: Facts) -> None:
    """A WireGuard link is made by the kernel itself."""
    assert (facts["wireguard"]["status"], facts["wireguard"]["stderr"]) == (0, "")


def test_loads_a_source_nat_rule(facts: Facts) -> None:
    """A persistent source NAT rule over a pool loads."""
    assert (facts["nftables"]["status"], facts["nftables"]["stderr"]) == (0, "")


def test_describes_its_own_types(facts: Facts) -> None:
    """The kernel carries the type information that the struct offsets are read from."""
    assert facts["btf"]["bytes"]["vmlinux"] > 1_000_000


def test_sees_the_bpf_compiler(facts: Facts) -> None:
    """The environment's `bcc` is the compiler collection and imports inside the VM."""
    assert facts["bcc"]["module"] == "bcc"


def test_peers_are_read_from_the_kernels_wireguard(facts: Facts) -> None:
    """The tests of the netlink reader, which a kernel without WireGuard skips, all run here and pass."""
    told = facts["peers"]
    assert told["status"] == 0, told["stdout"]
    assert "passed" in told["stdout"]
    assert "skipped" not in told["stdout"]
