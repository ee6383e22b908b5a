# SPDX-License-Identifier: Apache-2.0
"""Each leak mode, simulated, gets its verdict; and what may not be called harmless is not."""

from __future__ import annotations

import functools
from dataclasses import replace
from ipaddress import IPv6Address

import numpy as np
import pytest

from detector.analysis.observation import Loss, Observation, Trials
from detector.analysis.report import FamilyReport
from detector.analysis.verdict import judge, judge_family
from detector.base.family import Family
from detector.base.verdicts import LEAKS, VERDICTS, ExclusiveKind, Reason, Verdict
from tools.simulated_relays import MAPPINGS, Chooser, beside, observe, partly, relay, skewed, traffic

# As in docs/leak-modes.md §3, 16 exits and 90 peers; source ports are fresh where no number of them is given.
SIGNATURES = [
    ("plain", 0, Verdict.PREDICTABLE, "kernel_destination"),
    ("plain-reused-ports", 6, Verdict.PREDICTABLE, "kernel_destination"),
    ("persistent", 0, Verdict.PREDICTABLE, "kernel_persistent"),
    ("persistent", 6, Verdict.PREDICTABLE, "kernel_persistent"),
    ("jhash", 0, Verdict.PINNED, None),
    ("jhash-seeded", 0, Verdict.PREDICTABLE, "seeded_jhash"),
    ("jhash-src-dst", 0, Verdict.DESTINATION_LINKED, None),
    ("jhash-src-port", 24, Verdict.UNLINKABLE, None),
    ("random", 0, Verdict.UNLINKABLE, None),
    ("numgen-inc", 0, Verdict.UNLINKABLE, None),
    ("masquerade", 0, Verdict.SINGLE_EXIT, None),
    ("netmap", 0, Verdict.PREDICTABLE, "netmap"),
    ("session", 0, Verdict.SESSION_STICKY, None),
    ("half-persistent", 0, Verdict.PREDICTABLE, "kernel_persistent"),
    ("half-jhash", 0, Verdict.PINNED, None),
]


def simulated(
    mapping: str | Chooser,
    peers: int = 90,
    pool_size: int = 16,
    flows: int = 24,
    destinations: int = 12,
    ports: int = 0,
    sessions: int = 3,
    seed: int = 1,
) -> Observation:
    """A relay with this mapping and steady traffic."""
    rng = np.random.default_rng(seed)
    chooser = MAPPINGS[mapping] if isinstance(mapping, str) else mapping
    return relay(rng, chooser, pool_size, traffic(rng, peers, flows, destinations, ports, sessions))


@pytest.mark.parametrize(("mapping", "ports", "verdict", "predictor"), SIGNATURES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_signature_gets_its_verdict(
    mapping: str, ports: int, verdict: Verdict, predictor: str | None, seed: int
) -> None:
    """Every row of the signature table, and mixtures and sessions, are told apart."""
    report = judge_family(simulated(mapping, ports=ports, flows=30, seed=seed))
    assert (report.verdict, report.predictor) == (verdict, predictor), report.why


def test_one_to_one_maps_are_exclusive() -> None:
    """With an exit for each peer the address is the identity, said by the rules or seen in the traffic."""
    observation = simulated("one-to-one", pool_size=90)
    for told in (True, False):
        report = judge_family(replace(observation, exclusive_map=told))
        assert report.verdict is Verdict.EXCLUSIVE
        assert report.peers_flagged[Verdict.EXCLUSIVE] == 90


def test_a_few_dedicated_exits_are_exclusive() -> None:
    """Six peers with exits of their own are found among a hundred that share a pool."""
    rng = np.random.default_rng(4)
    flows = traffic(rng, 100, 24, 12)
    shared = MAPPINGS["jhash"](rng, flows, 20)
    own = np.where(flows.peer < 6, 20 + flows.peer, shared.exit)
    observation = observe(flows, replace(shared, pool_size=26, exit=own))
    pool = np.r_[np.zeros(20), np.arange(1, 7)].astype(np.int32)
    report = judge_family(replace(observation, pool=pool, pool_sizes=(20, 1, 1, 1, 1, 1, 1)))
    assert Verdict.EXCLUSIVE in report.findings
    assert report.columns is not None
    assert (report.columns.verdict[:6] == VERDICTS.index(Verdict.EXCLUSIVE)).all()
    assert report.peers_flagged[Verdict.EXCLUSIVE] == 6
    assert report.exclusive_kinds == {ExclusiveKind.POOL: 6}


def test_five_peers_with_three_votes_are_enough() -> None:
    """Five peers, three flows each, a persistent pool of 60: predictable."""
    for seed in range(10):
        report = judge_family(
            simulated("persistent", peers=5, pool_size=60, flows=3, destinations=10**6, seed=seed)
        )
        assert (report.verdict, report.predictor) == (Verdict.PREDICTABLE, "kernel_persistent")


@pytest.mark.parametrize("peers", [1, 5, 90])
def test_two_votes_a_peer_are_unknown(peers: int) -> None:
    """Two votes say nothing of a peer, however many peers there are."""
    report = judge_family(simulated("persistent", peers=peers, flows=2, destinations=10**6))
    assert report.verdict is Verdict.UNKNOWN
    assert report.reasons == (Reason.TOO_FEW_VOTES,)


def test_lost_flows_take_harmless_verdicts_away() -> None:
    """Below the coverage floor no harmless verdict is given; a leak that was shown stands."""
    for mapping in ("persistent", "jhash", "random", "session", "masquerade"):
        observation = simulated(mapping, flows=30)
        whole = judge_family(observation)
        for loss in (Loss(100, lost=20), Loss(100, unattributed=20)):
            report = judge_family(replace(observation, loss=loss))
            assert report.coverage == pytest.approx(100 / 120)
            if whole.verdict in LEAKS:
                assert report.verdict is whole.verdict
            else:
                assert (report.verdict, report.reasons[0]) == (Verdict.UNKNOWN, Reason.COVERAGE)
            enough = judge_family(replace(observation, loss=Loss(95, lost=5)))
            assert enough.verdict is whole.verdict


def test_what_is_not_watched_is_unknown() -> None:
    """While nobody is watched no verdict is given, good or bad, and the reason says so."""
    for mapping in ("persistent", "random"):
        report = judge([simulated(mapping)], watching=False)
        family = report.families[Family.IPV4]
        assert report.verdict is Verdict.UNKNOWN
        assert family.reasons == (Reason.NOT_WATCHED,)
        assert (Verdict.PREDICTABLE in family.suspected) == (mapping == "persistent")
        assert "waits for WireGuard" in report.why


def test_unlinkable_needs_returns_to_a_destination() -> None:
    """Without a repeated destination nobody can say that a site does not see the same exit again."""
    report = judge_family(simulated("random", destinations=10**9))
    assert report.verdict is Verdict.UNKNOWN
    assert report.reasons == (Reason.DESTINATIONS_NOT_REPEATED,)
    assert report.consistency["same_destination"] is None


def test_networks_are_counted_and_not_judged() -> None:
    """A wide allowed-ip leaks nothing by itself: its flows count, its votes do not."""
    observation = simulated("persistent")
    report = judge_family(replace(observation, is_network=np.ones(90, bool)))
    assert report.verdict is Verdict.UNKNOWN
    assert (report.flows, report.peers, report.judged) == (90 * 24, 90, 0)


def test_nothing_seen_is_unknown() -> None:
    """A relay without any flow gets no verdict and no crash."""
    empty = observe(
        traffic(np.random.default_rng(0), 5, 0),
        MAPPINGS["random"](np.random.default_rng(0), traffic(np.random.default_rng(0), 5, 0), 8),
    )
    report = judge_family(empty)
    assert (report.verdict, report.reasons) == (Verdict.UNKNOWN, (Reason.NO_FLOWS,))
    assert report.anonymity_set is None
    assert judge([]).verdict is Verdict.UNKNOWN


def test_a_leak_of_one_pool_is_found_among_pools() -> None:
    """With a rule and a pool for each half of the peers, the half that leaks is found and its pool named."""
    harmless = simulated("random", pool_size=30)
    for leak in ("persistent", "jhash"):
        report = judge_family(beside(harmless, simulated(leak, pool_size=11, seed=2)))
        assert report.verdict is (Verdict.PREDICTABLE if leak == "persistent" else Verdict.PINNED)
        assert [pool.flagged > 0 for pool in report.pools] == [False, True]


def test_many_small_pools() -> None:
    """With more pools than are told apart, the leak is found still, and each pool has its own peers."""
    rng = np.random.default_rng(3)
    made = [relay(rng, MAPPINGS["jhash"], 4, traffic(rng, 10, 24, 12, sessions=3)) for _ in range(20)]
    report = judge_family(functools.reduce(beside, made))
    assert report.verdict is Verdict.PINNED
    assert [pool.peers for pool in report.pools] == [10] * 20


def test_quiet_peers_of_a_pinned_relay_add_no_finding() -> None:
    """Peers that visit one site only, beside pinned ones, do not make destinations look linked as well."""
    rng = np.random.default_rng(3)
    busy = traffic(rng, 60, 40, 12, sessions=3)
    one_site = (busy.peer >= 30) & (np.arange(busy.peer.size) > 60)
    flows = replace(busy, destination=np.where(one_site, 10**6, busy.destination))
    assert judge_family(relay(rng, MAPPINGS["jhash"], 16, flows)).findings == (Verdict.PINNED,)


def test_having_a_pool_is_no_leak() -> None:
    """Peers that keep to one of two pools by rule, with random exits inside, are not called pinned."""
    report = judge_family(beside(simulated("random", flows=200), simulated("random", flows=200, seed=2)))
    assert report.verdict is Verdict.UNLINKABLE


def test_a_tenth_of_the_peers_is_enough() -> None:
    """A relay where one peer in ten sits on a leaking rule leaks, and the report says how many."""
    report = judge_family(simulated(partly(0.1, MAPPINGS["jhash"]), peers=300, destinations=10**6))
    assert report.verdict is Verdict.PINNED
    assert 28 <= report.peers_flagged[Verdict.PINNED] <= 31
    assert report.leaking_share == pytest.approx(0.1, abs=0.02)


def test_huge_ipv6_pools() -> None:
    """A pool of 2^64 exits neither overflows nor makes random exits look like an identity."""
    for mapping, verdict in (("random", Verdict.UNLINKABLE), ("persistent", Verdict.PREDICTABLE)):
        observation = simulated(mapping, pool_size=50_000)
        report = judge_family(
            replace(
                observation,
                family=Family.IPV6,
                exits=tuple(IPv6Address(int(address)) for address in observation.exits),
                pool_sizes=(2**64,),
                destination_predictor=Trials(
                    observation.destination_predictor.tried,
                    observation.destination_predictor.true * np.uint32(0),
                    observation.destination_predictor.tried / 2**64,
                ),
            )
        )
        assert report.verdict is verdict, report.why
        assert report.leak_bits <= 64


def test_popular_exits_raise_no_alarm() -> None:
    """Exits drawn with very unequal weights, by peers with few and with many flows, are not called a leak."""
    for flows in (3, 6, 40):
        for seed in range(5):
            report = judge_family(simulated(skewed(1.2), peers=200, flows=flows, seed=seed))
            assert report.verdict in {Verdict.UNLINKABLE, Verdict.UNKNOWN}, report.why


def test_the_worst_family_decides() -> None:
    """The relay's verdict is the worst; unknown outweighs harmless where flows were seen, and only there."""
    good, bad = simulated("random"), replace(simulated("jhash"), family=Family.IPV6)
    idle = replace(simulated("random", peers=3, flows=0), family=Family.IPV6, loss=Loss())
    few = replace(simulated("random", peers=5, flows=6), family=Family.IPV6)
    assert judge([good, bad]).verdict is Verdict.PINNED
    assert judge([good, idle]).verdict is Verdict.UNLINKABLE
    assert judge([good, few]).verdict is Verdict.UNKNOWN
    assert judge([bad, replace(few, family=Family.IPV4)]).verdict is Verdict.PINNED


def test_reused_ports_do_not_hide_the_predictor() -> None:
    """With reused source ports the destination predictor explains every vote; the port contrast is 1."""
    report = judge_family(simulated("plain-reused-ports", ports=3, flows=12))
    assert report.explained["kernel_destination"].ratio == 1
    assert report.consistency["same_port"] == pytest.approx(1)


def test_every_peer_has_its_own_verdict() -> None:
    """The columns for single peers agree with the report: the leaking half is told from the other."""
    report = judge_family(simulated("half-jhash"))
    assert report.columns is not None
    verdicts = np.array(VERDICTS)[report.columns.verdict]
    assert (verdicts[:45] == Verdict.PINNED).mean() > 0.95
    assert (verdicts[45:] == Verdict.PINNED).mean() < 0.05
    assert report.peers_by_verdict[Verdict.PINNED] == (verdicts == Verdict.PINNED).sum()


def reports() -> list[FamilyReport]:
    """A report of each verdict."""
    found = [judge_family(simulated(name, flows=30)) for name in MAPPINGS if name != "one-to-one"]
    return [
        *found,
        judge_family(simulated("one-to-one", pool_size=90)),
        judge_family(simulated("random", flows=2)),
    ]


def test_every_verdict_is_explained() -> None:
    """Each verdict has its paragraph, which ends in what would change it."""
    written = {report.verdict: report.why for report in reports()}
    assert set(written) == set(VERDICTS)
    for why in written.values():
        assert len(why.split()) > 25
        assert why.endswith(".")
        assert "nan" not in why
