# SPDX-License-Identifier: Apache-2.0
"""`exitprint run` on a lab's relay: its processes, what they may do, what they know, and what they say."""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from detector.base.family import Family
from detector.config.model import Listen
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from tests.system.service.running import (
    aggregator_of,
    bpf_objects,
    children,
    events,
    lines,
    listeners,
    memory,
    page,
    state,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

NET_ADMIN = 1 << 12
PEERS, FLOWS = 8, 640
SETTLED = {
    "exitprint_relay_verdict": {"family", "verdict"},
    "exitprint_mapping_explained_ratio": {"family", "predictor"},
    "exitprint_mapping_chance_ratio": {"family", "predictor"},
    "exitprint_consistency_ratio": {"family", "contrast"},
    "exitprint_leak_bits": {"family"},
    "exitprint_peers": {"family", "verdict"},
    "exitprint_exit_addresses": {"family", "state"},
    "exitprint_flows_total": {"family", "outcome"},
    "exitprint_events_lost_total": {"reason"},
    "exitprint_coverage_ratio": set(),
    "exitprint_hook_info": {"hook"},
    "exitprint_build_info": {"version"},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A relay with a leaking mapping."""
    with Lab(peers=PEERS) as relay:
        relay.apply("persistent")
        yield relay


@pytest.fixture(scope="module")
def service(lab: Lab) -> Iterator[LabService]:
    """The service, which has seen traffic, at its most talkative."""
    with start_service(lab, port=0, log_level="debug") as running:
        lab.send(lab.workload(FLOWS))
        assert running.report(FLOWS)["verdict"] == "predictable"
        yield running


def test_the_sensor_keeps_one_capability(service: LabService) -> None:
    """It may administer the network, and neither it nor what it starts can ever have more."""
    found = state(service.process.pid)
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(found[kind], 16) == NET_ADMIN, kind
    assert found["NoNewPrivs"] == "1"


def test_the_aggregator_has_no_capability_and_is_another_user(service: LabService) -> None:
    """It runs as the configured user, or nobody, without a group of root's and without any capability."""
    found = state(aggregator_of(service))
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(found[kind], 16) == 0, kind
    assert found["NoNewPrivs"] == "1"
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = users.get("exitprint", users["nobody"])
    assert set(map(int, found["Uid"].split())) == {user.pw_uid}
    assert set(map(int, found["Gid"].split())) == {user.pw_gid}
    assert found["Groups"] == ""


def test_both_processes_are_behind_a_filter_in_every_thread(service: LabService) -> None:
    """Seccomp filters what any of their threads may ask of the kernel."""
    for process in (service.process.pid, aggregator_of(service)):
        for thread in Path(f"/proc/{process}/task").iterdir():
            assert state(int(thread.name))["Seccomp"] == "2"
            assert state(int(thread.name))["NoNewPrivs"] == "1"
    assert not any("wall" in line for line in lines(service))


def test_each_process_holds_what_it_needs_and_no_more(service: LabService) -> None:
    """No file, no terminal: tables, sockets, pipes, and standard streams."""
    kinds = {
        name: sorted({re.sub(r":?\[.*", "", str(one.readlink())) for one in folder.iterdir()})
        for name, folder in (
            ("sensor", Path(f"/proc/{service.process.pid}/fd")),
            ("aggregator", Path(f"/proc/{aggregator_of(service)}/fd")),
        )
    }
    own = {"/dev/null", str(service.log)}
    assert set(kinds["sensor"]) - own <= {
        "anon_inode:bpf-map",
        "anon_inode:bpf-prog",
        *LINKS,
        "pipe",
        "socket",
    }
    assert set(kinds["aggregator"]) - own <= {"anon_inode:bpf-map", "anon_inode", "pipe", "socket"}


LINKS = {"anon_inode:bpf_link", "anon_inode:bpf-link", "anon_inode"}


def test_the_sensor_listens_on_nothing(service: LabService) -> None:
    """No TCP, UDP, raw or local listener belongs to the process that knows peers."""
    assert listeners(service.process.pid) == set()


def test_the_aggregator_listens_on_loopback_and_locally(service: LabService) -> None:
    """One port of loopback and the socket for inspection, nothing else."""
    found = listeners(aggregator_of(service))
    port = int(service.metrics.split(":")[2].split("/")[0])
    assert found == {f"0100007F:{port:04X}", str(service.log.parent / "inspect.sock")}
    assert Listen().host == "127.0.0.1"


def test_each_process_has_the_tables_that_it_needs(service: LabService) -> None:
    """The loader has left; who knows peers holds the program's links and cannot read counts."""
    assert children(service.process.pid) == [aggregator_of(service)]
    held = bpf_objects(service.process.pid)
    assert (held["prog"], held["link"]) == (1, 2)
    assert 6 <= held["map"] <= 12  # one that stays mapped has another descriptor
    held = bpf_objects(aggregator_of(service))
    assert (held["prog"], held["link"]) == (0, 0)


def test_no_process_can_be_dumped(service: LabService) -> None:
    """No core file, and procfs gives their memory to root alone."""
    for process in (service.process.pid, aggregator_of(service)):
        limits = Path(f"/proc/{process}/limits").read_text().splitlines()
        (core,) = (line for line in limits if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
    assert Path(f"/proc/{aggregator_of(service)}/mem").stat().st_uid == 0


def test_the_compiler_does_not_stay_in_memory(service: LabService) -> None:
    """LLVM left with the loader, and the sensor does without NumPy."""
    for process, words in (
        (service.process.pid, ("libbcc", "libLLVM", "numpy")),
        (aggregator_of(service), ("libbcc", "libLLVM")),
    ):
        mapped = Path(f"/proc/{process}/maps").read_text()
        assert not [word for word in words if word in mapped]


def test_the_settled_metrics_are_there(service: LabService) -> None:
    """After a cycle each name that is promised is served, with its labels, in both formats."""
    text = page(service)[1]
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    labels = {sample.name: set(sample.labels) for sample in samples}
    assert {name: labels.get(name) for name in SETTLED} == SETTLED
    assert len({(sample.name, *sample.labels.items()) for sample in samples}) == len(samples)
    counted = {
        sample.labels["family"]: sample.value
        for sample in samples
        if sample.name == "exitprint_flows_total" and sample.labels["outcome"] == "counted"
    }
    assert counted == dict.fromkeys(Family, FLOWS / 2)
    with_types = socket.create_connection(("127.0.0.1", int(service.metrics.split(":")[2].split("/")[0])))
    with with_types as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n")
        with connection.makefile() as answer:
            body = answer.read().partition("\n\n")[2]
    families = open_families(body)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= {"exitprint_flows", "exitprint_hook"}


def test_the_self_metrics_are_plausible(service: LabService) -> None:
    """Memory of both processes, table fill and the last good cycle are what they can be."""
    value = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page(service)[1])
        for sample in family.samples
    }
    for process in ("sensor", "aggregator"):
        assert 5e6 < value["exitprint_process_resident_memory_bytes", process] < 100e6
    assert value["exitprint_table_entries", "peers"] == 2 * PEERS
    assert value["exitprint_table_entries", "window"] == 2 * PEERS
    assert value["exitprint_last_good_cycle_timestamp_seconds",] > 1.7e9
    assert value["exitprint_cycles_total", "failed"] == 0
    assert value["exitprint_waiting",] == 0


def test_many_scrapes_and_questions_at_once(service: LabService) -> None:
    """A hundred scrapes beside questions at the local socket are all answered."""
    with ThreadPoolExecutor(50) as pool:
        pages = [pool.submit(page, service) for _ in range(100)]
        answers = [pool.submit(service.status) for _ in range(5)]
        assert {one.result()[0] for one in pages} == {200}
        assert {one.result()["verdict"] for one in answers} == {"predictable"}


def garbage(service: LabService) -> bytes:
    """What the local socket answers to nonsense."""
    said = b""
    for line in (b"[" * 4000, b'{"request": []}', b"\xff\xfe", b'{"request": "explain 10.64.0.1"}'):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(service.log.parent / "inspect.sock"))
            client.sendall(line + b"\n")
            said += client.recv(65536)
    return said


def test_nothing_that_is_said_holds_a_secret(lab: Lab, service: LabService) -> None:
    """No key, tunnel address or destination is in logs, pages, JSON or answers to nonsense."""
    said = service.log.read_text() + json.dumps(service.status()) + garbage(service).decode()
    said += "".join(page(service, path)[1] for path in ("/metrics", "/-/healthy", "/-/ready", "/nothing"))
    assert "203.0.113.68-203.0.113.126" not in said  # not needed either
    assert len(said) > 10_000
    assert [secret for secret in secrets(lab) if secret in said] == []


def secrets(lab: Lab) -> list[str]:
    """Keys in both spellings, tunnel addresses, destinations."""
    keys = [key for peer in lab.peers for key in (peer.private_key, peer.public_key)]
    places = [str(address) for addresses in lab.destinations.values() for address in addresses]
    return [*lab.secrets(), *(base64.b64decode(key).hex() for key in keys), *places]


def test_the_aggregators_memory_holds_no_secret(lab: Lab, service: LabService) -> None:
    """Neither keys in any form, nor tunnel addresses as text or 16 bytes, nor destinations are there.

    Four bytes of an IPv4 address can be there by chance. The sensor's memory shows that the search finds.
    """
    keys = [key for peer in lab.peers for key in (peer.private_key, peer.public_key)]
    raw = [base64.b64decode(key) for key in keys]
    wanted = {*raw, *(key.encode() for key in keys), *(key.hex().encode() for key in raw)}
    wanted |= {str(peer.tunnel[Family.IPV4]).encode() for peer in lab.peers}
    # What all addresses of a kind begin with.
    wanted |= {
        b"fc00:bbbb:bbbb:bb01:",
        bytes.fromhex("fc00bbbbbbbbbb01"),
        b"198.51.100.",
        b"2001:db8:51:100:",
    }
    assert all(str(address).encode().startswith(tuple(wanted)) for address in lab.destinations[Family.IPV6])
    known = list(memory(service.process.pid))
    for peer in lab.peers:
        assert any(base64.b64decode(peer.public_key) in part for part in known)
    parts = list(memory(aggregator_of(service)))
    assert sum(map(len, parts)) > 10e6
    assert any(b"peer-" in part for part in parts)
    assert [one for one in wanted if any(one in part for part in parts)] == []


def test_its_log_tells_the_beginning(service: LabService) -> None:
    """Which hook, how many rules, how many peers: once each, and no trouble."""
    said = events(service)
    for event in ("kernel program attached", "nat rules read", "peers changed"):
        assert said.count(event) == 1
    assert not [event for event in said if "fail" in event or "unexpected" in event]
