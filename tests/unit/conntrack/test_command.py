# SPDX-License-Identifier: Apache-2.0
"""`exitprint analyze` as a person runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detector.cli import main
from tests.unit.conntrack.listings import FIRST, LAST, event, flows, text

MADE = flows(peers=40, each=10, persistent=True)
LISTING = text([event(flow) for flow in MADE])


def analyze(*arguments: str | Path, content: bytes | None = None) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["analyze", *map(str, arguments)], input=content)


def listing(folder: Path, content: bytes = LISTING) -> Path:
    """A file with a listing."""
    path = folder / "listing"
    path.write_bytes(content)
    return path


def test_json_is_alone_on_standard_output(tmp_path: Path) -> None:
    """The report is one JSON object, with what became of the lines; nothing in it names a peer or a site."""
    done = analyze(listing(tmp_path, LISTING + b"garbage\n"), "--pool", f"{FIRST}-{LAST}", "--json")
    report = json.loads(done.stdout)
    assert (report["verdict"], report["predictor"]) == ("predictable", "kernel_persistent")
    assert report["listing"]["garbage_lines"] == [len(MADE) + 1]
    assert f"line {len(MADE) + 1}" in done.stderr
    assert "garbage" not in done.stderr.replace("garbage_lines", "")
    assert not any(str(one) in done.output for flow in MADE for one in (flow.peer, flow.destination))


def test_people_get_the_report_from_a_pipe() -> None:
    """Standard input works, and people read the verdict and why."""
    done = analyze("-", content=LISTING)
    assert done.exit_code == 0
    assert "The relay is predictable by kernel_persistent" in done.stdout


def test_files_are_read_as_one(tmp_path: Path) -> None:
    """Two halves of a recording give the report of the whole."""
    half = LISTING.index(b"\n", len(LISTING) // 2) + 1
    parts = [tmp_path / "one", tmp_path / "two"]
    parts[0].write_bytes(LISTING[:half])
    parts[1].write_bytes(LISTING[half:])
    assert analyze(*parts, "--json").stdout == analyze(listing(tmp_path), "--json").stdout


@pytest.mark.parametrize("content", [b"", b"\n\n", b"what\nis this\n", b"\xff\x00" * 99])
def test_a_file_without_a_usable_line_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Nothing that conntrack prints: exit status 2, what to do, no traceback."""
    done = analyze(listing(tmp_path, content))
    assert done.exit_code == 2
    assert "conntrack -E" in done.stderr


def test_bad_input_is_named(tmp_path: Path) -> None:
    """Files that are not there, durations and pools that are none: exit status 2 and the name."""
    path = listing(tmp_path)
    for arguments in (
        (tmp_path / "nowhere",),
        (tmp_path,),
        (path, "--session-gap", "soon"),
        (path, "--session-gap", "0"),
        (path, "--pool", "10.0.0.9-10.0.0.1"),
        (path, "--rules", tmp_path / "nowhere"),
        (path, "--peers", tmp_path / "nowhere"),
    ):
        done = analyze(*arguments)
        assert done.exit_code == 2, done.output
        assert str(arguments[-1]) in done.stderr.replace("\n", "")


def test_the_session_gap_needs_no_unit(tmp_path: Path) -> None:
    """Seconds may be written bare, or a duration as in the configuration."""
    path = listing(tmp_path)
    first, *others = (analyze(path, "--json", "--session-gap", gap) for gap in ("600", "600.0", "10m"))
    assert first.exit_code == 0
    assert all(one.stdout == first.stdout for one in others)


def test_rules_say_what_is_predicted(tmp_path: Path) -> None:
    """Rules name the pool, so its size is the pool's and not that of the exits seen."""
    rules = tmp_path / "rules"
    rules.write_text(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n"
        f"-A POSTROUTING -o eth0 -j SNAT --to-source {FIRST}-{LAST}\nCOMMIT\n"
    )
    done = analyze(listing(tmp_path), "--rules", rules, "--json")
    assert json.loads(done.stdout)["families"]["ipv4"]["pool_size"] == 16
    assert not json.loads(done.stdout)["listing"]["pools_guessed"]


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("nft"), reason="nft is not here, so nft text cannot be read")
def test_nft_text_is_read(tmp_path: Path) -> None:
    """Rules as a person writes them."""
    rules = tmp_path / "rules.nft"
    rules.write_text(
        "table ip exits {\n chain out {\n  type nat hook postrouting priority srcnat;\n"
        f"  snat to {FIRST}-{LAST} persistent\n }}\n}}\n"
    )
    done = analyze(listing(tmp_path), "--rules", rules, "--json")
    assert json.loads(done.stdout)["predictor"] == "kernel_persistent"


def test_the_relays_own_flows_are_nobodys(tmp_path: Path) -> None:
    """With a pool known, a flow that left by another exit makes no peer, and lowers the coverage."""
    other = event(MADE[0]).replace(str(MADE[0].peer), "172.17.0.2").replace(str(MADE[0].exit), "192.0.2.1")
    path = listing(tmp_path, LISTING + text([other]))
    report = json.loads(analyze(path, "--pool", f"{FIRST}-{LAST}", "--json").stdout)
    assert report["families"]["ipv4"]["peers"] == 40
    assert report["coverage"] == round(len(MADE) / (len(MADE) + 1), 4)
