# SPDX-License-Identifier: Apache-2.0
"""The on-call commands as a person types them, on a lab's relay, and what they never say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.base.errors import ExitprintError
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from detector.publish.inspect import socket as inspect

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS, FLOWS = 12, 1152
RUNBOOKS = Path(__file__).parents[3] / "deploy" / "runbooks"
EXITPRINT = (sys.executable, "-m", "detector")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay that leaks."""
    with Lab(peers=PEERS) as relay:
        relay.apply("persistent")
        yield relay


@pytest.fixture(scope="module")
def service(lab: Lab) -> Iterator[LabService]:
    """The service on it, with a verdict."""
    with start_service(lab, port=0, log_level="debug") as running:
        assert lab.send(lab.workload(FLOWS)).clean
        assert running.report(FLOWS)["verdict"] == "predictable"
        yield running


def exitprint(service: LabService, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command and what it printed."""
    environment = os.environ | {"EXITPRINT_SOCKET": str(service.socket)}
    return subprocess.run(
        [*EXITPRINT, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def told(service: LabService, *arguments: str) -> str:
    """What a command that succeeds prints for people."""
    done = exitprint(service, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def object_of(service: LabService, *arguments: str) -> dict[str, Any]:
    """The object that a command prints for programs."""
    printed = json.loads(told(service, *arguments, "--json"))
    assert isinstance(printed, dict)
    return printed


def test_status_answers_in_order(service: LabService) -> None:
    """Is it leaking, why, since when, how much was seen, what to do: in that order, with the runbook."""
    text = told(service, "status")
    parts = [
        "Leaking: anybody can compute",
        "The relay is predictable by kernel_persistent since ",
        "No secret is involved",
        "rule at fault, IPv4: ip exits postrouting",
        "exits in use",
        "coverage 100.0%",
        "What to do first: Replace the NAT rule",
        "exitprint audit",
        "/runbooks/ExitprintMappingPredictable.md",
    ]
    assert sorted(parts, key=text.index) == parts


def test_the_runbook_and_the_commands_exist(service: LabService) -> None:
    """What the status tells a person to do next can be done."""
    advice = object_of(service, "status")["advice"]
    with urllib.request.urlopen(advice["runbook"]) as served:  # noqa: S310  the service says http
        assert served.read() == (RUNBOOKS / "ExitprintMappingPredictable.md").read_bytes()
    for one in advice["commands"]:
        name = one["command"].split()[1]
        assert subprocess.run([*EXITPRINT, name, "--help"], capture_output=True, check=False).returncode == 0


def test_peers_by_pseudonym(service: LabService) -> None:
    """Every tunnel address has a line, filters and limits hold, and all flows are there."""
    answer = object_of(service, "peers", "--limit", "1000")
    assert (answer["peers_with_flows"], answer["matching"], len(answer["peers"])) == (2 * PEERS,) * 3
    assert sum(peer["flows"] for peer in answer["peers"]) == FLOWS
    assert {peer["verdict"] for peer in answer["peers"]} == {"predictable"}
    assert len({peer["pseudonym"] for peer in answer["peers"]}) == PEERS
    some = object_of(service, "peers", "--limit", "3", "--family", "ipv6", "--sort", "peers_on_exit")
    assert (some["matching"], [peer["family"] for peer in some["peers"]]) == (PEERS, ["ipv6"] * 3)
    sharing = [peer["peers_on_exit"] for peer in some["peers"]]
    assert sharing == sorted(sharing)
    assert object_of(service, "peers", "--verdict", "unlinkable")["peers"] == []
    assert "predictable" in told(service, "peers")


def test_explain_agrees_with_conntrack(lab: Lab, service: LabService) -> None:
    """The exits of all peers, each explained by itself, are those that conntrack lists, flow by flow."""
    found: dict[str, int] = {}
    for name in {peer["pseudonym"] for peer in object_of(service, "peers", "--limit", "1000")["peers"]}:
        for one in inspect.ask(service.socket, "explain", pseudonym=name)["tunnel_addresses"]:
            assert one["predictors"]["kernel_persistent"] == {"names_its_exit": True}
            assert one["contrasts"]["any"]["observed"] == 1.0
            for exit_ in one["exits"]:
                found[exit_["exit"]] = found.get(exit_["exit"], 0) + exit_["flows"]
    truth: dict[str, int] = {}
    for pair, flows in lab.truth().counts.items():
        truth[str(pair.exit)] = truth.get(str(pair.exit), 0) + flows
    assert found == truth


def test_explain_for_people(service: LabService) -> None:
    """A bar for the exit, the contrasts, the evidence, and what each predictor says."""
    name = object_of(service, "peers", "--limit", "1")["peers"][0]["pseudonym"]
    text = told(service, "explain", name)
    for part in (name, "predictable", "█", "100.0%", "same exit to the same site", "names its busiest exit"):
        assert part in text


def test_an_unknown_pseudonym_is_a_users_error(service: LabService) -> None:
    """Status 2 and where to find those that there are."""
    done = exitprint(service, "explain", "peer-nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert "exitprint peers" in done.stderr


def test_the_beginning_of_a_pseudonym_will_do(service: LabService) -> None:
    """Some characters that no other begins with are enough."""
    names = [peer["pseudonym"] for peer in object_of(service, "peers", "--limit", "1000")["peers"]]
    short = next(
        names[0][:length]
        for length in range(1, 99)
        if sum(other.startswith(names[0][:length]) for other in set(names)) == 1
    )
    assert object_of(service, "explain", short)["pseudonym"] == names[0]


def test_the_exit_status_says_that_it_leaks(service: LabService) -> None:
    """Two for a leak that pages; three where nobody answers."""
    assert exitprint(service, "status", "--check").returncode == 2
    nobody = subprocess.run(
        [*EXITPRINT, "status", "--check", "--socket", "/run/nobody"], capture_output=True, check=False
    )
    assert nobody.returncode == 3


def test_history_has_the_verdict_with_its_rule(service: LabService) -> None:
    """Since when, from what to what, and which rule; the log has it too, and a line for each."""
    events = object_of(service, "history")["events"]
    found = [event for event in events if event["to"] == "predictable by kernel_persistent"]
    assert {event["family"] for event in found} == {"ipv4", "ipv6"}
    assert all("exits postrouting" in event["rules_at_fault"][0] for event in found)
    status = object_of(service, "status")
    assert {one["since"] for one in status["families"].values()} <= {event["time"] for event in found}
    text = told(service, "history")
    assert "→ predictable by kernel_persistent" in text
    assert "rule at fault: ip exits postrouting" in text
    assert '"event": "verdict changed"' in service.log.read_text()


def test_retention_counts_what_is_there(lab: Lab, service: LabService) -> None:
    """Keys, tunnel addresses, pairs: the numbers are the lab's, and no file is open."""
    held = {one["what"]: one for one in object_of(service, "retention")["holds"]}
    assert held["public keys of peers"]["count"] == PEERS
    assert held["tunnel addresses (allowed-ips)"]["count"] == len(lab.tunnels)
    pairs = next(one for what, one in held.items() if what.startswith("counts of pairs"))
    assert pairs["count"] == len(lab.truth().pairs())
    assert 0 < pairs["oldest"] < 3600
    assert held["files open for writing, beside the log"]["count"] == 0
    assert held["keyed hashes of slot and destination"]["count"] is None
    assert "keyed hashes" in told(service, "retention")
    assert told(service, "holds").splitlines()[0] == "sensor"  # its name of before


PLANTED = [
    {"request": "explain", "pseudonym": None},
    {"request": "explain", "pseudonym": "{secret}"},
    {"request": "{secret}"},
    {"request": "peers", "sort": "{secret}"},
    {"request": "peers", "family": "{secret}", "limit": "{secret}"},
    {"{secret}": "{secret}"},
]


def test_nothing_secret_is_in_any_reply_or_in_the_log(lab: Lab, service: LabService) -> None:
    """Keys, tunnel addresses, destinations: not in an answer, not where they were asked for, nor logged."""
    secrets = [*lab.secrets(), *(str(one) for family in lab.destinations.values() for one in family)]
    names = {peer["pseudonym"] for peer in object_of(service, "peers", "--limit", "1000")["peers"]}
    assert len(names) == PEERS
    replies = [
        told(service, *command.split())
        for command in ("status", "peers", "retention", "history", "history --json", "status --json")
    ]
    replies += [told(service, "explain", name, *json_) for name in names for json_ in ((), ("--json",))]
    for request in PLANTED:
        for secret in secrets[:: max(1, len(secrets) // 8)]:
            filled = json.loads(json.dumps(request).replace("{secret}", secret))
            question = str(filled.pop("request", "status?"))
            try:
                replies.append(json.dumps(inspect.ask(service.socket, question, **filled)))
            except ExitprintError as error:
                replies.append(str(error))
    replies.append(service.log.read_text())
    assert len(secrets) > 4 * PEERS
    leaks = [(secret, reply[:80]) for reply in replies for secret in secrets if secret in reply]
    assert leaks == []


def test_watch_prints_a_line_for_each_change(lab: Lab, service: LabService) -> None:
    """Through a pipe: the verdict now, and after new rules another line, with a new epoch."""
    command = [*EXITPRINT, "watch", "--interval", "0.2", "--socket", str(service.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        try:
            first = watch.stdout.readline()
            epoch = service.status()["epoch"]["number"]
            lab.apply("numgen-random")
            second = watch.stdout.readline()
        finally:
            watch.send_signal(signal.SIGINT)
        assert watch.stdout.read().count("\n") <= 1
        assert watch.wait() == 0
    lab.apply("persistent")
    assert "predictable by kernel_persistent" in first
    assert f"epoch {epoch}," in first
    assert f"epoch {epoch + 1}," in second
