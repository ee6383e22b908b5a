# SPDX-License-Identifier: Apache-2.0
"""`exitprint analyze` as a person runs it."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from detector.cli import main
from tests.unit.conntrack.listings import FIRST, LAST, Flow, entry, event, flows, text

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


def judged(tmp_path: Path, lines: Sequence[str], *arguments: str | Path) -> dict[str, Any]:
    """The report on some lines."""
    done = analyze(listing(tmp_path, text(lines)), *arguments, "--json")
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def kinds(report: dict[str, Any]) -> set[str]:
    """What is said beside the verdict."""
    return {one["kind"] for one in report["listing"]["warnings"]}


EVENTS = [event(flow) for flow in MADE]
ENTRIES = [entry(flow) for flow in MADE]


def test_the_form_is_named(tmp_path: Path) -> None:
    """What the lines are, what stood before them, and what the file was packed in."""
    path = tmp_path / "log.gz"
    path.write_bytes(
        gzip.compress(text([f"May 28 20:26:40 gw conntrack[9]: {line[20:]}" for line in EVENTS]))
    )
    report = json.loads(analyze(path, "--json").stdout)
    assert report["listing"]["form"] == "events (conntrack -E); gzip, syslog"
    assert "events (conntrack -E); gzip, syslog" in " ".join(analyze(path).stdout.split())


def test_loss_takes_a_harmless_verdict_away_and_no_leak(tmp_path: Path) -> None:
    """Warnings of conntrack in the file: the coverage is not known, and what was shown stays."""
    lost = "WARNING: We have hit ENOBUFS! We are losing events."
    report = judged(tmp_path, [*EVENTS[:50], lost, *EVENTS[50:]])
    assert report["coverage"] is None
    assert report["verdict"] == "predictable"
    assert report["listing"]["garbage"] == 0
    assert "events_lost" in kinds(report)
    one_exit = [line.replace(str(flow.exit), str(FIRST)) for line, flow in zip(EVENTS, MADE, strict=True)]
    assert judged(tmp_path, one_exit)["verdict"] == "single_exit"
    assert judged(tmp_path, [*one_exit, lost])["verdict"] == "unknown"


def test_strangers_are_counted(tmp_path: Path) -> None:
    """Peers of another day: how many flows are nobody's, and pools from every exit of the listing."""
    peers = tmp_path / "peers"
    peers.write_text("".join(f"{'k' * 43}=\t10.64.0.{n}/32\n" for n in range(1, 8)))
    report = judged(tmp_path, ENTRIES, "--peers", peers)
    strange = sum(int(flow.peer) > int(ip_address("10.64.0.7")) for flow in MADE)
    assert report["listing"]["strangers"] == strange
    assert report["coverage"] == pytest.approx(1 - strange / len(MADE), abs=1e-4)
    assert report["families"]["ipv4"]["pool_size"] == 16
    assert report["verdict"] in {"predictable", "unknown"}
    assert f"{strange} of {len(MADE)}" in analyze(listing(tmp_path, text(ENTRIES)), "--peers", peers).stderr


def test_networks_are_not_judged_and_it_says_so(tmp_path: Path) -> None:
    """Where every peer is a network no number of flows gives a verdict; without --peers there is one."""
    peers = tmp_path / "peers"
    peers.write_text(f"{'k' * 43}=\t10.64.0.0/27\n{'l' * 43}=\t10.64.0.32/27\n")
    report = judged(tmp_path, EVENTS, "--peers", peers)
    assert report["verdict"] == "unknown"
    assert "networks" in report["why"]
    assert "Without --peers" in report["why"]


def drawn_for_each_part(*, parts: int, each: int) -> list[Flow]:
    """Flows of 40 peers in several parts, with hours between; in each part a peer keeps one exit."""
    draw = random.Random(8)  # noqa: S311 - repeatable on purpose
    made: list[Flow] = []
    for part in range(parts):
        some = flows(peers=40, each=each, seed=part)
        of = {flow.peer: ip_address(int(FIRST) + draw.randrange(16)) for flow in some}
        made += [replace(flow, exit=of[flow.peer], time=flow.time + 40_000 * part) for flow in some]
    return made


def test_a_reload_is_no_proof_of_sessions(tmp_path: Path) -> None:
    """Everybody kept an exit, was drawn anew in one pause, and kept that: not `session_sticky`."""
    made = drawn_for_each_part(parts=2, each=12)
    report = judged(tmp_path, [event(flow) for flow in made])
    assert report["verdict"] in {"pinned", "unknown"}
    assert "drawn_anew" in kinds(report)
    assert report["families"]["ipv4"]["flows"] == pytest.approx(len(made) / 2, abs=40)


def test_sessions_are_told_whatever_the_order(tmp_path: Path) -> None:
    """A new exit for each of several sessions, printed newest first."""
    made = drawn_for_each_part(parts=8, each=6)
    lines = [event(flow) for flow in sorted(made, key=lambda one: one.time)]
    forward, backward = judged(tmp_path, lines), judged(tmp_path, lines[::-1])
    assert forward["verdict"] == backward["verdict"] == "session_sticky"
    assert "newest_first" in kinds(backward) - kinds(forward)


def test_rules_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Flows from before a repair: they follow the kernel's hash, and the new rules do not."""
    rules = tmp_path / "rules"
    rules.write_text(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -m statistic --mode random "
        f"--probability 0.5 -j SNAT --to-source {FIRST}\n"
        f"-A POSTROUTING -o eth0 -j SNAT --to-source {LAST}\nCOMMIT\n"
    )
    report = judged(tmp_path, EVENTS, "--rules", rules)
    assert "rules_do_not_fit" in kinds(report)
    assert "rules_do_not_fit" not in kinds(judged(tmp_path, EVENTS, "--pool", f"{FIRST}-{LAST}"))


def test_rules_of_one_family_leave_the_guess_to_the_other(tmp_path: Path) -> None:
    """iptables-save has IPv4 alone; IPv6 is judged as if nothing was given."""
    rules = tmp_path / "rules"
    rules.write_text(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n"
        f"-A POSTROUTING -o eth0 -j SNAT --to-source {FIRST}-{LAST} --persistent\nCOMMIT\n"
    )
    six = [event(flow) for flow in flows(peers=40, each=10, six=True, persistent=True)]
    report = judged(tmp_path, [*EVENTS, *six], "--rules", rules)
    assert {one["predictor"] for one in report["families"].values()} == {"kernel_persistent"}
    assert report["listing"]["families_guessed"] == ["ipv6"]
    assert "guessed" in kinds(report)


def test_files_of_two_relays_and_of_two_days(tmp_path: Path) -> None:
    """Pools far apart stay two, and the order of names is not that of times."""
    far = [replace(flow, exit=flow.exit + 62, time=flow.time - 50_000) for flow in MADE]
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(text(EVENTS))
    paths[1].write_bytes(text([event(flow) for flow in far]))
    report = json.loads(analyze(*paths, "--json").stdout)
    assert report["families"]["ipv4"]["pool_size"] == 32
    assert not kinds(report) & {"time_goes_back", "newest_first"}


@pytest.mark.parametrize(
    "line",
    [
        (ENTRIES[0].replace(str(MADE[0].peer), "172.17.0.2").replace(str(MADE[0].exit), "203.0.113.40")),
        (ENTRIES[0][: ENTRIES[0].index(str(MADE[0].exit)) + 11]),
    ],
)
def test_one_line_does_not_change_the_verdict(tmp_path: Path, line: str) -> None:
    """A flow of the relay's own by an exit of its own, and a line that was cut in its exit."""
    assert judged(tmp_path, [*ENTRIES, line])["verdict"] == "predictable"
