# SPDX-License-Identifier: Apache-2.0
"""Runs inside the VM, once per boot, and writes one line of JSON per fact: `{"fact": ..., ...}`.

Nothing is asserted here: `test_stock_kernels.py` reads the lines and judges. One process does it all, because
under emulation the start of a process is what costs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from tests.system.service.running import aggregator_of, exists, gone, lines, objects_of, until

MAPPINGS = ("persistent", "jhash", "numgen-random", "plain")
PEERS, FLOWS = 12, 1152
INTERVAL = 2  # seconds
PATIENCE = 60.0
TESTS = (
    "tests/system/kernel/test_counting.py",
    "tests/system/kernel/test_namespaces.py",
    "tests/system/kernel/test_predictor.py",
    "tests/system/wireguard/test_kernel_wireguard.py",
)
KPROBES = Path("/sys/kernel/debug/kprobes/list")
EVENTS = Path("/sys/kernel/tracing/kprobe_events")

Fact = tuple[str, dict[str, Any]]


def kernel() -> Iterator[Fact]:
    """Which kernel this is, and how many bytes of type information it and its connection tracking have."""
    yield "release", {"release": platform.release()}
    folder = Path("/sys/kernel/btf")
    sizes = {
        name: (folder / name).stat().st_size
        for name in ("vmlinux", "nf_conntrack")
        if (folder / name).exists()
    }
    yield "btf", {"bytes": sizes}


def service() -> Iterator[Fact]:
    """The service on a relay: its hook, its verdict on each mapping, and what is left when it is killed."""
    with Lab(peers=PEERS) as lab:
        lab.apply(MAPPINGS[0])
        yield "wireguard", {"implementation": lab.implementation}
        started = time.monotonic()
        with start_service(lab, port=0, interval=f"{INTERVAL}s") as running:
            yield "hook", hook_of(running) | {"seconds": round(time.monotonic() - started, 1)}
            for mapping in MAPPINGS:
                yield mapping, verdict(lab, running, mapping)
            yield "killed", killed(running)


def hook_of(running: LabService) -> dict[str, Any]:
    """The hook that is used, and why each other one was not."""
    refused = {line["hook"]: line["reason"] for line in lines(running) if line["event"] == "hook refused"}
    return {"hook": running.status()["hook"], "refused": refused}


def verdict(lab: Lab, running: LabService, mapping: str) -> dict[str, Any]:
    """What the service calls a mapping, and whether it has counted every flow."""
    before = running.status()["epoch"]["number"]
    if mapping != MAPPINGS[0]:
        lab.forget()
        lab.apply(mapping)
        until(lambda: running.status()["epoch"]["number"] > before, "the new rules went unnoticed", PATIENCE)
    result = lab.send(lab.workload(FLOWS), patience=PATIENCE)
    report = running.report(FLOWS)
    told = {key: report[key] for key in ("verdict", "predictor", "coverage", "why")}
    flows = {name: family["flows"] for name, family in report["families"].items()}
    return told | {"flows": flows, "tried": result.tried, "unanswered": result.unanswered}


def killed(running: LabService) -> dict[str, Any]:
    """What the kernel holds while the service runs, and what of it when its main process was killed."""
    aggregator = aggregator_of(running)
    held = objects_of(running.process.pid) | objects_of(aggregator)
    during = probes()
    running.process.kill()
    running.process.wait()
    until(lambda: gone(aggregator), "the aggregator stays", PATIENCE)
    until(lambda: not any(map(exists, held)), "objects stay", PATIENCE)
    return {"objects": sorted({kind for kind, _ in held}), "during": during, "after": probes()}


def probes() -> list[str]:
    """The kernel's probes, and events made of probes."""
    return [line for file in (KPROBES, EVENTS) if file.exists() for line in file.read_text().splitlines()]


def tests() -> Iterator[Fact]:
    """How the project's own tests end here, with the kprobe as the hook."""
    os.environ["EXITPRINT_TEST_HOOK"] = "kprobe"
    outcomes = Outcomes()
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-x", *TESTS], [outcomes])
    yield "tests", {"status": int(status), "outcomes": outcomes.found, "seconds": outcomes.seconds}


class Outcomes:
    """A plugin of pytest's that keeps how each test ended."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test is as bad as the worst of its set-up, itself and its end."""
        self.seconds[report.nodeid] = round(self.seconds.get(report.nodeid, 0.0) + report.duration, 1)
        if report.outcome != "passed" or report.nodeid not in self.found:
            self.found[report.nodeid] = report.outcome


def main(results: Path) -> None:
    """Write each fact as soon as it is known; a part that fails says why, and the others go on."""
    with results.open("w", buffering=1) as out:
        for part in (kernel, service, tests):
            try:
                for name, told in part():
                    print(f"{time.monotonic():6.1f} s  {name}", flush=True)
                    out.write(json.dumps({"fact": name, **told}) + "\n")
            except Exception as error:  # the boot is for all the facts
                traceback.print_exc()
                out.write(
                    json.dumps({"fact": part.__name__, "error": f"{type(error).__name__}: {error}"}) + "\n"
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
