# SPDX-License-Identifier: Apache-2.0
"""Relays that can really exist, each of a kind that is easily judged wrong: what is said of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest

from detector.analysis.columns import Index
from detector.analysis.observation import Loss, Observation, PredictorTrials
from detector.analysis.report import FamilyReport
from detector.analysis.verdict import judge, judge_family
from detector.base.family import Family
from detector.base.flows import FlowClass
from detector.base.verdicts import LEAKS, VERDICTS, ExclusiveKind, Reason, Verdict
from tools.realistic_relays import (
    BRIEF,
    EVERYBODYS,
    INDEPENDENT,
    Exits,
    People,
    by,
    counted,
    day,
    independent,
    of_class,
    part,
    peer,
    people,
    persistent,
    since,
)
from tools.realistic_relays import (
    LEAKS as LEAKING,
)
from tools.simulated_relays import MAPPINGS, Relay, Traffic, beside, observe, relay, traffic

SIZES = (8, 59)


def seen(exits: Exits, peers: int = 150, size: int = 8, seed: int = 1, **given: float) -> Observation:
    """What is counted in a day of such a relay."""
    rng = np.random.default_rng([seed, size])
    of, chosen = day(rng, exits, peers, size, **given)
    return counted(rng, of, chosen, size)


def said(exits: Exits, peers: int = 150, size: int = 8, seed: int = 1, **given: float) -> FamilyReport:
    """And what is said of it."""
    return judge_family(seen(exits, peers, size, seed, **given))


def steady(mapping: str = "random", peers: int = 60, size: int = 16, seed: int = 1) -> Observation:
    """Simple traffic in three sessions, hours apart."""
    rng = np.random.default_rng(seed)
    return relay(rng, MAPPINGS[mapping], size, traffic(rng, peers, 36, 18, sessions=3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*INDEPENDENT, *EVERYBODYS, *BRIEF])
def test_what_everybody_shares_is_no_leak(name: str, size: int) -> None:
    """Site, clock, failover, page, a short stickiness: never a leak."""
    exits = {**INDEPENDENT, **EVERYBODYS, **BRIEF}[name]
    for seed in (1, 2):
        assert said(exits, size=size, seed=seed).verdict not in LEAKS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LEAKING)
def test_leaks_are_found(name: str, size: int) -> None:
    """All peers or a tenth, all flows or a class, by a secret or without one."""
    exits, wanted = LEAKING[name]
    report = said(exits, 200, size)
    assert report.verdict in wanted, report.why


@pytest.mark.parametrize("name", ["a draw for each flow", "round robin", "the site decides"])
def test_harmless_relays_are_called_so_within_a_day(name: str) -> None:
    """And the bound is said."""
    report = said({**INDEPENDENT, **EVERYBODYS}[name], 60, 59, median=40.0)
    assert report.verdict is Verdict.UNLINKABLE, report.why
    assert report.largest_missed <= 0.05
    assert "A leak of more than" in report.why


def test_an_address_of_ones_own_that_leaves_is_exclusive() -> None:
    """A global address that nothing translates is the identity, whatever the other flows do."""
    clean = steady()
    own = np.zeros(60, np.uint32)
    own[:4] = 30
    for observation in (
        replace(clean, untranslated_global=own),
        replace(steady("masquerade"), untranslated_global=own),
        replace(clean, untranslated_global=own, loss=Loss(10, lost=90)),
    ):
        report = judge_family(observation)
        assert report.verdict is Verdict.EXCLUSIVE
        assert report.exclusive_kinds == {ExclusiveKind.UNTRANSLATED: 4}
        assert "not translated" in report.why
    assert judge_family(clean).verdict is Verdict.UNLINKABLE


def test_who_is_never_translated_counts_as_a_person() -> None:
    """Shares and bits are of everybody who has flows, and not of those alone whom a rule translates."""
    clean = steady()
    for moved, told in ((4, np.log2(60) * 4 / 60), (60, np.log2(60))):
        kept = np.asarray(clean.peer) >= moved
        own = np.zeros(60, np.uint32)
        own[:moved] = 30
        translated = replace(
            clean,
            flows=np.where(kept, clean.flows, 0),
            votes=np.where(kept, clean.votes, 0),
            session_starts=np.where(kept, clean.session_starts, 0),
        )
        report = judge_family(replace(translated, untranslated_global=own))
        assert report.verdict is Verdict.EXCLUSIVE
        assert f"{moved} of 60 peers have something" in report.why
        assert report.leak_bits == pytest.approx(told)


def test_private_flows_that_leave_take_the_harmless_verdict() -> None:
    """Above a twentieth of the flows, with the number of flows and peers; likewise what conntrack misses."""
    clean = steady()
    flows = int(clean.flows.sum())
    for name, reason in (("untranslated_private", Reason.UNTRANSLATED), ("untracked", Reason.UNTRACKED)):
        for share, verdict in ((0.04, Verdict.UNLINKABLE), (0.07, Verdict.UNKNOWN)):
            left = np.zeros(60, np.uint32)
            left[:2] = round(share * flows / 2)
            changed = (
                replace(clean, untracked=left)
                if name == "untracked"
                else replace(clean, untranslated_private=left)
            )
            report = judge_family(changed)
            assert report.verdict is verdict
            assert (reason in report.reasons) == (verdict is Verdict.UNKNOWN)
            assert f"{2 * round(share * flows / 2):,} flows of 2 peers" in report.why


def test_sessions_that_begin_otherwise_hide_no_pinning() -> None:
    """TCP is pinned, lookups and QUIC are drawn, and each session begins with a lookup."""
    report = said(of_class(FlowClass.TCP, by(peer)), size=16)
    assert report.verdict is Verdict.PINNED
    assert report.flow_class == "tcp"


@pytest.mark.parametrize("flow_class", [FlowClass.TCP, FlowClass.QUIC])
def test_a_class_that_leaks_is_named(flow_class: FlowClass) -> None:
    """A fifth of the flows is enough."""
    report = said(of_class(flow_class, by(peer)), 200, 59)
    assert (report.verdict, report.flow_class) == (Verdict.PINNED, flow_class.name.lower())
    assert said(by(peer), 200, 59).flow_class is None


def test_a_silent_change_shows_within_three_panes_both_ways() -> None:
    """It breaks: no harmless verdict any more. It is mended: the old leak is not held against it."""
    for begin in (20 * 3600.0, 22 * 3600.0):
        broken = said(since(begin, by(peer), independent), median=60.0)
        assert broken.verdict in LEAKS or Reason.SILENT_CHANGE in broken.reasons
        mended = said(since(begin, independent, by(peer)), median=60.0)
        assert (mended.verdict, mended.reasons[0]) == (Verdict.UNKNOWN, Reason.SILENT_CHANGE)
        assert Verdict.PINNED in mended.suspected


def pools(sizes: tuple[int, ...], peers: tuple[int, ...], mapping: str = "random") -> Observation:
    """A relay whose rules give each group of peers a pool of its own."""
    rng = np.random.default_rng(4)
    parts = [
        relay(rng, MAPPINGS[mapping], size, traffic(rng, count, 30, 15, sessions=3))
        for size, count in zip(sizes, peers, strict=True)
    ]
    whole = parts[0]
    for one in parts[1:]:
        whole = beside(whole, one)
    return whole


def test_a_pool_of_ones_own_is_exclusive() -> None:
    """Two or four exits that one customer alone gets are as good as one; a pool that five share is not."""
    for size in (1, 2, 4):
        report = judge_family(pools((59, size, size), (50, 1, 1)))
        assert report.verdict is Verdict.EXCLUSIVE, report.why
        assert report.exclusive_kinds == {ExclusiveKind.POOL: 2}
    assert judge_family(pools((59, 4), (50, 4))).verdict is Verdict.EXCLUSIVE
    assert judge_family(pools((59, 4), (50, 5))).verdict is not Verdict.EXCLUSIVE
    assert judge_family(pools((59,), (3,))).verdict is not Verdict.EXCLUSIVE


@pytest.mark.parametrize("groups", [16, 17, 30])
def test_the_seventeenth_pool_is_as_the_sixteenth(groups: int) -> None:
    """Many pools with random exits leak nothing; many pools with pinned peers do."""
    harmless = judge_family(pools((4,) * groups, (10,) * groups))
    assert harmless.verdict not in LEAKS, harmless.why
    assert judge_family(pools((4,) * groups, (10,) * groups, "jhash")).verdict is Verdict.PINNED


def test_groups_with_one_exit_each_say_nothing() -> None:
    """Two interfaces, one exit each, shared by many."""
    assert judge_family(pools((1, 1), (40, 40))).verdict not in LEAKS


def test_a_prefix_of_ones_own_is_an_identity() -> None:
    """A new address of its own /64 for each flow."""
    rng = np.random.default_rng(2)
    flows = traffic(rng, 40, 24, 12, sessions=3)
    base = int(IPv6Address("2001:db8::"))
    fresh = np.arange(flows.peer.size)
    observation = observe(flows, Relay(flows.peer.size, fresh, np.zeros(flows.peer.size, bool)))
    exits = tuple(IPv6Address(base + (int(who) << 64) + n + 1) for n, who in enumerate(flows.peer))
    for sizes, pool in (((), -1), ((2**96,), 0)):
        six = replace(
            observation,
            family=Family.IPV6,
            exits=exits,
            pool=np.full(len(exits), pool, np.int32),
            pool_sizes=sizes,
        )
        report = judge_family(six)
        assert report.verdict is Verdict.EXCLUSIVE, report.why
        assert report.exclusive_kinds == {ExclusiveKind.PREFIX: 40}
        assert report.prefix == 64
        assert report.leak_bits > 5


@pytest.mark.parametrize(("size", "block"), [(256, 16), (1024, 32)])
def test_blocks_of_exits_are_found(size: int, block: int) -> None:
    """Each peer draws from a block, of which there are many: linkable by the block."""

    def blocks(rng: np.random.Generator, of: People, pool: int) -> Index:
        flows = of.traffic
        own = rng.integers(0, pool // block, flows.peers)
        drawn: Index = own[flows.peer] * block + rng.integers(0, block, flows.peer.size)
        return drawn

    report = said(blocks, 300, size)
    assert report.verdict is Verdict.PINNED, report.why
    assert report.prefix is not None and report.leak_bits > 1
    assert said(independent, 300, size).verdict is Verdict.UNLINKABLE


def test_a_stay_is_no_person() -> None:
    """Predictors are tried once a person: a phone that comes back all day is one trial, and one of two."""
    clean = replace(steady("jhash"), predicted={})
    for hit, verdict in ((2, Verdict.PINNED), (60, Verdict.PREDICTABLE)):
        trial = PredictorTrials("modulo", "a rule", 60, hit, 1 / 16, 59)
        assert judge_family(replace(clean, predictor_trials=(trial,))).verdict is verdict


def test_sticky_is_not_pinned_before_a_second_session() -> None:
    """One session: unknown, sticky so far; then what the next ones say. A rule that says so need not wait."""
    rng = np.random.default_rng(5)
    for mapping in ("jhash", "session"):
        one = relay(rng, MAPPINGS[mapping], 16, traffic(rng, 60, 24, 12))
        report = judge_family(one)
        assert (report.verdict, report.reasons[0]) == (Verdict.UNKNOWN, Reason.STICKY_SO_FAR)
    told = judge_family(replace(one, rules_say=frozenset({Verdict.PINNED})))
    assert told.verdict is Verdict.PINNED
    assert judge_family(steady("jhash")).verdict is Verdict.PINNED
    assert judge_family(steady("session")).verdict is Verdict.SESSION_STICKY


def test_uneven_exits_leave_some_alone() -> None:
    """Pinned over exits 1:50 uneven: a few are alone on a rare exit, as chance has it."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        weights = rng.lognormal(0, 1, 59)
        home = rng.choice(59, 300, p=weights / weights.sum())
        report = said(lambda _, of, __, own=home: own[of.traffic.peer], 300, 59, seed)  # type: ignore[misc]
        assert report.verdict is Verdict.PINNED, report.why


def test_an_exit_of_ones_own_where_all_have_one() -> None:
    """One to one is more than chance; where the pool is not known, nobody can tell what chance is."""
    own = steady("one-to-one", 60, 60)
    assert judge_family(own).verdict is Verdict.EXCLUSIVE
    unknown = replace(own, pool=np.full(60, -1, np.int32), pool_sizes=())
    assert judge_family(unknown).verdict is Verdict.PINNED


def test_first_flows_that_are_lookups_hide_nothing() -> None:
    """Budgets are by class: sixty lookups at the start leave room for the rest."""
    report = said(by(peer), 100, 16, dns=0.7, one_address=0.1, median=80.0)
    assert report.verdict is Verdict.PINNED
    report = said(persistent, 100, 16, dns=0.7, one_address=0.1, median=80.0)
    assert report.verdict is Verdict.PREDICTABLE


def chosen_by_one(flows: int = 60) -> Observation:
    """Forty peers with random exits, and one who repeats what fits: always the same exit."""
    rng = np.random.default_rng(7)
    made = traffic(rng, 41, np.append(np.full(40, 30), flows), 15, sessions=3)
    exits = np.where(made.peer == 40, 3, rng.integers(0, 16, made.peer.size))
    hits = np.where(made.peer == 40, True, rng.random(made.peer.size) < 1 / 16)
    return observe(made, Relay(16, exits, hits))


def test_one_peer_does_not_turn_the_relay() -> None:
    """Its chosen flows make it stand out, and nothing else; nothing harmless is said of it."""
    report = judge_family(chosen_by_one())
    assert report.verdict is Verdict.UNLINKABLE, report.why
    assert report.stand_out[Verdict.PINNED] == 1
    assert report.columns is not None
    assert VERDICTS[report.columns.verdict[40]] is Verdict.PINNED
    assert "Peers stand out" in report.why and "nothing harmless is said of them" in report.why


def test_three_peers_do() -> None:
    """Two of sixty stand out; three are a finding."""
    for leaking, verdict in ((2, Verdict.UNLINKABLE), (3, Verdict.PINNED)):
        rng = np.random.default_rng(9)
        flows = traffic(rng, 60, 40, 20, sessions=3)
        exits = np.where(flows.peer < leaking, flows.peer, rng.integers(0, 16, flows.peer.size))
        report = judge_family(observe(flows, Relay(16, exits, rng.random(exits.size) < 1 / 16)))
        assert report.verdict is verdict, report.why
        assert report.stand_out == ({Verdict.PINNED: 2} if leaking == 2 else {})


def test_next_to_nothing_does_not_decide() -> None:
    """A family with next to no flows of a handful of peers is named beside it; a leak decides still."""
    good = said(independent, 200, 8)
    whole = seen(independent, 200, 8)
    few = replace(steady(peers=4), family=Family.IPV6, exits=(IPv6Address(1),) * 16)
    silent = replace(few, votes=few.votes * np.uint32(0), class_votes=None)
    small = replace(silent, flows=np.minimum(few.flows, 1))
    assert good.verdict is Verdict.UNLINKABLE
    report = judge([whole, small])
    assert report.verdict is Verdict.UNLINKABLE
    assert "Beside it, ipv6" in report.why
    more = replace(silent, flows=few.flows * np.uint32(900))
    assert judge([whole, more]).verdict is Verdict.UNKNOWN
    own = np.array([9, 0, 0, 0], np.uint32)
    assert judge([whole, replace(small, untranslated_global=own)]).verdict is Verdict.EXCLUSIVE


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_bits_are_mutual_information(share: float) -> None:
    """Against the sum over all pairs of exits, written out."""
    size = 59
    both = np.full((size, size), (1 - share) / size**2)
    both[np.diag_indices(size)] += share / size
    truth = float((both * np.log2(both * size**2, where=both > 0, out=np.zeros_like(both))).sum())
    report = said(part(share, by(peer)), 400, size, median=40.0)
    assert report.leak_bits == pytest.approx(truth, abs=0.06 + 0.05 * truth)


def test_port_blocks_of_ones_own() -> None:
    """Where nearly everybody's ports stay in a block that nobody else on the exit has."""
    clean = steady()
    blocks = np.uint64(1) << np.arange(60, dtype=np.uint64)
    report = judge_family(replace(clean, port_blocks=blocks))
    assert (report.verdict, report.exclusive_kinds) == (Verdict.EXCLUSIVE, {ExclusiveKind.PORT_BLOCK: 60})
    for harmless in (
        np.full(60, 2**10, np.uint64),  # one range for everybody
        np.full(60, 2**64 - 1, np.uint64),  # random ports
        np.where(np.arange(60) < 40, blocks, np.uint64(0)),  # ports that collide now and then
    ):
        assert judge_family(replace(clean, port_blocks=harmless)).verdict is Verdict.UNLINKABLE


def test_the_day_is_as_it_was_made() -> None:
    """The generator's own figures: heavy tails, one resolver, sessions that a pause ends."""
    of = people(np.random.default_rng(3), 500)
    flows: Traffic = of.traffic
    count = np.bincount(flows.peer, minlength=500)
    assert (np.diff(flows.times) >= 0).all()
    assert count.max() > 20 * np.median(count)
    assert 0.2 < np.mean(flows.destination == 0) < 0.4
    assert len(set(of.tunnels)) == 500
    assert isinstance(of.tunnels[0], IPv4Address)
