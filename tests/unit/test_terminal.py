# SPDX-License-Identifier: Apache-2.0
"""What the report for people says beside the verdict: which rule leaks, and what a change of rules did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detector.analysis.changes import PrimaryExits, compare
from detector.analysis.verdict import judge
from detector.terminal import show_report
from tools.simulated_relays import MAPPINGS, beside, relay, traffic

RULES = ("ip nat post handle 7", "ip nat post handle 9")


def half_leaking() -> dict[str, object]:
    """The report on a relay where half of the peers sit on a leaking rule with a pool of its own."""
    rng = np.random.default_rng(1)
    halves = [
        relay(rng, MAPPINGS[mapping], 16, traffic(rng, 30, 24, destinations=12))
        for mapping in ("persistent", "random")
    ]
    return judge([replace(beside(*halves), pool_origins=RULES)]).as_dict()


def test_the_leaking_rule_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """How many peers leak is said for each rule, in the paragraph and in lines of their own."""
    report = half_leaking()
    show_report(report)
    said = " ".join(capsys.readouterr().out.split())
    assert f"It is 30 of the 30 judged peers that the rule at {RULES[0]} serves" in said
    assert f"IPv4, 16 exits of {RULES[0]}: 30 peers predictable" in said
    assert f"IPv4, 16 exits of {RULES[1]}: 30 peers unlinkable" in said


def test_one_pool_needs_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Where one rule serves everybody, it goes without saying which."""
    rng = np.random.default_rng(1)
    seen = relay(rng, MAPPINGS["persistent"], 16, traffic(rng, 30, 24))
    show_report(judge([replace(seen, pool_origins=RULES[:1])]).as_dict())
    assert "handle" not in capsys.readouterr().out


def test_a_change_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """What a change of the rules did stands under the report."""
    rng = np.random.default_rng(1)
    exits = relay(rng, MAPPINGS["jhash"], 59, traffic(rng, 2, 2)).exits
    one, other = (
        PrimaryExits(1, np.arange(40), rng.integers(0, 59, 40), exits, ((exits[0], exits[-1]),), 40)
        for _ in range(2)
    )
    change = {"ipv4": compare(one, other).as_dict()}
    show_report({"verdict": "unknown", "families": {}, "epoch": {"number": 2, "change": change}})
    assert "IPv4: The change drew the mapping anew" in " ".join(capsys.readouterr().out.split())
