# SPDX-License-Identifier: Apache-2.0
"""`exitprint audit` says of a relay's live rules what the traffic through them shows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from detector.lab.mappings import MAPPINGS
from detector.lab.relay import Lab

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A relay, of which the rules alone matter."""
    with Lab(peers=1) as relay:
        yield relay


@pytest.mark.parametrize("name", MAPPINGS)
def test_live_rules_are_audited(lab: Lab, name: str) -> None:
    """Verdict and predictor of every mapping's rules; exit status 1 where they leak across relays."""
    mapping = MAPPINGS[name]
    lab.apply(mapping)
    done = lab.run(lab.relay, [sys.executable, "-I", "-m", "detector", "audit", "--json"])
    rules = json.loads(done.stdout)["rules"]
    assert [(rule["verdict"], rule["predictor"]) for rule in rules] == [
        (mapping.verdict, mapping.predictor)
    ] * 2
    assert done.returncode == (mapping.verdict == "predictable")
