# SPDX-License-Identifier: Apache-2.0
"""The files in deploy/ are accepted by what reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from detector.config.file import load_config
from detector.config.model import Config

DEPLOY = Path(__file__).parents[3] / "deploy"


def test_the_example_configuration_is_the_default_but_for_the_name() -> None:
    """The example loads, and sets nothing besides the relay's name."""
    assert load_config(DEPLOY / "exitprint.yml") == Config(relay="se-sto-wg-001")


def test_the_defaults_that_the_example_shows_are_the_defaults(tmp_path: Path) -> None:
    """Every default shown behind a # is the one that the program has, apart from those that list examples."""
    text = re.sub(
        r"^# (?!wireguard|exits)(\w+: \S+)$", r"\1", (DEPLOY / "exitprint.yml").read_text(), flags=re.M
    )
    shown = tmp_path / "shown.yml"
    shown.write_text(text)
    assert text.count("\nwindow: 24h") == 1
    assert load_config(shown) == Config(relay="se-sto-wg-001")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="NO systemd-analyze here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Systemd finds nothing to complain about in the unit, once its command exists."""
    unit = tmp_path / "exitprint.service"
    text = (DEPLOY / "systemd" / "exitprint.service").read_text()
    unit.write_text(text.replace("/opt/exitprint/bin/exitprint", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    about_it = [line for line in done.stderr.splitlines() if "exitprint" in line]
    assert (done.returncode, about_it) == (0, [])
