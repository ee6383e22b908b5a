# SPDX-License-Identifier: Apache-2.0
"""What the report for people says beside the verdict: which rule leaks, and what a change of rules did."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from detector.analysis.observation import Observation
from detector.analysis.verdict import judge
from detector.base.answers import ReportAnswer
from detector.terminal import show_report
from tools.simulated_relays import MAPPINGS, beside, relay, traffic

RULES = ("ip nat post handle 7", "ip nat post handle 9")


def answer_of(observation: Observation) -> ReportAnswer:
    """The report on one family."""
    return cast(ReportAnswer, judge([observation]).as_dict())


def half_leaking() -> ReportAnswer:
    """The report on a relay where half of the peers sit on a leaking rule with a pool of its own."""
    rng = np.random.default_rng(1)
    halves = [
        relay(rng, MAPPINGS[mapping], 16, traffic(rng, 30, 24, destinations=12))
        for mapping in ("persistent", "random")
    ]
    return answer_of(replace(beside(*halves), pool_origins=RULES))


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
    show_report(answer_of(replace(seen, pool_origins=RULES[:1])))
    assert "handle" not in capsys.readouterr().out
