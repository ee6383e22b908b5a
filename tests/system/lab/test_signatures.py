# SPDX-License-Identifier: Apache-2.0
"""What the named mappings do not show, told apart on one relay by the live tables and by a recording."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from detector.base.family import Address, Family
from detector.base.ranges import AddressRange
from detector.cli import main
from detector.lab.layout import DEFAULT_POOLS
from detector.lab.mappings import find
from detector.lab.relay import EXIT_INTERFACE, Lab
from detector.lab.workload import Flow, Planner
from tests.system.service.stepping import stepped

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS, DESTINATIONS = 24, 24
GAP = 2.0
POOL = {pool.family: pool for pool in DEFAULT_POOLS}
IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
Report = Mapping[str, Any]
Phases = Sequence[Sequence[Flow]]


@dataclass(frozen=True)
class Seen:
    """One relay's traffic, judged twice."""

    live: Report
    recorded: Report

    def __iter__(self) -> Iterator[Report]:
        yield self.live
        yield self.recorded


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One relay for all rules."""
    with Lab(peers=PEERS, destinations=DESTINATIONS) as relay:
        relay.apply("masquerade")
        yield relay


@pytest.fixture
def see(lab: Lab, tmp_path: Path) -> Callable[..., Seen]:
    """Send phases of flows through these rules; the report of the live tables and that of the recording."""

    def judged(rules: str, phases: Phases, pause: float = 0.0, pools: Iterable[AddressRange] = ()) -> Seen:
        recording, listed, peers = (tmp_path / name for name in ("events", "rules", "peers"))
        exits = tuple(map(str, pools))
        lab.forget()
        lab.apply_text(rules)
        with stepped(lab, session_gap=GAP, exits=exits) as both, lab.record(recording):
            for number, phase in enumerate(phases):
                time.sleep(pause if number else 0)
                both.step()
                assert lab.send(phase).clean
            both.step()
            report = both.aggregator.snapshot.report
        assert report is not None
        listed.write_text(lab.run(lab.relay, ["nft", "-j", "list", "ruleset"]).stdout)
        wg = ["wg", "show", lab.wireguard_interface, "allowed-ips"]
        peers.write_text(lab.run(lab.relay, wg).stdout)
        named = [option for exit_ in exits for option in ("--pool", exit_)] or ["--rules", str(listed)]
        seen = Seen(report.as_dict(), analyzed(recording, peers, named))
        assert not any(secret in json.dumps([*seen]) for secret in lab.secrets())
        return seen

    return judged


def analyzed(recording: Path, peers: Path, named: Sequence[str]) -> Report:
    """What `exitprint analyze` says of a recording."""
    arguments = [str(recording), "--peers", str(peers), "--session-gap", str(GAP), "--json", *named]
    done = CliRunner().invoke(main, ["analyze", *arguments])
    assert done.exit_code == 0, done.output
    report: Report = json.loads(done.stdout)
    return report


def chain(family: Family, *rules: str, head: str = "") -> str:
    """A table with these rules about what leaves the relay."""
    body = "\n".join(f'oifname "{EXIT_INTERFACE}" {rule}' for rule in rules)
    return (
        f"table {IP[family]} exits {{\n{head}\nchain postrouting {{\n"
        f"type nat hook postrouting priority srcnat; policy accept;\n{body}\n}}\n}}\n"
    )


def listed(pool: AddressRange) -> str:
    """A map from numbers to the exits of a pool."""
    return "{ " + ", ".join(f"{at} : {exit_}" for at, exit_ in enumerate(pool.addresses())) + " }"


def part(family: Family, start: int, size: int) -> AddressRange:
    """A piece of the lab's pool."""
    pool = POOL[family]
    return AddressRange(pool.at(start), pool.at(start + size - 1))


def visits(rounds: int, times: int = 1, families: Sequence[Family] = tuple(Family)) -> Phases:
    """Every peer goes to new destinations, from new ports, then back to all of them."""
    planner = Planner(PEERS, DESTINATIONS, families=families)
    return [planner.visits(rounds), *(planner.returns(rounds) for _ in range(times))]


def found(report: Report, family: Family | None = None) -> tuple[str, str | None]:
    """Verdict and predictor of the relay, or of a family."""
    judged = report["families"][family] if family else report
    return judged["verdict"], judged["predictor"]


def test_reused_source_ports_are_set_apart(see: Callable[..., Seen]) -> None:
    """Most flows inherit the exit of a living one; the rest still follow the kernel's hash, every one."""
    planner = Planner(PEERS, DESTINATIONS)
    phases = [planner.visits(4), planner.reuses(18), planner.returns(4)]
    for report in see(find("plain").ruleset(DEFAULT_POOLS, EXIT_INTERFACE), phases):
        assert found(report) == ("predictable", "kernel_destination"), report["why"]
        for family in report["families"].values():
            assert family["consistency"]["same_port"] == 1.0
            assert family["explained"]["kernel_destination"]["ratio"] == 1.0
            assert family["findings"] == ["predictable", "destination_linked"]


def test_half_of_the_peers_on_a_leaking_rule(lab: Lab, see: Callable[..., Seen]) -> None:
    """The relay leaks, the report says for half of the peers, and which of the two rules it is."""
    rules = ""
    for family in Family:
        leaky = [str(peer.tunnel[family]) for peer in lab.peers[::2]]
        rules += chain(
            family,
            f"{IP[family]} saddr @some snat to {part(family, 0, 30)} persistent",
            f"snat to numgen random mod 20 map {listed(part(family, 35, 20))}",
            head=f"set some {{ type {family}_addr; elements = {{ {', '.join(leaky)} }}; }}",
        )
    for report in see(rules, visits(8)):
        assert found(report) == ("predictable", "kernel_persistent"), report["why"]
        for name, family in report["families"].items():
            assert family["leaking_share"] == pytest.approx(0.5, abs=0.1)
            bad, good = family["pools"]
            assert (bad["flagged"], bad["judged"], good["flagged"]) == (PEERS // 2, PEERS // 2, 0)
            assert bad["origin"].startswith(f"{IP[Family(name)]} exits postrouting handle ")
            assert bad["origin"] != good["origin"]
            assert f"rule at {bad['origin']}" in family["why"]


def test_five_peers_and_three_flows_are_enough(see: Callable[..., Seen]) -> None:
    """Five peers with three flows each on sixty exits that follow the kernel's hash are no accident."""
    pools = tuple(AddressRange(pool.first, pool.first + 59) for pool in DEFAULT_POOLS)
    flows = [flow for flow in visits(3, 0)[0] if flow.peer < 5]
    for report in see(find("persistent").ruleset(pools, EXIT_INTERFACE), [flows]):
        assert found(report) == ("predictable", "kernel_persistent"), report["why"]
        assert [family["flows"] for family in report["families"].values()] == [15, 15]


def test_two_flows_each_are_not(see: Callable[..., Seen]) -> None:
    """Two flows of each of all the peers say nothing of the same rule."""
    for report in see(find("persistent").ruleset(DEFAULT_POOLS, EXIT_INTERFACE), visits(2, 0)):
        assert found(report) == ("unknown", None)
        assert report["families"]["ipv4"]["unknown_because"] == ["too_few_votes"]


def test_a_leak_in_one_family_alone(see: Callable[..., Seen]) -> None:
    """IPv6 that leaks decides on the relay, and IPv4 keeps its good verdict."""
    good = find("numgen-random").ruleset([POOL[Family.IPV4]], EXIT_INTERFACE)
    bad = find("persistent").ruleset([POOL[Family.IPV6]], EXIT_INTERFACE)
    for report in see(good + bad, visits(12, 2)):
        assert found(report) == ("predictable", "kernel_persistent"), report["why"]
        assert found(report, Family.IPV4) == ("unlinkable", None), report["families"]["ipv4"]["why"]
        assert found(report, Family.IPV6) == ("predictable", "kernel_persistent")


def test_an_exit_for_each_peer_alone(lab: Lab, see: Callable[..., Seen]) -> None:
    """A one-to-one map in no order that a function would give: the exit is the identity."""
    spread = random.Random(7)  # noqa: S311 - repeatable on purpose

    def pairs(family: Family) -> str:
        exits: list[Address] = list(islice(POOL[family].addresses(), PEERS))
        spread.shuffle(exits)
        return ", ".join(
            f"{peer.tunnel[family]} : {exit_}" for peer, exit_ in zip(lab.peers, exits, strict=True)
        )

    rules = "".join(
        chain(family, f"snat to {IP[family]} saddr map {{ {pairs(family)} }}") for family in Family
    )
    for report in see(rules, visits(6)):
        assert found(report) == ("exclusive", None), report["why"]
        for family in report["families"].values():
            assert family["peers_flagged"]["exclusive"] == PEERS
            assert family["anonymity_set"]["min"] == 1


def test_an_exit_for_each_session(see: Callable[..., Seen]) -> None:
    """An exit that is drawn for a peer and forgotten with its session is sticky for the session alone."""
    rules = ""
    for family in Family:
        pool = part(family, 0, 16)
        rules += chain(
            family,
            f"add @drawn {{ {IP[family]} saddr : numgen random mod {pool.size} }}",
            f"meta mark set {IP[family]} saddr map @drawn",
            f"snat to meta mark map {listed(pool)}",
            head=f"map drawn {{ type {family}_addr : mark; flags dynamic,timeout; timeout {GAP:g}s; "
            "size 4096; }",
        )
    planner = Planner(PEERS, DESTINATIONS)
    phases = [planner.visits(4) for _ in range(5)]
    for report in see(rules, phases, GAP + 1, [part(family, 0, 16) for family in Family]):
        assert found(report) == ("session_sticky", None), report["why"]
        for family in report["families"].values():
            assert family["findings"] == ["session_sticky"]
