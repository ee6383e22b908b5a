# SPDX-License-Identifier: Apache-2.0
"""The lab's rules and routes are the project's own, with shorter times and nothing else changed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from detector.lab import timescale

_TIME = re.compile(r"\b\d+(ms|[smhd])\b")


@pytest.mark.parametrize(
    ("duration", "factor", "expected"),
    [("5m", 60, "5000ms"), ("7d", 60, "10080000ms"), ("30s", 120, "250ms"), ("10ms", 100, "1ms")],
)
def test_a_duration_gets_shorter(duration: str, factor: float, expected: str) -> None:
    """Each unit is divided; nothing becomes zero."""
    assert timescale.shorter(duration, factor) == expected


@pytest.mark.parametrize("name", timescale.RULES)
def test_only_the_times_of_rules_differ(name: str) -> None:
    """With times left out, the rules are those that are deployed; every time in a rule became shorter."""
    deployed = yaml.safe_load((timescale.DEPLOY / "prometheus" / name).read_text())
    shorter = timescale.rules(name, 60)
    for old, new in zip(
        (rule for group in deployed["groups"] for rule in group["rules"]),
        (rule for group in shorter["groups"] for rule in group["rules"]),
        strict=True,
    ):
        for key in old:
            if key in ("expr", "for", "keep_firing_for"):
                assert _TIME.sub("T", old[key]) == _TIME.sub("T", new[key])
                assert all(match[1] == "ms" for match in _TIME.finditer(new[key]))
            else:
                assert old[key] == new[key]


@pytest.mark.skipif(not shutil.which("promtool"), reason="NO promtool here")
def test_promtool_and_amtool_accept_what_the_lab_runs(tmp_path: Path) -> None:
    """The shorter rules and routes are valid."""
    for name in timescale.RULES:
        (tmp_path / name).write_text(yaml.safe_dump(timescale.rules(name, 120)))
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump(timescale.prometheus([timescale.Target("127.0.0.1:1")], "127.0.0.1:2", "1s"))
    )
    routes = tmp_path / "alertmanager.yml"
    routes.write_text(yaml.safe_dump(timescale.routes(120, "http://127.0.0.1:3")))
    for command in (
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        ["amtool", "check-config", str(routes)],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
