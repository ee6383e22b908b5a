# SPDX-License-Identifier: Apache-2.0
"""What is counted of a listing, against a count that goes flow by flow."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.analysis.observation import Observation
from detector.analysis.verdict import judge
from detector.base.family import Family, pack
from detector.base.ranges import AddressRange
from detector.conntrack import tally as tally_module
from detector.conntrack.lines import Reader, blocks
from detector.conntrack.peers import Peers
from detector.conntrack.tally import Tally
from detector.nat.mapping import Mapping, mapping_of
from detector.nat.model import RuleSet
from detector.predictors.kernel_hash import kernel_exit
from detector.wireguard.model import AllowedIp
from tests.unit.conntrack.listings import FIRST, FIRST6, LAST, LAST6, Flow, entry, event, flows, text

GAP = 600.0
MAPPING = mapping_of(RuleSet(), [AddressRange(FIRST, LAST), AddressRange(FIRST6, LAST6)])


def counted(
    parts: Sequence[bytes], mapping: Mapping | None = MAPPING, peers: Peers | None = None, **options: int
) -> list[Observation]:
    """The observations of a listing that comes in parts."""
    reader, tally = Reader(), Tally(peers if peers is not None else Peers(), mapping, GAP, **options)  # type: ignore[arg-type]
    for part in parts:
        for block in blocks(io.BytesIO(part)):
            read = reader.read(block)
            if read is not None:
                tally.add(read)
    return tally.observations()


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
        report = judge(counted([text([event(flow) for flow in made])], mapping=None))
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


def test_full_memories_and_tables_are_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is counted as lost: the verdict becomes unknown, never harmless."""
    made = flows(persistent=True)
    content = [text([event(flow) for flow in made])]
    full = counted(content, memory=20)[0]
    assert full.loss.seen == len(made)
    assert full.loss.lost > 100
    assert judge([full]).verdict == "unknown"
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
    monkeypatch.setattr(tally_module, "MEASURED", 3)
    made = flows(peers=2)
    lines = [event(flow) for flow in made]
    observation = counted([text(lines[:5]), text(lines[5:])])[0]
    trials = observation.same_destination.tried.sum() + observation.same_port.tried.sum()
    assert observation.votes.sum() + trials <= 6
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
@given(st.lists(bent_lines(), max_size=30), st.sampled_from([None, MAPPING]), st.booleans())
def test_bent_lines_end_in_a_report(lines: list[str], mapping: Mapping | None, listed: bool) -> None:
    """Lines that are almost right are counted or not; each counted flow is in the report."""
    peers = Peers([AllowedIp(bytes([10, 64, 0, 1]), 32)]) if listed else Peers()
    observations = counted([text(lines)], mapping, peers)
    report = judge(observations)
    assert sum(one.flows for one in report.families.values()) == sum(one.flows.sum() for one in observations)
    assert all(one.loss.seen == one.flows.sum() for one in observations)


def test_many_ranges_cost_no_more() -> None:
    """Whether an exit is in a pool is looked up, also among thousands of ranges."""
    many = [AddressRange.of(FIRST + 2 * step) for step in range(3000)]
    made = flows(peers=2)
    observation = counted([text([event(flow) for flow in made])], mapping_of(RuleSet(), many), Peers([]))[0]
    pooled = sum((int(flow.exit) - int(FIRST)) % 2 == 0 for flow in made)
    assert observation.loss.unattributed == pooled
