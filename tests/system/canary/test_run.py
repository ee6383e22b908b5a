# SPDX-License-Identifier: Apache-2.0
"""The outside measure on two real relays: a shared secret is seen in traffic alone, and so is its repair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.base.family import Family
from detector.lab import layout, wireguard
from detector.lab.fleet import pools
from detector.lab.layout import canaries_key
from detector.lab.mappings import shared_secret
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

SIZES = (59, 66)
COUNT = 5
PORT = 8099


@pytest.fixture(scope="module")
def labs() -> Iterator[list[Lab]]:
    """Two relays that know the same canaries by the same keys, and a reflector in the internet of each."""
    with (
        Lab(peers=COUNT, canaries=COUNT, pools=pools(SIZES[0])) as one,
        Lab(peers=COUNT, canaries=COUNT, pools=pools(SIZES[1])) as other,
    ):
        for peer in one.peers:
            allowed = ",".join(peer.allowed_ips())
            command = [
                "wg",
                "set",
                other.wireguard_interface,
                "peer",
                peer.public_key,
                "allowed-ips",
                allowed,
            ]
            done = other.run(other.relay, command)
            assert done.returncode == 0, done.stderr
        for lab in (one, other):
            lab.apply(shared_secret())
            _reflect(lab)
        yield [one, other]


def _reflectors(lab: Lab) -> list[str]:
    return [str(address) for family in Family for address in lab.destinations[family][:2]]


def _reflect(lab: Lab) -> None:
    addresses = [word for address in _reflectors(lab) for word in ("--address", address)]
    command = [sys.executable, "-m", "detector", "canary", "reflect", "--port", str(PORT), *addresses]
    process = lab.popen(lab.internet, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2)
    assert process.poll() is None


def _relay(lab: Lab, name: str, service: LabService | None) -> dict[str, Any]:
    key = lab.run(lab.relay, ["wg", "show", lab.wireguard_interface, "public-key"]).stdout.strip()
    return {
        "name": name,
        "endpoint": f"{layout.OUTER[1]}:{wireguard.PORT}",
        "public_key": key,
        "pools": [str(pool) for pool in lab.pools.values()],
        "namespace": lab.clients.name,
        "metrics": service.metrics if service else "",
    }


def _run(
    labs: list[Lab], folder: Path, *options: str, services: tuple[LabService | None, LabService | None]
) -> subprocess.CompletedProcess[str]:
    canaries = []
    for number, peer in enumerate(labs[0].peers, 1):
        path = folder / f"c{number}.key"
        path.write_text(peer.private_key)
        path.chmod(0o600)
        addresses = [str(address) for address in peer.tunnel.values()]
        canaries.append({"name": f"c{number}", "private_key_file": str(path), "addresses": addresses})
    plan = {
        "reflector": _reflectors(labs[0]),
        "port": PORT,
        "pause": "0s",
        "timeout": "10s",
        "relays": [
            _relay(lab, f"r{number}", service)
            for number, (lab, service) in enumerate(zip(labs, services, strict=True), 1)
        ],
        "canaries": canaries,
    }
    path = folder / "plan.yml"
    path.write_text(yaml.safe_dump(plan))
    command = [sys.executable, "-m", "detector", "canary", "run", "--config", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)


def test_a_shared_secret_is_seen_from_outside_and_relays_say_the_same(
    labs: list[Lab], tmp_path: Path
) -> None:
    """Both relays are linked in both families; their own word on each place is what was seen."""
    declared = canaries_key(COUNT)
    with start_service(
        labs[0], port=0, exits=[str(one) for one in pools(SIZES[0])], canaries=declared
    ) as service:
        warm = _run(labs, tmp_path, "--json", services=(None, None))
        assert warm.returncode == 0, warm.stderr
        time.sleep(3)
        state, textfile, drawing = (tmp_path / name for name in ("state", "out.prom", "out.svg"))
        options = ("--json", f"--state={state}", f"--textfile={textfile}", f"--plot={drawing}")
        done = _run(labs, tmp_path, *options, services=(service, None))
        assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for family in ("ipv4", "ipv6"):
        [linked] = said["families"][family]["linked"]
        assert linked["relays"] == ["r1", "r2"]
        assert linked["bits"] == pytest.approx(4.96, abs=0.01)
    assert said["compared_with_relays"] == 2 * COUNT
    assert said["differ"] == []
    assert not state.exists()
    assert 'exitprint_outside_linked{relay="r1",family="ipv4"} 1' in textfile.read_text()
    assert drawing.read_text().count("<title>c1</title>") == 4
    text = done.stdout + textfile.read_text() + drawing.read_text()
    secrets = [secret for lab in labs for secret in lab.secrets()] + ["203.0.113.", "2001:db8:203"]
    assert [secret for secret in secrets if secret in text] == []


def test_relays_with_their_own_secrets_are_not_linked_and_a_run_goes_on(
    labs: list[Lab], tmp_path: Path
) -> None:
    """After the repair nothing is linked; a run that stopped half way does not ask again what it knows."""
    for lab in labs:
        lab.apply("jhash")
        lab.forget()
    first = _run(labs, tmp_path, "--json", f"--state={tmp_path / 'state'}", services=(None, None))
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    assert [said["families"][family]["linked"] for family in ("ipv4", "ipv6")] == [[], []]
    # As a run that was stopped after the first canary leaves it.
    known = [["r1", "c1", "ipv4", ["203.0.113.10"]], ["r2", "c1", "ipv4", ["203.0.113.10"]]]
    (tmp_path / "state").write_text(json.dumps({"sights": known}))
    again = _run(labs, tmp_path, f"--state={tmp_path / 'state'}", services=(None, None))
    assert again.returncode == 0, again.stderr
    assert "c1 through" not in again.stderr
    assert again.stderr.count(" through ") == 2 * (COUNT - 1)
    assert "0/59" in again.stdout
