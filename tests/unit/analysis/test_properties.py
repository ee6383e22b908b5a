# SPDX-License-Identifier: Apache-2.0
"""What must hold for any relay: names do not matter, halves add up, nobody hides behind a harmless peer."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detector.analysis.observation import Loss, Observation, PredictorTrials, Sandwiches, Trials
from detector.analysis.panes import panes_of
from detector.analysis.verdict import judge_family
from detector.base.family import Family
from detector.base.verdicts import VERDICTS, Verdict
from tools.simulated_relays import MAPPINGS, Relay, Traffic, merged, observe, traffic

NAMES = sorted(set(MAPPINGS) - {"one-to-one"})
few = settings(max_examples=40, deadline=None)


@st.composite
def relays(draw: st.DrawFn) -> tuple[Traffic, Relay]:
    """Traffic, and what a relay makes of it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    flows = traffic(
        rng,
        peers=draw(st.integers(2, 40)),
        flows=draw(st.integers(1, 40)),
        destinations=draw(st.sampled_from([4, 12, 1000])),
        ports=draw(st.sampled_from([0, 5])),
        sessions=draw(st.integers(1, 4)),
    )
    return flows, MAPPINGS[draw(st.sampled_from(NAMES))](rng, flows, draw(st.sampled_from([2, 11, 60])))


def permuted(trials: Trials, order: NDArray[np.intp]) -> Trials:
    """The same trials with the peers in another order."""
    expected = None if trials.expected is None else trials.expected[order]
    return Trials(trials.tried[order], trials.true[order], expected)


def relabelled(observation: Observation, rng: np.random.Generator) -> Observation:
    """The same relay with its peers, exits and rows in another order."""
    peers, exits = rng.permutation(observation.peers), rng.permutation(len(observation.exits))
    rows = rng.permutation(observation.peer.size)
    new_peer, new_exit = np.argsort(peers).astype(np.uint32), np.argsort(exits).astype(np.uint32)
    return replace(
        observation,
        exits=tuple(observation.exits[number] for number in exits),
        pool=observation.pool[exits],
        peer=new_peer[observation.peer[rows]],
        exit=new_exit[observation.exit[rows]],
        flows=observation.flows[rows],
        votes=observation.votes[rows],
        session_starts=observation.session_starts[rows],
        same_destination=permuted(observation.same_destination, peers),
        same_port=permuted(observation.same_port, peers),
        destination_predictor=permuted(observation.destination_predictor, peers),
        predicted={
            name: new_exit.astype(np.int32)[said[peers]] for name, said in observation.predicted.items()
        },
        class_votes=None if observation.class_votes is None else observation.class_votes[rows],
        vote_sandwiches=reordered(observation.vote_sandwiches, peers),
        return_sandwiches=reordered(observation.return_sandwiches, peers),
        lone_returns=None if observation.lone_returns is None else permuted(observation.lone_returns, peers),
        sessions=None if observation.sessions is None else observation.sessions[peers],
        panes=None
        if observation.panes is None
        else replace(
            observation.panes,
            exits=observation.panes.exits[:, exits],
            far_tried=observation.panes.far_tried[peers],
            far_same=observation.panes.far_same[peers],
        ),
    )


def reordered(one: Sandwiches | None, order: NDArray[np.intp]) -> Sandwiches | None:
    """The same sandwiches with the peers in another order."""
    if one is None:
        return None
    return Sandwiches(one.tried[order], one.both[order], one.mine[order], one.other[order])


@few
@given(relays(), st.integers(0, 2**32))
def test_names_of_peers_and_exits_do_not_matter(made: tuple[Traffic, Relay], seed: int) -> None:
    """The report is the same whatever order peers, exits and rows come in."""
    observation = observe(*made)
    other = relabelled(observation, np.random.default_rng(seed))
    assert judge_family(other).as_dict() == judge_family(observation).as_dict()


@few
@given(relays(), st.integers(0, 2**32))
def test_halves_add_up(made: tuple[Traffic, Relay], seed: int) -> None:
    """Counts that were taken apart and added again give the same report as the whole."""
    whole, rng = observe(*made), np.random.default_rng(seed)

    def part(counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return rng.binomial(counts, 0.5).astype(np.uint32)

    def taken(trials: Trials) -> Trials:
        true = part(trials.true)
        tried = true + part(trials.tried - trials.true)
        return Trials(tried, true, None if trials.expected is None else trials.expected / 4)

    def eaten(one: Sandwiches | None) -> Sandwiches | None:
        if one is None:
            return None
        both, mine, other = part(one.both), part(one.mine), part(one.other)
        rest = part(one.tried - one.both - one.mine - one.other)
        return Sandwiches(both + mine + other + rest, both, mine, other)

    assert whole.class_votes is not None and whole.lone_returns is not None
    by_class = part(whole.class_votes)
    half = replace(
        whole,
        class_votes=by_class,
        vote_sandwiches=eaten(whole.vote_sandwiches),
        return_sandwiches=eaten(whole.return_sandwiches),
        lone_returns=taken(whole.lone_returns),
        flows=part(whole.flows.astype(np.uint32)),
        votes=part(whole.votes),
        session_starts=part(whole.session_starts),
        same_destination=taken(whole.same_destination),
        same_port=taken(whole.same_port),
        destination_predictor=taken(whole.destination_predictor),
        loss=replace(whole.loss, seen=whole.loss.seen // 2),
    )

    def left(trials: Trials, taken: Trials) -> Trials:
        expected = None
        if trials.expected is not None and taken.expected is not None:
            expected = trials.expected - taken.expected
        return Trials(trials.tried - taken.tried, trials.true - taken.true, expected)

    def uneaten(one: Sandwiches | None, bite: Sandwiches | None) -> Sandwiches | None:
        if one is None or bite is None:
            return None
        return Sandwiches(
            one.tried - bite.tried, one.both - bite.both, one.mine - bite.mine, one.other - bite.other
        )

    assert half.lone_returns is not None
    rest = replace(
        whole,
        class_votes=whole.class_votes - by_class,
        vote_sandwiches=uneaten(whole.vote_sandwiches, half.vote_sandwiches),
        return_sandwiches=uneaten(whole.return_sandwiches, half.return_sandwiches),
        lone_returns=left(whole.lone_returns, half.lone_returns),
        flows=whole.flows - half.flows,
        votes=whole.votes - half.votes,
        session_starts=whole.session_starts - half.session_starts,
        same_destination=left(whole.same_destination, half.same_destination),
        same_port=left(whole.same_port, half.same_port),
        destination_predictor=left(whole.destination_predictor, half.destination_predictor),
        loss=replace(whole.loss, seen=whole.loss.seen - half.loss.seen),
    )
    assert judge_family(merged(half, rest)).as_dict() == judge_family(whole).as_dict()


@few
@given(
    st.sampled_from(
        ["persistent", "plain", "jhash", "jhash-seeded", "jhash-src-dst", "netmap", "half-jhash"]
    ),
    st.integers(1, 200),
    st.integers(0, 2**32),
)
def test_an_independent_peer_hides_nobody(mapping: str, flows: int, seed: int) -> None:
    """One more peer with random exits, quiet or busy, never makes a leaking relay look better."""
    rng = np.random.default_rng(seed)
    peers = 40
    each = np.append(np.full(peers, 24, np.intp), flows)
    all_flows = traffic(rng, peers + 1, each, destinations=12, sessions=3)
    made = MAPPINGS[mapping](rng, all_flows, 16)
    stranger = all_flows.peer == peers
    random_exit = rng.integers(0, 16, all_flows.peer.size)
    exits = np.where(stranger, random_exit, made.exit)
    with_it = observe(
        all_flows, replace(made, exit=exits, destination_hits=made.destination_hits & ~stranger)
    )
    rows = with_it.peer < peers
    without = replace(
        with_it,
        peer=with_it.peer[rows],
        exit=with_it.exit[rows],
        flows=with_it.flows[rows],
        votes=with_it.votes[rows],
        session_starts=with_it.session_starts[rows],
        class_votes=None if with_it.class_votes is None else with_it.class_votes[rows],
    )
    before, after = judge_family(without).verdict, judge_family(with_it).verdict
    assert before in VERDICTS[:4]
    assert VERDICTS.index(after) <= VERDICTS.index(before)


@few
@given(relays(), st.integers(0, 1000), st.integers(0, 1000))
def test_loss_never_looks_harmless(made: tuple[Traffic, Relay], lost: int, unattributed: int) -> None:
    """Losing flows can only turn a verdict into unknown."""
    whole = observe(*made)
    loss = replace(whole.loss, lost=lost, unattributed=unattributed)
    report = judge_family(replace(whole, loss=loss))
    assert report.verdict in {judge_family(whole).verdict, Verdict.UNKNOWN}


@st.composite
def counts(draw: st.DrawFn) -> Observation:
    """Any counts at all: no traffic would make most of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    peers, exits = draw(st.integers(0, 8)), draw(st.integers(0, 6))
    pools = draw(st.lists(st.sampled_from([1, 2, 6, 2**64]), max_size=20))
    pairs = rng.permutation(peers * exits)[: draw(st.integers(0, 48))]
    top = draw(st.sampled_from([1, 4, 600, 2**31]))

    def column(size: int) -> NDArray[np.uint32]:
        return rng.integers(0, top, size).astype(np.uint32)

    def trials() -> Trials:
        tried = column(peers)
        return Trials(tried, rng.binomial(tried, rng.random()).astype(np.uint32), rng.random(peers) * tried)

    def sandwiches(*shape: int) -> Sandwiches:
        kinds = rng.integers(0, top // 4 + 1, (*shape, 4)).astype(np.uint32)
        return Sandwiches(kinds.sum(-1, dtype=np.uint32), kinds[..., 0], kinds[..., 1], kinds[..., 2])

    def triples() -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        keys = rng.permutation(3 * peers * exits)[: draw(st.integers(0, 20))]
        pane, pair = keys // max(peers * exits, 1), keys % max(peers * exits, 1)
        return pane, pair // max(exits, 1), pair % max(exits, 1), column(keys.size).astype(np.float64)

    flows = column(pairs.size)
    return Observation(
        family=Family.IPV4,
        peers=peers,
        exits=tuple(IPv4Address(number) for number in range(exits)),
        pool=rng.integers(-1, len(pools), exits).astype(np.int32),
        pool_sizes=tuple(pools),
        peer=(pairs // max(exits, 1)).astype(np.uint32),
        exit=(pairs % max(exits, 1)).astype(np.uint32),
        flows=flows,
        votes=np.minimum(flows, column(pairs.size)),
        session_starts=np.minimum(flows, column(pairs.size)),
        same_destination=trials(),
        same_port=trials(),
        destination_predictor=trials(),
        predicted={
            "modulo": rng.integers(-1, max(exits, 1), (peers, len(pools))).astype(np.int32),
            "mine": rng.integers(-1, max(exits, 1), peers).astype(np.int32),
        },
        is_network=rng.random(peers) < 0.2,
        exclusive_map=bool(rng.random() < 0.3),
        loss=Loss(int(flows.sum())),
        class_votes=rng.integers(0, top, (pairs.size, 4)).astype(np.uint32),
        vote_sandwiches=sandwiches(peers, 4, 4),
        return_sandwiches=sandwiches(peers, 4),
        lone_returns=Trials(np.full((peers, 4), 3, np.uint32), np.full((peers, 4), 1, np.uint32)),
        untranslated_global=column(peers) * np.uint32(rng.random() < 0.1),
        untranslated_private=column(peers),
        untracked=column(peers),
        port_blocks=rng.integers(0, 2**63, peers).astype(np.uint64),
        predictor_trials=draw(st.sampled_from([None, (PredictorTrials("modulo", "", 9, 4, 0.1, 59),)])),
        panes=None if rng.random() < 0.5 else panes_of(*triples(), (3, peers, exits)),
        seconds=draw(st.sampled_from([None, 10.0, 1e5])),
    )


@settings(max_examples=200, deadline=None)
@given(counts())
def test_any_counts_give_a_report(observation: Observation) -> None:
    """Whatever is counted, the analysis ends in a report that JSON can hold, without a warning."""
    with np.errstate(all="raise", under="ignore"):
        said = json.dumps(judge_family(observation).as_dict(), allow_nan=False)
    assert json.loads(said)["verdict"] in VERDICTS


@few
@given(relays())
def test_the_figures_of_a_report_agree(made: tuple[Traffic, Relay]) -> None:
    """What is called unlinkable tells less than a bit and misses little; counts of peers fit together."""
    report = judge_family(observe(*made))
    if report.verdict is Verdict.UNLINKABLE:
        assert report.leak_bits < 1
        assert report.largest_missed <= 0.05
        assert not report.reasons
    assert (report.verdict is Verdict.UNKNOWN) == bool(report.reasons)
    assert 0 <= report.leak_bits <= np.log2(max(report.peers, 1)) + 1e-9
    assert 0 <= report.leaking_share <= 1
    assert report.judged <= report.peers
    assert sum(report.peers_by_verdict.values()) == report.peers
    assert all(count <= report.peers for count in report.peers_flagged.values())
    assert (report.predictor is not None) == (Verdict.PREDICTABLE in report.findings)
    assert set(report.suspected).isdisjoint(report.findings)
