# SPDX-License-Identifier: Apache-2.0
"""What holds on stock Debian kernels: each is booted once, tells its facts, and the facts are judged here."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from detector.lab.mappings import MAPPINGS
from tests.system.vm import inside, kernels, machine
from tests.system.vm.kernels import WANTED, StockKernel
from tests.system.vm.mirror import Unavailable

pytestmark = pytest.mark.vm

LIMIT = 1800.0  # seconds for one boot and everything inside it, on a machine that has other work


class Facts:
    """What one booted kernel told, by name."""

    def __init__(self, kernel: StockKernel, outcome: machine.Outcome) -> None:
        self.kernel = kernel
        self.outcome = outcome
        lines = [json.loads(line) for line in outcome.files.get("facts.jsonl", "").splitlines()]
        self._facts = {line["fact"]: line for line in lines}

    def __getitem__(self, fact: str) -> dict[str, Any]:
        told: dict[str, Any] | None = self._facts.get(fact)
        if told is None:
            errors = [line for line in self._facts.values() if "error" in line]
            said = self.outcome.output[-3000:]
            pytest.fail(f"{self.kernel.line} did not tell {fact!r}: {errors}\n{said}")
        return told


def boot(kernel: StockKernel) -> Facts:
    """Boot that kernel and let it tell its facts."""
    command = [sys.executable, "tests/system/vm/inside.py", str(machine.RESULTS / "facts.jsonl")]
    image = kernels.fetch(kernel)
    return Facts(kernel, machine.run(image, command, machine.Machine(seconds=LIMIT), progress(kernel)))


def progress(kernel: StockKernel) -> Callable[[str], object]:
    """Says each fact when it is there, past what pytest captures: a VM takes minutes."""

    def say(line: str) -> None:
        if re.match(r" *[0-9.]+ s  ", line):
            sys.__stderr__ and print(f"{kernel.line}: {line.strip()}", file=sys.__stderr__, flush=True)

    return say


@pytest.fixture(scope="session")
def boots(request: pytest.FixtureRequest) -> dict[StockKernel, Future[Facts]]:
    """Every kernel that a selected test asks for, all booted at the same time."""
    names = [item.name for item in request.session.items]
    wanted = [kernel for kernel in WANTED if any(f"[{kernel.line}]" in name for name in names)]
    with ThreadPoolExecutor(len(wanted) or 1) as pool:
        started = {kernel: pool.submit(boot, kernel) for kernel in wanted}
        try:
            wait(started.values())
        except BaseException:  # Ctrl-C: the pool would wait for the machines
            machine.end_all()
            raise
    return started


@pytest.fixture(params=WANTED, ids=lambda kernel: kernel.line, scope="session")
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
    """The lab's peers and its relay use the kernel's own WireGuard."""
    assert facts["wireguard"]["implementation"] == "kernel"


def test_describes_its_own_types(facts: Facts) -> None:
    """The kernel carries the type information that the struct offsets are read from."""
    assert facts["btf"]["bytes"]["vmlinux"] > 1_000_000


def test_the_best_hook_is_chosen_by_trying(facts: Facts) -> None:
    """Old kernels refuse the netfilter program, and say so, and get the kprobe; new ones take the former."""
    told = facts["hook"]
    assert told["hook"] == facts.kernel.hook
    if told["hook"] == "netfilter":
        assert told["refused"] == {}
    else:
        assert "6.4 and newer" in told["refused"]["netfilter"]


@pytest.mark.parametrize("mapping", inside.MAPPINGS)
def test_a_mapping_gets_its_verdict(facts: Facts, mapping: str) -> None:
    """The service counts every flow and calls the relay what the mapping deserves."""
    told = facts[mapping]
    assert (told["tried"], told["unanswered"]) == (inside.FLOWS, 0)
    expected = MAPPINGS[mapping].verdict, MAPPINGS[mapping].predictor
    assert (told["verdict"], told["predictor"]) == expected, told["why"]
    assert told["flows"] == dict.fromkeys(("ipv4", "ipv6"), inside.FLOWS // 2)
    assert told["coverage"] == 1.0


def test_nothing_stays_of_a_service_that_is_killed(facts: Facts) -> None:
    """No program, map or link, and no probe in the kernel or in its list of events."""
    told = facts["killed"]
    by_kprobe = facts.kernel.hook == "kprobe"
    assert set(told["objects"]) == {"map", "prog"} | (set() if by_kprobe else {"link"})
    assert any("__nf_conntrack_confirm" in line for line in told["during"]) == by_kprobe
    assert told["after"] == []


def test_the_kprobe_counts_what_conntrack_lists(facts: Facts) -> None:
    """The tests of the kernel program and of the netlink reader all run here, none is skipped, all pass."""
    told = facts["tests"]
    assert {name: outcome for name, outcome in told["outcomes"].items() if outcome != "passed"} == {}
    assert {name.partition("::")[0] for name in told["outcomes"]} == set(inside.TESTS)
    assert told["status"] == 0
