# SPDX-License-Identifier: Apache-2.0
"""What is counted of a listing, against a count that goes flow by flow."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.analysis.observation import Observation
from detector.analysis.verdict import judge
from detector.base.family import Family, pack
from detector.base.flows import FlowClass, Lag
from detector.base.ranges import AddressRange
from detector.conntrack import evidence as evidence_module
from detector.conntrack import tally as tally_module
from detector.conntrack.forms import PLAIN
from detector.conntrack.peers import Peers
from detector.conntrack.reader import Lines, Reader
from detector.conntrack.source import blocks
from detector.conntrack.tally import Tally, Told
from detector.predictors.kernel_hash import kernel_exit
from detector.wireguard.model import AllowedIp
from tests.unit.conntrack.listings import FIRST, FIRST6, LAST, LAST6, Flow, entry, event, flows, text

GAP = 600.0
POOLS = Told(pools=[AddressRange(FIRST, LAST), AddressRange(FIRST6, LAST6)])
NOTHING = Told()


def counted(
    parts: Sequence[bytes], told: Told = POOLS, peers: Peers | None = None, **options: int
) -> list[Observation]:
    """The observations of a listing that comes in parts."""
    reader, tally = (
        Reader(PLAIN, Lines()),
        Tally(peers if peers is not None else Peers(), told, GAP, **options),
    )
    for part in parts:
        for block in blocks(iter([part])):
            read = reader.read(block)
            if read is not None:
                tally.add(read)
    return tally.observations(tally.mapping())


def one_by_one(made: Sequence[Flow]) -> dict[str, Counter[object]]:
    """The counts as bpf/contrasts.h makes them, one flow after the other."""
    counts: dict[str, Counter[object]] = {
        name: Counter() for name in ("flows", "votes", "session_starts", "trials")
    }
    destination: dict[object, object] = {}
    port: dict[object, object] = {}
    last: dict[object, float] = {}
    for flow in made:
        site, source = (flow.peer, flow.destination), (flow.peer, flow.port)
        pair = flow.peer, flow.exit
        counts["flows"][pair] += 1
        counts["session_starts"][pair] += flow.time - last.get(flow.peer, -1e9) > GAP
        counts["votes"][pair] += site not in destination and source not in port
        if site in destination and source not in port:
            counts["trials"]["same_destination", destination[site] == flow.exit] += 1
        if site not in destination and source in port:
            counts["trials"]["same_port", port[source] == flow.exit] += 1
        destination[site] = port[source] = flow.exit
        last[flow.peer] = flow.time
    return counts


def pairs(observation: Observation, peers: Peers, column: str) -> Counter[object]:
    """A column by (tunnel address, exit)."""
    found: Counter[object] = Counter()
    for peer, exit_, count in zip(
        observation.peer, observation.exit, getattr(observation, column), strict=True
    ):
        found[peers.allowed[peer].address, observation.exits[exit_]] += int(count)
    return found


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_counts_are_those_of_the_kernel_program(size: int) -> None:
    """Flows, votes, session session_starts and trials equal a count flow by flow, whatever the blocks."""
    made = flows(peers=5, each=60)
    lines = [event(flow) for flow in made]
    peers = Peers()
    parts = [text(lines[start : start + size]) for start in range(0, len(lines), size)]
    observation = counted(parts, peers=peers)[0]
    truth = one_by_one(made)
    for column in ("flows", "votes", "session_starts"):
        assert +pairs(observation, peers, column) == +truth[column]
    same, port = observation.same_destination, observation.same_port
    assert same.true.sum() == truth["trials"]["same_destination", True] > 0
    assert same.tried.sum() - same.true.sum() == truth["trials"]["same_destination", False]
    assert port.true.sum() == truth["trials"]["same_port", True]
    assert port.tried.sum() - port.true.sum() == truth["trials"]["same_port", False] > 0


@pytest.mark.parametrize("six", [False, True])
def test_the_destination_predictor_hits_every_vote(six: bool) -> None:
    """Of a range without `persistent`, each vote is tried and each trial hits; chance is one in the pool."""
    made = flows(six=six)
    observation = counted([text([event(flow) for flow in made])])[int(six)]
    trials = observation.destination_predictor
    assert trials.tried.sum() == observation.votes.sum() == trials.true.sum() > 0
    assert trials.expected is not None
    assert trials.expected.sum() == pytest.approx(trials.tried.sum() / 16)


def test_pools_are_guessed_without_rules() -> None:
    """A recording alone is enough to find the kernel's hash, where the exits fill their range."""
    for persistent, predictor in ((True, "kernel_persistent"), (False, "kernel_destination")):
        made = flows(peers=60, each=12, persistent=persistent)
        report = judge(counted([text([event(flow) for flow in made])], told=NOTHING))
        assert (report.verdict, report.predictor) == ("predictable", predictor)


def test_a_listing_has_no_sessions() -> None:
    """Entries without a time give votes but no session session_starts, and still a verdict."""
    made = flows(persistent=True, peers=30)
    observation = counted([text([entry(flow) for flow in made])])[0]
    assert observation.session_starts.sum() == 0 < observation.votes.sum()
    assert judge([observation]).predictor == "kernel_persistent"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**32))
def test_a_split_listing_gives_the_same_report(cut: int, seed: int) -> None:
    """Two files read one after the other count as the one that they were split from."""
    lines = [event(flow) for flow in flows(peers=8, each=12, seed=seed)]
    whole = judge(counted([text(lines)])).as_dict()
    assert judge(counted([text(lines[:cut]), text(lines[cut:])])).as_dict() == whole


def test_strangers_lower_the_coverage() -> None:
    """With a list of peers, a flow that left by a pool and is no peer's is unattributed, any other is not."""
    made = flows(peers=2)
    known = [AllowedIp(made[0].peer.packed, 32)]
    elsewhere = event(made[0]).replace(str(made[0].peer), "10.99.0.1").replace(str(made[0].exit), "192.0.2.1")
    observation = counted([text([*map(event, made), elsewhere])], peers=Peers(known))[0]
    mine = sum(flow.peer == made[0].peer for flow in made)
    assert (observation.loss.seen, observation.loss.unattributed) == (mine, len(made) - mine)


def test_the_longest_prefix_wins() -> None:
    """A network of a peer takes what no single address takes, and is counted, not judged."""
    network = AllowedIp(bytes([10, 64, 0, 0]), 24)
    single = AllowedIp(bytes([10, 64, 0, 1]), 32)
    made = flows(peers=3)
    observation = counted([text([event(flow) for flow in made])], peers=Peers([network, single]))[0]
    assert observation.is_network is not None
    assert observation.is_network.tolist() == [True, False]
    by_peer = np.bincount(observation.peer, observation.flows, 2).astype(int).tolist()
    assert by_peer[1] == sum(flow.peer.packed == single.network for flow in made)
    assert sum(by_peer) == len(made)


def test_a_full_memory_measures_a_sample_of_the_sites() -> None:
    """Nothing is lost when a memory is full: what is left is measured as a whole."""
    made = flows(peers=6, each=300)
    content = [
        text([event(flow) for flow in made[start : start + 100]]) for start in range(0, len(made), 100)
    ]
    whole, sample = counted(content)[0], counted(content, memory=200)[0]
    assert sample.loss.lost == 0
    assert sample.flows.sum() == len(made)
    assert 0 < sample.votes.sum() < whole.votes.sum()
    assert 0 < sample.same_destination.tried.sum() == sample.same_destination.true.sum()


def test_full_tables_are_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is counted as lost: the verdict becomes unknown, never harmless."""
    made = flows(persistent=True)
    content = [text([event(flow) for flow in made])]
    monkeypatch.setattr(tally_module, "MAX_EXITS", 3)
    some = counted(content)[0]
    assert np.unique(some.exit).size == 3
    assert some.loss.seen + some.loss.lost == len(made)
    monkeypatch.undo()
    few = counted(content, pairs=5)[0]
    assert len(few.peer) == 5
    assert few.loss.seen + few.loss.lost == len(made)


def test_only_the_first_flows_of_a_peer_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as many flows as the service measures in a window, flows are counted and no longer measured."""
    monkeypatch.setattr(evidence_module, "MEASURED", 3)
    made = flows(peers=2)
    lines = [event(flow) for flow in made]
    observation = counted([text(lines[:5]), text(lines[5:])])[0]
    trials = observation.same_destination.tried.sum() + observation.same_port.tried.sum()
    assert observation.votes.sum() + trials <= 6
    assert observation.votes.sum() > 0
    assert observation.flows.sum() == len(made)


def test_zones_are_part_of_the_hash() -> None:
    """The destination predictor takes the zone that the line tells."""
    made = flows(peers=4)
    zoned = [
        Flow(
            one.peer,
            one.destination,
            one.port,
            kernel_exit(one.peer, one.destination, FIRST, LAST, zone=7),
            one.time,
        )
        for one in made
    ]
    with_zone = counted([text([event(flow, zone=7) for flow in zoned])])[0].destination_predictor
    without = counted([text([event(flow) for flow in zoned])])[0].destination_predictor
    assert with_zone.true.sum() == with_zone.tried.sum()
    assert without.true.sum() < without.tried.sum() / 2


def test_families_are_apart() -> None:
    """A listing of both families gives an observation of each."""
    lines = [event(flow) for six in (False, True) for flow in flows(peers=3, six=six)]
    four, six = counted([text(lines)])
    assert (four.family, six.family) == (Family.IPV4, Family.IPV6)
    assert four.peers == six.peers == 3
    assert pack(six.exits[0])[:2] == b"\x20\x01"


LINES = [event(flow) for six in (False, True) for flow in flows(peers=2, each=4, six=six)]
WORDS = sorted({word for line in LINES for word in line.split(" ")})


@st.composite
def bent_lines(draw: st.DrawFn) -> str:
    """A line of conntrack of which one word is another."""
    words = draw(st.sampled_from(LINES)).split(" ")
    words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from([*WORDS, "", "zone=70000", "src="]))
    return " ".join(words)


@settings(max_examples=60, deadline=None)
@given(st.lists(bent_lines(), max_size=30), st.sampled_from([NOTHING, POOLS]), st.booleans())
def test_bent_lines_end_in_a_report(lines: list[str], told: Told, listed: bool) -> None:
    """Lines that are almost right are counted or not; each counted flow is in the report."""
    peers = Peers([AllowedIp(bytes([10, 64, 0, 1]), 32)]) if listed else Peers()
    observations = counted([text(lines)], told, peers)
    report = judge(observations)
    assert sum(one.flows for one in report.families.values()) == sum(one.flows.sum() for one in observations)
    assert all(one.loss.seen == one.flows.sum() for one in observations)


def test_many_ranges_cost_no_more() -> None:
    """Whether an exit is in a pool is looked up, also among thousands of ranges."""
    many = [AddressRange.of(FIRST + 2 * step) for step in range(3000)]
    made = flows(peers=2)
    observation = counted([text([event(flow) for flow in made])], Told(pools=many), Peers([]))[0]
    pooled = sum((int(flow.exit) - int(FIRST)) % 2 == 0 for flow in made)
    assert observation.loss.unattributed == pooled


def matched(made: Sequence[Flow]) -> dict[str, Counter[tuple[Any, ...]]]:
    """The matched trials as they are meant, flow by flow: all of one class, with distinct ports."""
    counts: dict[str, Counter[tuple[Any, ...]]] = {name: Counter() for name in ("votes", "returns", "lone")}
    here: dict[object, tuple[object, object]] = {}
    mine: dict[object, tuple[object, float, int]] = {}
    vote: dict[object, tuple[object, float, int]] = {}
    last_vote: tuple[object, object] | None = None
    session: Counter[object] = Counter()
    seen: dict[object, float] = {}
    for flow in made:
        if flow.time - seen.get(flow.peer, flow.time) > GAP:
            session[flow.peer] += 1
        seen[flow.peer] = flow.time
        place = flow.peer, flow.destination
        now = flow.exit, flow.time, session[flow.peer]
        if place in mine:
            exit_, time, number = mine[place]
            lag = lag_between(flow.time, session[flow.peer], time, number, made[0].time)
            other, whose = here[flow.destination]
            if whose == flow.peer:
                counts["lone"][lag, exit_ == flow.exit] += 1
            else:
                counts["returns"][lag, exit_ == flow.exit, other == flow.exit] += 1
        else:
            if flow.peer in vote and last_vote is not None and last_vote[1] != flow.peer:
                exit_, time, number = vote[flow.peer]
                lag = lag_between(flow.time, session[flow.peer], time, number, made[0].time)
                counts["votes"][lag, exit_ == flow.exit, last_vote[0] == flow.exit] += 1
            vote[flow.peer] = now
            last_vote = flow.exit, flow.peer
        mine[place] = now
        here[flow.destination] = flow.exit, flow.peer
    return counts


def lag_between(now: float, session: int, then: float, before: int, start: float) -> Lag:
    """How far two flows are apart."""
    if session != before:
        return Lag.SESSIONS
    if (now - start) // evidence_module.PANE != (then - start) // evidence_module.PANE:
        return Lag.PANES
    return Lag.DRAIN if now - then <= 10 else Lag.PANE


@pytest.mark.parametrize("size", [1, 13, 5000])
@pytest.mark.parametrize("seed", [1, 2])
def test_matched_trials_are_as_they_are_meant(size: int, seed: int) -> None:
    """Sandwiches by lag and outcome, and returns without a control, equal a count flow by flow."""
    draw = random.Random(seed)  # noqa: S311 - repeatable on purpose
    made: list[Flow] = []
    now = 1_700_000_000.0
    for number in range(700):
        now += draw.choice([2.0, 3.0, 40.0, 100.0]) if number % 150 else 2000.0
        peer = ip_address(f"10.64.0.{draw.randrange(1, 7)}")
        site = ip_address(f"198.51.{draw.randrange(2, 12)}.{draw.randrange(256)}")
        if number % 3 and made:
            site = draw.choice(made[-8:]).destination if number % 2 else draw.choice(made[-200:]).destination
        made.append(Flow(peer, site, 2000 + number, ip_address(f"203.0.113.{draw.randrange(68, 71)}"), now))
    lines = [event(flow) for flow in made]
    parts = [text(lines[start : start + size]) for start in range(0, len(lines), size)]
    observation = counted(parts)[0]
    truth = matched(made)
    votes, returns, lone = (
        observation.vote_sandwiches,
        observation.return_sandwiches,
        observation.lone_returns,
    )
    assert votes is not None
    assert returns is not None
    assert lone is not None
    assert {lag for name in ("votes", "returns", "lone") for lag, *_ in truth[name]} == set(Lag)
    for lag in Lag:
        for found, name in ((votes, "votes"), (returns, "returns")):
            pick = (slice(None), FlowClass.QUIC, lag) if name == "votes" else (slice(None), lag)
            by_outcome = {(True, True): found.both, (True, False): found.mine, (False, True): found.other}
            for outcome, column in by_outcome.items():
                assert column[pick].sum() == truth[name][(lag, *outcome)], (lag, name, outcome)
            assert found.tried[pick].sum() == sum(n for key, n in truth[name].items() if key[0] == lag)
        assert lone.true[:, lag].sum() == truth["lone"][lag, True]
        assert lone.tried[:, lag].sum() == truth["lone"][lag, True] + truth["lone"][lag, False]
    assert observation.class_votes is not None
    assert observation.class_votes[:, FlowClass.QUIC].sum() == observation.votes.sum()
    assert observation.sessions is not None
    assert observation.sessions.sum() == observation.session_starts.sum()


def test_flows_without_times_are_far_apart() -> None:
    """A listing tells no lag: its trials count as over panes, and no session begins."""
    observation = counted([text([entry(flow) for flow in flows(peers=4, each=60)])])[0]
    assert observation.vote_sandwiches is not None
    assert (
        observation.vote_sandwiches.tried[:, :, Lag.PANES].sum()
        == observation.vote_sandwiches.tried.sum()
        > 0
    )
    assert observation.sessions is not None
    assert not observation.sessions.any()


def test_votes_are_told_by_class() -> None:
    """DNS, HTTPS over UDP, TCP and the rest are told apart by the port that the peer chose."""
    ports = {53: FlowClass.DNS, 853: FlowClass.DNS, 443: FlowClass.QUIC, 123: FlowClass.OTHER}
    made = [
        Flow(FIRST, ip_address(f"198.51.100.{number}"), 700 + number, LAST, number) for number in range(4)
    ]
    lines = [
        event(flow).replace("dport=443", f"dport={port}", 1) for flow, port in zip(made, ports, strict=True)
    ]
    lines.append(entry(Flow(made[0].peer, ip_address("198.51.100.251"), 999, made[0].exit, 0)))
    observation = counted([text(lines)])[0]
    assert observation.class_votes is not None
    assert observation.class_votes.sum(axis=0).tolist() == [1, 1, 2, 1]


def test_changed_ports_fall_into_blocks() -> None:
    """The bit of each 1,024 ports that a translated port is in; a port that stays says nothing."""
    made = flows(peers=1, each=3)
    lines = [event(flow) for flow in made]
    for index, port in ((0, 1030), (1, 2047)):
        before, _, _ = lines[index].rpartition("dport=")
        lines[index] = f"{before}dport={port}"
    observation = counted([text(lines)])[0]
    assert observation.port_blocks is not None
    assert observation.port_blocks.tolist() == [0b10]


@pytest.mark.parametrize("listed", [True, False])
def test_untranslated_flows_are_counted_by_peer(listed: bool) -> None:
    """What leaves with the peer's own address, global or private; not what stays inside or at the relay."""
    made = flows(peers=2, each=6)
    peer, other = made[0].peer, next(flow.peer for flow in made if flow.peer != made[0].peer)
    plain = Flow(peer, ip_address("198.51.100.9"), 700, peer, 1)
    to_relay = Flow(peer, made[0].exit, 701, peer, 1)
    within = Flow(peer, other, 702, peer, 1)
    own6 = Flow(
        ip_address("2001:db8:7::1"), ip_address("2001:db8:51::9"), 703, ip_address("2001:db8:7::1"), 1
    )
    peers = Peers([AllowedIp(one.packed, 32) for one in (peer, other)] + [AllowedIp(own6.peer.packed, 128)])
    lines = [event(flow) for flow in [*made, plain, plain, to_relay, within, own6]]
    four, six = counted([text(lines)], peers=peers if listed else None)
    assert four.untranslated_private is not None
    assert sorted(four.untranslated_private.tolist()) == [0, 2]
    assert four.untranslated_global is not None
    assert not four.untranslated_global.any()
    assert six.untranslated_global is not None
    assert six.untranslated_global.tolist() == ([1] if listed else [])


def test_a_class_of_flows_into_a_private_network_is_no_exit() -> None:
    """A masquerade to the inside is left out, unless private networks are all there is."""
    made = flows(peers=4)
    inwards = [
        event(flow)
        .replace(f"src={flow.destination}", "src=10.64.200.5")
        .replace(str(flow.exit), "10.64.0.254")
        for flow in made[::3]
    ]
    four = counted([text([event(flow) for flow in made] + inwards)], told=NOTHING)[0]
    assert ip_address("10.64.0.254") not in four.exits
    assert four.loss.seen == len(made)
    assert counted([text(inwards)], told=NOTHING)[0].loss.seen == len(inwards)


def test_predictors_are_tried_by_rule() -> None:
    """One trial a person for each predictor; whose exit it names is told only where it holds."""
    observation = counted([text([event(flow) for flow in flows(peers=40, persistent=True)])])[0]
    by_name = {one.predictor: one for one in observation.predictor_trials or ()}
    held = by_name["kernel_persistent"]
    assert (held.tried, held.hit) == (40, 40)
    assert held.flagged is not None
    assert held.flagged.all()
    assert by_name["modulo"].flagged is None


def test_a_long_recording_tells_of_panes() -> None:
    """Votes that lie panes apart are compared; an hour of them has none that could be."""
    made = flows(peers=6, each=120, persistent=True)
    long = [replace(flow, time=flow.time * 4) for flow in made]
    hour, day = (counted([text([event(flow) for flow in some])])[0] for some in (made[:100], long))
    assert hour.panes is None
    assert day.panes is not None
    assert day.panes.exits.sum() == day.votes.sum()
    assert 0 < day.panes.far_tried.sum() == day.panes.far_same.sum()
    assert day.seconds == pytest.approx(max(flow.time for flow in long) - long[0].time, abs=4000)
