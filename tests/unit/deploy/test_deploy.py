# SPDX-License-Identifier: Apache-2.0
"""The files in deploy/ are accepted by what reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.config.file import load_config
from detector.config.keys import keys_of
from detector.config.model import Config, Tables
from tests.system.debian.packages import dependencies
from tools import config_pages

DEPLOY = Path(__file__).parents[3] / "deploy"


def test_the_example_sets_nothing() -> None:
    """A relay that takes the example as it is has the defaults, its own name among them."""
    assert load_config(DEPLOY / "exitprint.yml") == Config()


def uncommented(*left_out: str) -> str:
    """The example with every key set."""
    lines = (DEPLOY / "exitprint.yml").read_text().splitlines()
    keys = [
        line.removeprefix("# ") for line in lines if re.match(r"# ( {2})?[a-z_]+:( [^ ]+| [\[{].*)?$", line)
    ]
    return "\n".join(line for line in keys if line.partition(":")[0] not in left_out) + "\n"


def test_every_key_of_the_example_is_accepted(tmp_path: Path) -> None:
    """What stands behind a # is a key that can be used as it is, and none is left out."""
    shown = tmp_path / "shown.yml"
    shown.write_text(uncommented())
    config = load_config(shown)
    names = [line.partition(":")[0] for line in uncommented().splitlines()]
    assert [name for name in names if not name.startswith(" ")] == list(keys_of(Config))
    assert [name.strip() for name in names if name.startswith(" ")] == list(keys_of(Tables))
    assert config.relay == "se-sto-wg-001"


def test_the_defaults_that_the_example_shows_are_the_defaults(tmp_path: Path) -> None:
    """Every value behind a # is the one that the program has, apart from the examples."""
    shown = tmp_path / "shown.yml"
    shown.write_text(uncommented(*(name for name, key in keys_of(Config).items() if key.example)))
    assert shown.read_text().count("window: 24h\n") == 1
    assert load_config(shown) == Config()


@pytest.mark.parametrize(
    ("path", "made"),
    [
        (config_pages.EXAMPLE, config_pages.example),
        (config_pages.PAGE, config_pages.page),
        (config_pages.MANUAL, config_pages.manual),
    ],
)
def test_pages_of_the_configuration_are_fresh(path: Path, made: Callable[[], str]) -> None:
    """What is kept is what the keys give now: otherwise run `make generate`."""
    assert path.read_text() == made()


@pytest.mark.skipif(not shutil.which("man"), reason="NO man here")
def test_the_manual_page_is_without_faults() -> None:
    """Man prints it without a warning, and it names every key with its bounds."""
    command = ["man", "--warnings", "--local-file", str(config_pages.MANUAL)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    assert all(entry.name in done.stdout for entry in config_pages.entries())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="NO systemd-analyze here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Systemd finds nothing to complain about in the unit, once its command exists."""
    unit = tmp_path / "exitprint.service"
    text = (DEPLOY / "systemd" / "exitprint.service").read_text()
    unit.write_text(text.replace("/usr/bin/exitprint", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], check=False, capture_output=True, text=True
    )
    about_it = [line for line in done.stderr.splitlines() if "exitprint" in line]
    assert (done.returncode, about_it) == (0, [])


def test_the_debian_package_depends_on_what_the_wheel_does() -> None:
    """A dependency that is added to one is in the other: Debian's package of it, without a version."""
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    names = {"pyyaml": "yaml"}
    wanted = {f"python3-{names.get(name, name)}" for name in project["dependencies"]}
    assert set(dependencies()) == wanted | {"python3-bpfcc"}
