# SPDX-License-Identifier: Apache-2.0
"""What is said of single peers agrees with a slow and simple reading of the same counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detector.base.errors import UsageError
from detector.base.verdicts import VERDICTS, Verdict
from detector.config.model import Config
from detector.publish.inspect.handlers import handlers
from detector.publish.peers import SORTS, PeerView, explain, rank, summaries
from detector.publish.snapshot import About, Snapshot
from tools.bench.oncall import snapshot_of

PEERS = 80


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    """A relay where every tenth peer keeps its exit."""
    return snapshot_of(PEERS, votes=8)


def listed(
    views: Sequence[PeerView], sort: str, limit: int = 1000, verdict: Verdict | None = None
) -> list[dict[str, Any]]:
    """The peers in an order."""
    return summaries(views, rank(views, sort, verdict, limit), limit)


def flows_of(view: PeerView, peer: int) -> Counter[str]:
    """Flows by exit, read pair by pair."""
    one = view.observation
    pairs = zip(one.peer, one.exit, one.flows, strict=True)
    return Counter({str(one.exits[exit_]): int(flows) for who, exit_, flows in pairs if who == peer})


def test_every_peer_has_its_own_numbers(snapshot: Snapshot) -> None:
    """Flows, busiest exit, its share and the verdict of each peer are those of its pairs."""
    for view in snapshot.peers:
        rows = {row["pseudonym"]: row for row in listed([view], "risk")}
        assert len(rows) == PEERS
        for peer in range(PEERS):
            row, flows = rows[view.name(peer)], flows_of(view, peer)
            assert row["flows"] == flows.total()
            assert flows[row["exit"]] == max(flows.values())
            assert row["exit_share"] == pytest.approx(max(flows.values()) / flows.total(), abs=1e-4)
            assert row["verdict"] == VERDICTS[view.columns.verdict[peer]]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [1, 7, 500])
def test_a_limit_takes_the_first_of_all(snapshot: Snapshot, sort: str, limit: int) -> None:
    """The first few are the first of the whole order, in each order."""
    key = {"risk": "verdict", "evidence": "log10_e"}.get(sort, sort)
    everyone = [row[key] for row in listed(snapshot.peers, sort)]
    first = [row[key] for row in listed(snapshot.peers, sort, limit)]
    assert len(everyone) == 2 * PEERS
    assert first == everyone[:limit]


def test_orders_are_orders(snapshot: Snapshot) -> None:
    """The worst verdict comes first, the most flows, and the fewest peers on an exit."""
    risk = [VERDICTS.index(row["verdict"]) for row in listed(snapshot.peers, "risk")]
    flows = [row["flows"] for row in listed(snapshot.peers, "flows")]
    sharing = [row["peers_on_exit"] for row in listed(snapshot.peers, "peers_on_exit")]
    assert risk == sorted(risk)
    assert flows == sorted(flows, reverse=True)
    assert sharing == sorted(sharing)


def test_a_filter_keeps_all_that_match(snapshot: Snapshot) -> None:
    """Every tenth peer is pinned in both families, and nobody else is listed."""
    ranking = rank(snapshot.peers, "risk", Verdict.PINNED, 1000)
    assert (ranking.seen, ranking.matching) == (2 * PEERS, 2 * PEERS // 10)
    assert Counter(
        int(row["pseudonym"][-8:]) % 10 for row in listed(snapshot.peers, "risk", verdict=Verdict.PINNED)
    ) == {7: 2 * PEERS // 10}


def test_one_peer_in_both_families(snapshot: Snapshot) -> None:
    """A pseudonym finds its tunnel address in each family, with all exits, the busiest first."""
    found = explain(snapshot.peers, "peer-00000012")
    assert [one["family"] for one in found] == ["ipv4", "ipv6"]
    for view, one in zip(snapshot.peers, found, strict=True):
        assert {exit_["exit"]: exit_["flows"] for exit_ in one["exits"]} == flows_of(view, 12)
        counts = [exit_["flows"] for exit_ in one["exits"]]
        assert counts == sorted(counts, reverse=True)
        assert one["contrasts"]["same_destination"] == {
            "observed": 0.0,
            "tried": 8,
            "chance": pytest.approx(view.report.contrasts["same_destination"].chance, abs=1e-4),
        }


def test_nobody_is_found_by_what_is_no_pseudonym(snapshot: Snapshot) -> None:
    """Neither a part of one nor a text that none can be finds anybody."""
    for text in ("peer-0000001", "peer-000000120", "ö", "\0", " "):
        assert explain(snapshot.peers, text) == []


def test_a_peer_without_flows_is_explained_and_not_listed(snapshot: Snapshot) -> None:
    """It is on the relay and has a pseudonym, but there is nothing to sort it by."""
    view = snapshot.peers[0]
    idle = np.zeros(PEERS)
    columns = type(view.columns)(
        verdict=np.full(PEERS, VERDICTS.index(Verdict.UNKNOWN), np.int8),
        flows=idle,
        votes=idle,
        consistency=np.full(PEERS, np.nan),
        same_destination=np.full(PEERS, np.nan),
        log_e=np.full(PEERS, -np.inf),
        exit=np.full(PEERS, -1),
        anonymity=idle,
    )
    quiet = PeerView(view.observed, view.report, columns, view.names, np.zeros(PEERS, np.bool_))
    assert listed([quiet], "risk") == []
    (one,) = explain([quiet], "peer-00000003")
    assert (one["exit"], one["present"], one["consistency"], one["log10_e"]) == (None, False, None, None)


@pytest.mark.parametrize(
    ("request_", "arguments", "said"),
    [
        ("peers", {"sort": "name"}, "sort is none of risk, flows"),
        ("peers", {"verdict": "bad"}, "verdict is none of predictable"),
        ("peers", {"family": ["ipv4"]}, "family is none of ipv4, ipv6"),
        ("peers", {"limit": 0}, "limit is no number"),
        ("peers", {"limit": 1001}, "limit is no number"),
        ("peers", {"limit": True}, "limit is no number"),
        ("peers", {"limit": "20"}, "limit is no number"),
        ("explain", {}, "pseudonym is missing"),
        ("explain", {"pseudonym": "x" * 65}, "pseudonym is missing"),
        ("explain", {"pseudonym": "peer-nobody"}, "no peer has this pseudonym now"),
    ],
)
def test_wrong_arguments_are_refused(
    snapshot: Snapshot, request_: str, arguments: dict[str, Any], said: str
) -> None:
    """A refusal names the argument and what it may be, and never repeats what was sent."""
    answer = handlers(lambda: snapshot, lambda: About(Config(), "kprobe"))[request_]
    with pytest.raises(UsageError, match=said):
        answer(arguments)


def test_a_new_snapshot_is_ranked_anew(snapshot: Snapshot) -> None:
    """Asked again, the same snapshot gives the same; after a cycle the answer is the new one's."""
    current = [snapshot]
    answer = handlers(lambda: current[0], lambda: About(Config(), "kprobe"))["peers"]
    before = answer({"limit": 3})
    assert answer({"limit": 2})["peers"] == before["peers"][:2]
    current[0] = replace(snapshot, cycles=snapshot.cycles + 1, peers=snapshot.peers[:1])
    assert answer({})["peers_with_flows"] == PEERS
