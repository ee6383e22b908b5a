# SPDX-License-Identifier: Apache-2.0
"""A lab on the running kernel: its traffic, its rules, and what is left when it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.base.errors import UsageError
from detector.base.family import Family
from detector.lab.mappings import MAPPINGS
from detector.lab.namespaces import LOCKS, NAMESPACES, UAPI, processes_inside, sweep
from detector.lab.relay import Lab
from detector.lab.workload import Planner, Protocol

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for the tests that leave it as it was."""
    with Lab(peers=6) as relay:
        yield relay


@pytest.mark.parametrize("name", MAPPINGS)
def test_conntrack_lists_every_flow_that_was_sent(lab: Lab, name: str) -> None:
    """Under every mapping each flow is answered unchanged, translated into its pool, and listed once."""
    lab.forget()
    lab.apply(name)
    work = lab.workload(600)
    result = lab.send(work)
    assert (result.tried, result.answered, result.wrong, result.retransmitted) == (600, 600, 0, 0)
    truth = lab.truth()
    assert (truth.flows, truth.untranslated()) == (600, 0)
    for family in Family:
        for protocol in Protocol:
            sent = sum(flow.family is family and flow.protocol is protocol for flow in work)
            assert truth.by(family, protocol) == sent > 0
    exits = {pair.exit for pair in truth.counts}
    in_pool = {address for address in exits if any(address in pool for pool in lab.pools.values())}
    assert len(exits) == 2 if name == "masquerade" else in_pool == exits


def test_rules_can_be_the_users_own(lab: Lab, tmp_path: Path) -> None:
    """A file of nftables text takes the place of the rules; a family left out is not even tracked."""
    rules = tmp_path / "own.nft"
    rules.write_text(
        "#!/usr/sbin/nft -f\ntable ip own {\n chain out {\n  type nat hook postrouting priority 100;\n"
        '  oifname "eth0" snat to 203.0.113.99\n }\n}\n'
    )
    lab.forget()
    lab.apply_file(rules)
    assert lab.send(Planner(6, 24, seed=5).visits(2)).clean
    truth = lab.truth()
    assert {str(pair.exit) for pair in truth.counts} == {"203.0.113.99"}
    assert (truth.by(Family.IPV4), truth.by(Family.IPV6)) == (12, 0)


def test_broken_rules_are_refused_with_nfts_words_and_change_nothing(lab: Lab, tmp_path: Path) -> None:
    """The error names the file and the line, and the rules from before still hold."""
    rules = tmp_path / "broken.nft"
    rules.write_text("table ip own {\n chain out {\n  snat too 203.0.113.99\n }\n}\n")
    lab.apply("masquerade")
    before = lab.run(lab.relay, ["nft", "list", "ruleset"]).stdout
    with pytest.raises(UsageError, match=r"broken\.nft:3:") as caught:
        lab.apply_file(rules)
    assert "syntax error" in str(caught.value)
    assert lab.run(lab.relay, ["nft", "list", "ruleset"]).stdout == before
    with pytest.raises(UsageError, match=r"cannot read the rules in .*missing\.nft"):
        lab.apply_file(tmp_path / "missing.nft")


def test_a_packet_that_is_dropped_shows(lab: Lab) -> None:
    """A UDP answer that is lost is an unanswered flow, and a TCP segment that is lost a retransmission."""
    lab.apply_text(
        "table inet hole { chain out { type filter hook forward priority 0;\n"
        'oifname "eth0" udp dport 7 limit rate over 1/day burst 5 packets drop\n'
        'oifname "eth0" tcp dport 7 tcp flags syn limit rate over 1/second burst 1 packets drop\n}\n}\n'
    )
    flows = Planner(6, 24, seed=6, families=[Family.IPV4]).visits(2)
    result = lab.send([flow for flow in flows if flow.protocol is Protocol.UDP], patience=0.5)
    assert result.unanswered == result.tried - 5 > 0
    result = lab.send([flow for flow in flows if flow.protocol is Protocol.TCP][:2])
    assert result.retransmitted > 0
    assert not result.clean


def test_new_entries_can_be_recorded(lab: Lab, tmp_path: Path) -> None:
    """What conntrack reports as new goes to a file, a line with its time for each flow."""
    lab.forget()
    lab.apply("plain")
    record = tmp_path / "events"
    with lab.record(record) as recording:
        lab.send(Planner(6, 24, seed=7).visits(2))
    assert recording.lost == 0
    lines = [line for line in record.read_text().splitlines() if "dport=7 " in line]
    assert len(lines) == 24
    assert all("[NEW]" in line and line.startswith("[1") for line in lines)


def _traces(lab: str) -> list[str]:
    names = [
        path.name for folder in (NAMESPACES, UAPI, LOCKS) if folder.exists() for path in folder.iterdir()
    ]
    return [name for name in names if lab in name]


def test_labs_run_side_by_side_and_leave_nothing() -> None:
    """Two labs at once do not meet, and after an exception in one of them nothing of either is left."""
    with Lab(peers=2) as one:
        with pytest.raises(ZeroDivisionError), Lab(peers=2) as two:
            assert one.id != two.id
            for relay in (one, two):
                relay.apply("persistent")
                assert relay.send(relay.workload(40)).clean
                assert relay.truth().flows == 40
            raise ZeroDivisionError
        assert _traces(two.id) == []
        assert one.send(Planner(2, 24, seed=9).visits(1)).clean
    assert _traces(one.id) == []


_SLEEPER = """
import time
from detector.lab.relay import Lab
with Lab(peers=3) as lab:
    lab.popen(lab.relay, ["sleep", "600"])
    print(lab.id, flush=True)
    time.sleep(600)
"""


def _start_sleeper() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", _SLEEPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lab = process.stdout.readline().strip()
    assert lab
    return process, lab


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up(number: signal.Signals) -> None:
    """A lab that is interrupted or told to end removes its namespaces, processes and sockets."""
    process, lab = _start_sleeper()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode not in {0, None}
    assert _traces(lab) == []


def test_what_a_killed_lab_left_is_swept() -> None:
    """After SIGKILL the next sweep removes everything of the dead lab and nothing of a living one."""
    with Lab(peers=2) as living:
        process, lab = _start_sleeper()
        os.utime(LOCKS / f"{lab}.lock", (0, 0))
        process.kill()
        process.wait(30)
        left = [path for path in NAMESPACES.iterdir() if lab in path.name]
        assert len(left) == 3
        inodes = [os.open(path, os.O_RDONLY) for path in left]
        assert lab in sweep()
        assert _traces(lab) == []
        assert processes_inside([Path(f"/proc/self/fd/{number}") for number in inodes]) == []
        for number in inodes:
            os.close(number)
        assert living.run(living.relay, ["true"]).returncode == 0
        assert len(_traces(living.id)) >= 4


def test_nothing_secret_is_in_what_a_lab_says_of_itself() -> None:
    """Neither the peers' representation nor an error about traffic holds a key or a tunnel address."""
    with Lab(peers=2) as lab:
        text = repr(lab.peers) + repr(lab)
        assert lab.secrets()
        assert not [secret for secret in lab.secrets() if secret in text]
        assert len(set(lab.secrets())) == 8


def test_a_lab_of_many_peers() -> None:
    """More peers than the host has inotify instances for: all are there, and all are answered."""
    with Lab(peers=200) as lab:
        lab.apply("persistent")
        result = lab.send(lab.workload(400))
    assert (result.tried, result.answered) == (400, 400)
