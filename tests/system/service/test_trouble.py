# SPDX-License-Identifier: Apache-2.0
"""What is missing, broken or full: the service says so, knows nothing better than it does, and goes on."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from detector.lab.namespaces import Namespace, ip_batch
from detector.lab.relay import Lab
from detector.lab.service import LabService, launched, start_service
from detector.lab.wireguard import new_private_key
from tests.system.service.running import aggregator_of, events, lines, page, state, until
from tests.system.service.stepping import allow

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS, FLOWS = 12, 1152
TINY = {"peers": 64, "pairs": 16, "destinations": 16, "ports": 16}
ADDRESS = "10.126.125.124"


@dataclass(frozen=True)
class Place:
    """Where a service is to run, with an interface of a name of our own."""

    relay: Namespace
    wireguard_interface: str


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay for all."""
    with Lab(peers=PEERS) as relay:
        yield relay


def metrics(service: LabService) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page(service)[1])
        for sample in family.samples
    }


def make_interface(lab: Lab, name: str) -> subprocess.Popen[Any]:
    """A user-space WireGuard interface on the relay, with one peer; it goes when its process ends."""
    process = lab.popen(lab.relay, ["wireguard-go", "-f", name], env={**os.environ, "LOG_LEVEL": "silent"})
    socket = Path("/var/run/wireguard", f"{name}.sock")
    until(socket.exists, "wireguard-go did not start")
    allow(lab, name, new_private_key(), f"{ADDRESS}/32")
    return process


def test_an_interface_is_waited_for_and_followed(lab: Lab) -> None:
    """Without its interface the service is alive and not ready; it goes on when it comes, also again."""
    lab.apply("persistent")
    name = f"wg1-{lab.id}"
    with launched(Place(lab.relay, name), port=0) as service:
        until(lambda: "waiting for WireGuard" in events(service), "it does not say that it waits")
        reason = f"WireGuard interface not there: {name}"
        until(lambda: reason in page(service, "/-/ready")[1], "it does not say what for")
        assert page(service, "/-/ready")[0] == 503
        assert page(service, "/-/healthy")[0] == 200
        assert metrics(service)["exitprint_waiting",] == 1
        assert service.status()["verdict"] == "unknown"
        for turn in (1, 2):
            process = make_interface(lab, name)
            service.wait_ready()
            until(lambda: metrics(service)["exitprint_table_entries", "peers"] == 1, "the peer is not seen")
            process.terminate()
            process.wait(30)
            until(lambda: page(service, "/-/ready")[0] == 503, "it does not miss the interface")
            assert events(service).count("waiting for WireGuard") == turn + 1
        assert ADDRESS not in service.log.read_text()
        changes = [
            (line["added"], line["removed"]) for line in lines(service) if line["event"] == "peers changed"
        ]
        assert [sum(part) for part in zip(*changes, strict=True)] == [2, 2]


def test_an_interface_that_is_made_anew_keeps_counting(lab: Lab) -> None:
    """After re-creation under the same name flows come in by another ifindex: none is missed in silence."""
    lab.apply("persistent")
    with start_service(lab, port=0) as service:
        lab.send(lab.workload(4 * PEERS, seed=9))
        service.report(4 * PEERS)
        before = ifindex(lab)
        make_anew(lab)
        assert ifindex(lab) != before
        until(lambda: moved(service) == 2 * PEERS, "it does not follow the interface")
        lab.forget()
        assert lab.send(lab.workload(FLOWS)).clean
        assert service.report(FLOWS + 4 * PEERS)["verdict"] == "predictable"
        now = service.status()
        counted = sum(family["flows"] for family in now["families"].values())
        # What came in by the interface in the interval in which it changed is unattributed.
        assert counted + now["unattributed"] == FLOWS + 4 * PEERS
        assert counted >= FLOWS
        assert "unexpected error" not in events(service)


def moved(service: LabService) -> int:
    """How many tunnel addresses are behind another interface by now, or were new there."""
    changes = [line for line in lines(service) if line["event"] == "peers changed"][1:]
    return int(sum(line["moved"] + line["added"] for line in changes))


def ifindex(lab: Lab) -> int:
    """The ifindex of the relay's WireGuard interface."""
    command = ["ip", "-j", "link", "show", lab.wireguard_interface]
    (found,) = json.loads(lab.run(lab.relay, command).stdout)
    return int(found["ifindex"])


def make_anew(lab: Lab) -> None:
    """Delete the relay's user-space WireGuard interface and make it again with all that it had."""
    name = lab.wireguard_interface
    if lab.implementation != "wireguard-go":
        pytest.skip("the relay's interface is the kernel's")
    settings = lab.run(lab.relay, ["wg", "showconf", name]).stdout
    (link,) = json.loads(lab.run(lab.relay, ["ip", "-j", "addr", "show", name]).stdout)
    addresses = [
        f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"
    ]
    ip_batch([f"link del {name}"], lab.relay)
    socket = Path("/var/run/wireguard", f"{name}.sock")
    until(lambda: not socket.exists(), "wireguard-go does not end")
    lab.popen(lab.relay, ["wireguard-go", "-f", name], env={**os.environ, "LOG_LEVEL": "silent"})
    until(socket.exists, "wireguard-go did not start")
    # The relay has to begin the handshakes: its peers believe that they have a session.
    settings = settings.replace("[Peer]", "[Peer]\nPersistentKeepalive = 1")
    assert lab.run(lab.relay, ["wg", "setconf", name, "/dev/stdin"], input=settings).returncode == 0
    ip_batch(
        [f"link set {name} up", *(f"addr replace {one} dev {name} nodad" for one in addresses)], lab.relay
    )
    command = ["wg", "show", name, "latest-handshakes"]
    until(lambda: "\t0\n" not in lab.run(lab.relay, command).stdout, "there are no sessions")


@pytest.fixture
def breakable_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that, while it is there, makes `nft` fail as soon as it is asked."""
    switch = tmp_path / "broken"
    tool = tmp_path / "bin" / "nft"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\n[ -e {switch} ] && {{ echo "out of order" >&2; exit 1; }}\nexec /usr/sbin/nft "$@"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return switch


def test_when_nft_fails_what_was_known_stands(lab: Lab, breakable_nft: Path) -> None:
    """The verdict stays, readiness is lost with the reason, and when nft is well nothing has changed."""
    lab.forget()
    lab.apply("persistent")
    with start_service(lab, port=0) as service:
        breakable_nft.touch()
        until(lambda: "nft failed: out of order" in page(service, "/-/ready")[1], "it does not say why")
        assert lab.send(lab.workload(FLOWS)).clean
        assert service.report(FLOWS)["verdict"] == "predictable"
        assert events(service).count("the NAT rules cannot be read") == 1
        breakable_nft.unlink()
        service.wait_ready()
        now = service.status()
        assert (now["epoch"]["number"], now["verdict"]) == (1, "predictable")
        assert sum(family["flows"] for family in now["families"].values()) == FLOWS


def test_without_nft_at_the_start_the_service_waits(lab: Lab, breakable_nft: Path) -> None:
    """Nothing is known of the rules then: the verdict is unknown until they can be read."""
    breakable_nft.touch()
    with launched(lab, port=0) as service:
        until(lambda: "the NAT rules cannot be read" in events(service), "it does not say so")
        until(lambda: "out of order" in page(service, "/-/ready")[1], "it is not unready for that reason")
        breakable_nft.unlink()
        service.wait_ready()
        assert service.status()["epoch"]["number"] == 1


PARTLY_UNKNOWN = """
table ip exits {{
  chain post {{
    type nat hook postrouting priority srcnat;
    ip saddr {tunnel} oifname "eth0" ct mark set 7 snat to ct mark map {{ 7 : 203.0.113.70 }}
    oifname "eth0" snat to 203.0.113.68-203.0.113.126 persistent comment "for {tunnel}"
  }}
}}
"""


def test_rules_that_are_not_understood_are_reported_without_their_addresses(lab: Lab) -> None:
    """Place and reason are in the log, the number in a metric, a tunnel address of the rule nowhere."""
    tunnel = sorted(str(address) for address in lab.tunnels if address.version == 4)[0]
    lab.apply_text(PARTLY_UNKNOWN.format(tunnel=tunnel))
    with start_service(lab, port=0, log_level="debug") as service:
        (line,) = (
            line for line in lines(service) if line["event"] == "a rule about source NAT is not understood"
        )
        assert "ip exits post" in line["where"]
        assert line["reason"]
        assert metrics(service)["exitprint_rules_not_understood",] == 1
        assert service.status()["rules_not_understood"] == 1
        lab.apply("numgen-random")
        until(lambda: service.status()["epoch"]["number"] == 2, "it does not follow the rules")
        assert metrics(service)["exitprint_rules_not_understood",] == 0
        said = service.log.read_text() + json.dumps(service.status()) + page(service)[1]
        secrets = [*lab.secrets(), *(base64.b64decode(peer.public_key).hex() for peer in lab.peers)]
        assert [secret for secret in secrets if secret in said] == []


def test_what_tiny_tables_lose_is_counted_and_the_verdict_is_unknown(lab: Lab) -> None:
    """Every flow is counted or lost, to the last one, and a relay that loses is not called good."""
    lab.forget()
    lab.apply("numgen-random")
    with start_service(lab, port=0, tables=TINY) as service:
        assert lab.send(lab.workload(FLOWS)).clean
        truth = lab.truth()
        report = service.report(FLOWS)
        now = metrics(service)
        counted = sum(now["exitprint_flows_total", family, "counted"] for family in ("ipv4", "ipv6"))
        lost = now["exitprint_events_lost_total", "pairs_full"]
        assert truth.flows == FLOWS
        assert counted + lost == FLOWS
        assert lost > FLOWS / 2
        assert sum(family["flows"] for family in report["families"].values()) == counted
        assert {report["verdict"], *(one["verdict"] for one in report["families"].values())} == {"unknown"}
        assert now["exitprint_coverage_ratio",] < 0.5


TRACKED = """table inet tracked {
  chain forward {
    type filter hook forward priority 0
    ct state new accept
  }
}
"""


def test_a_relay_without_translation_is_unknown(lab: Lab) -> None:
    """Without a rule the flows are seen, called not translated, and prove nothing."""
    lab.forget()
    lab.apply_text(TRACKED)
    with start_service(lab, port=0) as service:
        lab.send(lab.workload(96))
        until(lambda: metrics(service)["exitprint_flows_total", "ipv4", "not_translated"] == 48, "not seen")
        assert service.status()["verdict"] == "unknown"


def refused(lab: Lab, **keys: Any) -> tuple[int, str]:
    """Status and words of a service that does not start."""
    with launched(lab, **{"port": 0, **keys}) as service:
        return service.process.wait(30), service.log.read_text()


def test_a_namespace_that_is_not_there_is_named(lab: Lab) -> None:
    """The key, the value and where to look; status 2, since the configuration is wrong."""
    status, said = refused(lab, network_namespace="no-such-place")
    assert status == 2
    assert "network_namespace: 'no-such-place' cannot be entered" in said
    assert "ip netns list" in said
    assert "Traceback" not in said


def test_a_user_with_roots_rights_is_refused(lab: Lab) -> None:
    """The process that listens is never root's."""
    status, said = refused(lab, user="root")
    assert (status, "user: root has root's rights" in said) == (2, True)


def test_a_user_that_is_not_there_is_replaced_by_nobody(lab: Lab) -> None:
    """The fallback is said, and is what the aggregator runs as."""
    lab.apply("persistent")
    with start_service(lab, port=0, user="no-such-user") as service:
        (line,) = (line for line in lines(service) if line["event"] == "no such user")
        assert (line["user"], line["instead"]) == ("no-such-user", "nobody")
        assert state(aggregator_of(service))["Uid"].split()[0] == "65534"


def test_a_port_that_is_taken_is_named(lab: Lab) -> None:
    """The address and the key to change are said, and nothing is loaded; status 3."""
    with start_service(lab, port=0) as first:
        taken = first.metrics.removeprefix("http://").removesuffix("/metrics")
        status, said = refused(lab, listen=taken)
    assert status == 3
    assert f"cannot listen on {taken}: address already in use" in said
    assert "key listen" in said


def test_two_services_do_not_share_a_socket(lab: Lab, tmp_path: Path) -> None:
    """The second one is refused, and the first one goes on answering."""
    path = str(tmp_path / "inspect.sock")
    with start_service(lab, port=0, inspect_socket=path):
        status, said = refused(lab, inspect_socket=path)
        assert (status, f"inspect_socket: {path}: address already in use" in said) == (3, True)
