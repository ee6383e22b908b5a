# SPDX-License-Identifier: Apache-2.0
"""The same traffic, seen by the kernel program's tables and by conntrack's own recording."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from detector.cli import main
from detector.lab.mappings import MAPPINGS
from detector.lab.relay import Lab
from detector.lab.service import start_service

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS, FLOWS = 12, 1200


def analyzed(*arguments: str | Path) -> dict[str, Any]:
    """The report of `exitprint analyze`."""
    done = CliRunner().invoke(main, ["analyze", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("mapping", ["persistent", "plain"])
def test_a_recording_says_what_the_live_tables_say(tmp_path: Path, mapping: str) -> None:
    """Verdict, predictor, counts and trials of a recorded listing are those of the live tables."""
    recording, rules, peers, listed = (tmp_path / name for name in ("events", "rules", "peers", "entries"))
    with Lab(peers=PEERS) as lab:
        lab.apply(mapping)
        with start_service(lab) as service, lab.record(recording) as heard:
            lab.send(lab.workload(FLOWS))
            live = service.report(FLOWS)
        rules.write_text(lab.run(lab.relay, ["nft", "-j", "list", "ruleset"]).stdout)
        wg = ["wg", "show", lab.wireguard_interface, "allowed-ips"]
        peers.write_text(lab.run(lab.relay, wg).stdout)
        for family in ("ipv4", "ipv6"):
            listed.open("a").write(lab.run(lab.relay, ["conntrack", "-L", "-f", family]).stdout)
        secrets = lab.secrets()
    assert heard.lost == 0
    said = analyzed(recording, "--rules", rules, "--peers", peers)
    without_times = analyzed(listed, "--rules", rules)
    for report in (said, without_times):
        assert (report["verdict"], report["predictor"]) == (live["verdict"], live["predictor"])
        assert not any(secret in json.dumps(report) for secret in secrets)
    for family, seen in live["families"].items():
        found = said["families"][family]
        for name in ("verdict", "predictor", "findings", "peers", "exits", "pool_size", "flows"):
            assert found[name] == seen[name], name
        for name, trials in seen["contrasts"].items():
            assert found["contrasts"][name]["trials"] == pytest.approx(trials["trials"], rel=0.05), name
            assert found["contrasts"][name]["observed"] == pytest.approx(trials["observed"], abs=0.05), name
        for name, explained in seen["explained"].items():
            # The service samples which exit is a peer's busiest: where none is, two peers may differ.
            allowed = 0.05 if explained["holds"] else 2 / explained["trials"] + 0.001
            assert found["explained"][name]["ratio"] == pytest.approx(explained["ratio"], abs=allowed), name
            assert found["explained"][name]["trials"] == pytest.approx(explained["trials"], rel=0.05), name


def test_every_mapping_is_told_from_its_recording(tmp_path: Path) -> None:
    """Each row of the signature table gets its verdict and predictor from what conntrack recorded."""
    expected, said = {}, {}
    rules = tmp_path / "rules"
    with Lab(peers=24) as lab:
        for name, mapping in MAPPINGS.items():
            recording = tmp_path / name
            lab.forget()
            lab.apply(mapping)
            with lab.record(recording):
                lab.send(lab.workload(2400))
            rules.write_text(lab.run(lab.relay, ["nft", "-j", "list", "ruleset"]).stdout)
            report = analyzed(recording, "--rules", rules)
            said[name] = report["verdict"], report["predictor"]
            expected[name] = mapping.verdict, mapping.predictor
    assert said == expected
