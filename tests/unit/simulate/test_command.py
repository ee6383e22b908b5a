# SPDX-License-Identifier: Apache-2.0
"""`exitprint simulate` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.cli import main
from detector.simulate.mappings import MAPPINGS

GOLDEN = "60,11,8,31,66,91,59,13,11"


def simulate(*arguments: str | Path) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def test_json_holds_every_relay() -> None:
    """One object: the mapping after 1 to 9 relays, and the mitigation beside it."""
    done = simulate("--pools", GOLDEN, "--keys", "3650", "--mitigation", "secret", "--json")
    said = json.loads(done.stdout)
    assert [one["relays"] for one in said["after"]] == list(range(1, 10))
    assert said["after"][-1]["cells"] == 302
    assert said["mitigation"]["mapping"] == "secret"
    assert said["mitigation"]["after"][-1]["excess_bits"] == 0


def test_people_get_a_table_and_a_comparison() -> None:
    """The golden figures are in the table, and before and after in one line."""
    done = simulate("--pools", GOLDEN, "--keys", "3650", "--mitigation", "secret")
    assert done.exit_code == 0
    assert "291.6 ± 2.7" in done.stdout
    assert "34.68 → 0.00" in " ".join(done.stdout.split())


@pytest.mark.parametrize("mapping", sorted(MAPPINGS))
def test_every_mapping_has_a_table_and_a_picture(tmp_path: Path, mapping: str) -> None:
    """Each name works; the picture is well-formed XML."""
    path = tmp_path / "picture.svg"
    done = simulate("--pools", "64,16,8", "--mapping", mapping, "--plot", path)
    assert done.exit_code == 0, done.output
    assert mapping in done.stdout
    assert Xml.fromstring(path.read_text()).tag.endswith("svg")  # noqa: S314


def test_pools_may_be_ranges() -> None:
    """A range or prefix of addresses stands for its size."""
    done = simulate("--pools", "203.0.113.68-203.0.113.126,2001:db8::/120", "--json")
    assert json.loads(done.stdout)["pools"] == [59, 256]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--pools", "0,abc"),
        ("--pools", "60,0"),
        ("--pools", "60,,11"),
        ("--pools", ""),
        ("--pools", "-5"),
        ("--pools", "99999999999999999999"),
        ("--pools", "60", "--keys", "0"),
        ("--pools", "60", "--keys", "many"),
        ("--pools", "60", "--mapping", "magic"),
        ("--pools", "60", "--mapping", "netmap"),
        ("--pools", "60", "--plot", "picture.bmp"),
        ("--pools", "60", "--plot", "/nowhere/at/all.svg"),
        (),
    ],
)
def test_nonsense_is_refused(arguments: tuple[str, ...]) -> None:
    """Exit status 2 and a message, nothing on standard output."""
    done = simulate(*arguments)
    assert done.exit_code == 2
    assert done.stderr
    assert not done.stdout


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789,.-/:ax٣ ", max_size=14), st.sampled_from(sorted(MAPPINGS)))
def test_no_pools_end_in_a_traceback(pools: str, mapping: str) -> None:
    """Whatever is written for pools ends in a report or in a user's error."""
    done = simulate(f"--pools={pools}", "--mapping", mapping)
    assert done.exit_code in {0, 2}, done.output
