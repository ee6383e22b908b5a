# SPDX-License-Identifier: Apache-2.0
"""The lab as a command, with conntrack itself as what counts in place of the service."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detector.base.errors import HostError, UsageError
from detector.config.model import Hook
from detector.lab.command import Options, Report, keep_on, lab_command, read_pools
from detector.lab.namespaces import LOCKS
from detector.lab.relay import Lab

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")


class Listing:
    """Answers from what conntrack lists."""

    metrics = "nowhere"
    socket = Path("nowhere")

    def __init__(self, lab: Lab, hook: Hook) -> None:
        self._lab, self._hook = lab, hook

    def report(self, flows: int) -> Report:
        """The flows that are listed, of so many that were sent."""
        truth = self._lab.truth()
        exits = len({pair.exit for pair in truth.counts})
        return {"flows": truth.flows, "sent": flows, "exits": exits, "hook": self._hook}

    def wait(self, seconds: float | None = None) -> bool:
        """Stay until interrupted."""
        time.sleep(seconds or 0)
        return False


@contextmanager
def start(lab: Lab, hook: Hook) -> Iterator[Listing]:
    """Nothing has to be started."""
    yield Listing(lab, hook)


def show(report: Report) -> None:
    """What a person would see."""
    print(f"exits: {report['exits']}")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(lab_command(start, show), arguments)


@needs_root
@pytest.mark.root
@pytest.mark.lab
def test_json_is_one_object_alone_on_standard_output() -> None:
    """With --json a program reads the report of as many flows as were asked for, and nothing else is said."""
    done = _run("--json", "--peers", "3", "--flows", "77", "--mapping", "masquerade", "--hook", "netfilter")
    assert json.loads(done.stdout) == {"flows": 77, "sent": 77, "exits": 2, "hook": "netfilter"}
    assert done.stderr == ""


@needs_root
@pytest.mark.root
@pytest.mark.lab
def test_a_pool_of_ones_own_is_used() -> None:
    """Exits come from the pools that were given, and the report is shown as for people."""
    pools = ["--pool", "203.0.113.5", "--pool", "2001:db8::5-2001:db8::5"]
    assert _run("--peers", "3", "--flows", "60", *pools).stdout == "exits: 2\n"


@needs_root
@pytest.mark.root
@pytest.mark.lab
def test_broken_rules_end_the_lab_before_it_is_measured(tmp_path: Path) -> None:
    """Rules that nft refuses are a user's error, and nothing is left of the lab."""
    rules = tmp_path / "rules.nft"
    rules.write_text("table ip x {\n  chian y {}\n}\n")
    before = set(LOCKS.glob("*"))
    done = _run("--peers", "2", "--ruleset", str(rules))
    assert isinstance(done.exception, UsageError)
    assert "rules.nft:2" in str(done.exception)
    assert set(LOCKS.glob("*")) <= before


@needs_root
@pytest.mark.root
@pytest.mark.lab
def test_a_service_that_does_not_start_ends_the_lab() -> None:
    """The service's own error is what a person reads, and nothing is left of the lab."""
    seen = []

    @contextmanager
    def refuse(lab: Lab, _hook: Hook) -> Iterator[Listing]:
        seen.append(lab.relay.path)
        raise HostError("no hook")
        yield

    done = CliRunner().invoke(lab_command(refuse, show), ["--peers", "2"])
    assert isinstance(done.exception, HostError)
    assert [path.exists() for path in seen] == [False]


def test_mapping_and_ruleset_exclude_each_other() -> None:
    """Two sources of rules are refused before anything is built."""
    done = _run("--mapping", "plain", "--ruleset", "x")
    assert isinstance(done.exception, UsageError)


def test_one_pool_per_family() -> None:
    """Two pools of one family are refused; none given means the default ones."""
    with pytest.raises(UsageError, match="twice"):
        read_pools(("203.0.113.5", "203.0.113.7"))
    assert len(read_pools(())) == 2


class _Kept:
    """A lab that only notes what is sent, and a service that ends after some rounds."""

    seed = 5

    def __init__(self, rounds: int) -> None:
        self.left = rounds
        self.sent: list[tuple[int, int | None]] = []

    def workload(self, flows: int, *, seed: int | None = None) -> tuple[int, int | None]:
        return flows, seed

    def send(self, work: tuple[int, int | None], **_: object) -> None:
        self.sent.append(work)
        if len(self.sent) == 2:
            raise HostError("the rules are being changed")

    def wait(self, _seconds: float | None = None) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_kept_lab_goes_on_sending_other_flows() -> None:
    """A part of the flows each round, never the same ones, whatever becomes of a round."""
    kept = _Kept(3)
    keep_on(Options(flows=80), kept, kept)  # type: ignore[arg-type]
    assert kept.sent == [(10, 6), (10, 7), (10, 8)]
    few = _Kept(1)
    keep_on(Options(flows=3), few, few)  # type: ignore[arg-type]
    assert few.sent == [(1, 6)]


@needs_root
@pytest.mark.root
@pytest.mark.lab
def test_a_kept_lab_stays_until_it_is_interrupted() -> None:
    """With --keep the relay is up after the report, standard error says where, and Ctrl-C removes it."""
    script = "import test_command as t; t.lab_command(t.start, t.show)()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--keep", "--peers", "2", "--flows", "20"],
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    said = [process.stderr.readline() for _ in range(3)]
    assert "go on sending" in said[0]
    name = said[2].split()[1]
    assert "nowhere" in said[1]
    assert Path("/run/netns", name).exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stderr.close()
    assert not Path("/run/netns", name).exists()
