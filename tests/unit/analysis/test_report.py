# SPDX-License-Identifier: Apache-2.0
"""The JSON object is the one that is promised."""

from __future__ import annotations

import json

import numpy as np

from detector.analysis.verdict import judge
from tools.simulated_relays import MAPPINGS, relay, traffic


def test_the_object_has_the_promised_shape() -> None:
    """Every promised key is there, with the promised kinds of values, for a leaking relay."""
    rng = np.random.default_rng(1)
    flows = traffic(rng, 90, 24, 12)
    report = judge([relay(rng, MAPPINGS["persistent"], 59, flows)]).as_dict()
    said = json.loads(json.dumps(report, allow_nan=False))
    family = said["families"]["ipv4"]
    assert (said["verdict"], said["predictor"], said["coverage"]) == ("predictable", "kernel_persistent", 1.0)
    assert family["findings"] == ["predictable", "pinned"]
    assert (family["peers"], family["pool_size"], family["flows"]) == (90, 59, 2160)
    assert family["exits"] <= 59
    assert family["consistency"] == {"any": 1.0, "same_destination": 1.0, "same_port": None}
    assert family["explained"]["kernel_persistent"]["ratio"] == 1.0
    assert 0.01 < family["explained"]["kernel_persistent"]["chance"] < 0.03
    assert family["peers_flagged"]["pinned"] == 90
    assert set(family["anonymity_set"]) >= {"min", "median"}
    assert 5 < family["leak_bits"] <= 5.9


def test_an_empty_relay_is_valid_json() -> None:
    """No flows, no infinities: the object is plain JSON still."""
    rng = np.random.default_rng(1)
    flows = traffic(rng, 4, 0)
    said = json.dumps(judge([relay(rng, MAPPINGS["random"], 8, flows)]).as_dict(), allow_nan=False)
    assert json.loads(said)["verdict"] == "unknown"
