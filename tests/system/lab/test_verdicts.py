# SPDX-License-Identifier: Apache-2.0
"""The service on a lab's relay calls every named mapping what it is, on the running kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from detector.base.family import Family
from detector.lab.mappings import MAPPINGS, find
from detector.lab.relay import Lab
from detector.lab.service import LabService, start_service
from detector.lab.workload import Planner

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS, FLOWS = 24, 2304
PATIENCE = 30.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay for all mappings."""
    with Lab(peers=PEERS) as relay:
        relay.apply("masquerade")
        yield relay


@pytest.fixture(scope="module")
def service(lab: Lab) -> Iterator[LabService]:
    """One service, which follows from each mapping to the next."""
    with start_service(lab, port=0) as running:
        yield running


def change(lab: Lab, service: LabService, mapping: str) -> None:
    """Load other rules and wait until the service speaks of them."""
    before = service.status()["epoch"]["number"]
    lab.forget()
    lab.apply(mapping)
    limit = time.monotonic() + PATIENCE
    while service.status()["epoch"]["number"] == before:
        assert time.monotonic() < limit, "the service did not notice the new rules"
        time.sleep(0.05)


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_mapping_gets_its_verdict(lab: Lab, service: LabService, name: str) -> None:
    """The relay and both of its families are called what the mapping deserves, with the predictor's name."""
    change(lab, service, name)
    result = lab.send(lab.workload(FLOWS))
    assert result.clean
    report = service.report(FLOWS)
    expected = MAPPINGS[name].verdict, MAPPINGS[name].predictor
    assert (report["verdict"], report["predictor"]) == expected, report["why"]
    for family in report["families"].values():
        assert (family["verdict"], family["predictor"], family["flows"]) == (*expected, FLOWS // 2), family[
            "why"
        ]
    assert report["coverage"] == 1.0


def test_two_flows_of_each_peer_are_too_few(lab: Lab, service: LabService) -> None:
    """Under rules that leak everything, two flows a peer and family are no evidence."""
    change(lab, service, "persistent")
    lab.send(Planner(PEERS, 24).visits(2))
    assert service.report(PEERS * 4)["verdict"] == "unknown"


def test_mended_rules_are_judged_for_themselves(lab: Lab, service: LabService) -> None:
    """A relay that pinned its peers turns good with new rules: nothing of before counts any more."""
    change(lab, service, "jhash")
    lab.send(lab.workload(FLOWS, seed=2))
    assert service.report(FLOWS)["verdict"] == "pinned"
    before = service.status()["epoch"]["number"]
    change(lab, service, "numgen-random")
    after = service.status()
    assert after["epoch"]["number"] == before + 1
    assert all(family["flows"] == 0 for family in after["families"].values())
    lab.send(lab.workload(FLOWS, seed=3))
    assert service.report(FLOWS)["verdict"] == "unlinkable"


@pytest.mark.parametrize(
    ("name", "family", "own", "translated"),
    [("routed6", Family.IPV6, PEERS, 0), ("routed4", Family.IPV4, PEERS // 8, PEERS - PEERS // 8)],
)
def test_routed_peers_are_exclusive(name: str, family: Family, own: int, translated: int) -> None:
    """Peers that leave with a global address of their own are counted and named, however few they are."""
    mapping = find(name)
    with Lab(peers=PEERS, routed=mapping.routed) as lab:
        lab.apply(mapping)
        with start_service(lab, port=0) as service:
            assert lab.send(lab.workload(FLOWS)).clean
            assert lab.truth().untranslated() == own * FLOWS // PEERS // 2
            report = service.report(FLOWS)
            said = str(service.status())
    assert report["verdict"] == mapping.verdict == "exclusive", report["why"]
    assert f"{own} of {PEERS} peers" in report["why"]
    assert f"{own} not translated" in report["why"]
    found = report["families"][family.value]
    assert found["exclusive_by_kind"] == {"untranslated": own}
    assert found["untranslated"] == {"global": {"flows": own * FLOWS // PEERS // 2, "peers": own}}
    assert found["peers"] == translated
    (other,) = set(Family) - {family}
    assert report["families"][other.value]["verdict"] == "unlinkable"
    assert not [secret for secret in lab.secrets() if secret in said]
