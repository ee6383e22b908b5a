# SPDX-License-Identifier: Apache-2.0
"""Sensor and aggregator follow peers and rules on a lab's relay, and mix nobody's evidence with another's."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_interface

import pytest

from detector.base.family import Family
from detector.lab.namespaces import entered, ip_batch
from detector.lab.relay import Lab
from detector.lab.traffic import Sender
from detector.lab.wireguard import new_private_key
from detector.lab.workload import Flow, Protocol
from tests.system.service.running import until
from tests.system.service.stepping import SMALL, allow, remove, stepped

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PEERS = 8
MANY = 20_800


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    """One relay for every test."""
    with Lab(peers=PEERS) as relay:
        yield relay


@pytest.fixture
def lab(whole: Lab) -> Lab:
    """The relay with its peers and rules as they were."""
    for peer in whole.peers:
        allow(whole, whole.wireguard_interface, peer.public_key, *peer.allowed_ips())
    whole.forget()
    whole.apply("persistent")
    return whole


def send(lab: Lab, flows: int, seed: int = 1) -> None:
    """The default workload, all of it answered."""
    assert lab.send(lab.workload(flows, seed=seed)).clean


def test_every_pair_is_the_one_of_conntrack(lab: Lab) -> None:
    """20,800 TCP and UDP flows of both families, drained while they run: each count is conntrack's."""
    lab.apply("numgen-random")
    with stepped(lab) as both:
        done = threading.Event()

        def drain() -> None:
            while not done.wait(0.05):
                both.aggregator.collect()

        drainer = threading.Thread(target=drain)
        drainer.start()
        try:
            send(lab, MANY)
        finally:
            done.set()
            drainer.join()
        both.step()
        truth = lab.truth()
        assert min(truth.by(family, protocol) for family in Family for protocol in Protocol) > MANY // 6
        assert truth.flows == MANY
        assert both.pairs() == truth.pairs()
        counted = sum(value for (_, outcome), value in both.metric("flows").items() if outcome == "counted")
        assert counted == MANY
        assert set(both.metric("events_lost").values()) == {0.0}


def test_new_rules_begin_with_nothing(lab: Lab) -> None:
    """When the rules change neither flows nor trials of before count, however often one looks meanwhile."""
    with stepped(lab) as both:
        send(lab, 480)
        both.step()
        assert both.pairs().total() == 480
        assert both.trials() > 0
        lab.forget()
        lab.apply("jhash")
        both.step()
        assert both.metric("rules_epoch") == {(): 2.0}
        for _ in range(3):
            assert (both.pairs().total(), both.trials()) == (0, 0)
            both.step()
        send(lab, 240)
        both.step()
        assert both.pairs() == lab.truth().pairs()
        assert 0 < both.trials() <= 2 * 240


def test_the_same_rules_loaded_again_are_another_mapping_only_if_they_draw(lab: Lab) -> None:
    """A reload re-draws an unseeded hash, so it begins an epoch; one of `persistent` changes nothing."""
    with stepped(lab) as both:
        send(lab, 160)
        lab.apply("persistent")
        both.step()
        assert both.metric("rules_epoch") == {(): 1.0}
        assert both.pairs().total() == 160
        for epoch in (2.0, 3.0):
            lab.apply("jhash")
            both.step()
            assert both.metric("rules_epoch") == {(): epoch}


def test_a_tunnel_address_that_moves_counts_for_its_new_peer(lab: Lab) -> None:
    """When an address went from one peer to another its flows are a new row's; the old one keeps its own."""
    old, new = lab.peers[:2]
    address = old.tunnel[Family.IPV4]
    with stepped(lab) as both:
        send(lab, 160)
        both.step()
        before = both.rows(Family.IPV4)
        assert [flows for _, flows in before] == [10] * PEERS
        rest = [str(old.tunnel[Family.IPV6]) + "/128"]
        allow(lab, lab.wireguard_interface, old.public_key, *rest)
        allow(lab, lab.wireguard_interface, new.public_key, *new.allowed_ips(), f"{address}/32")
        both.step()
        assert both.rows(Family.IPV4) == [*before, (both.rows(Family.IPV4)[-1][0], 0)]
        route(lab, new.interface, f"{address}/32", old.interface)
        moved = replace(new, tunnel={**new.tunnel, Family.IPV4: address})
        peers = [moved if peer is new else peer for peer in lab.peers]
        flows = [Flow(new.number, Family.IPV4, Protocol.UDP, n, 30_000 + n) for n in range(7)]
        with closing(Sender(peers, lab.destinations)) as sender, entered(lab.clients):
            assert sender.run(flows).clean
        both.step()
        route(lab, old.interface, f"{address}/32", new.interface)
        after = both.rows(Family.IPV4)
        assert after[:-1] == before
        name, count = after[-1]
        assert count == 7
        mine = {one for one, _ in both.rows(Family.IPV6)} & {one for one, _ in before}
        assert name in mine
        assert both.metric("flows")["ipv4", "unattributed"] == 0


def route(lab: Lab, interface: str, address: str, before: str) -> None:
    """Let an address of the clients live on another interface."""
    ip_batch([f"addr del {address} dev {before}", f"addr add {address} dev {interface}"], lab.clients)


def test_addresses_that_come_back_go_on(lab: Lab) -> None:
    """Those that are away have no row among the present ones; back again they have their slots and rows."""
    gone = lab.peers[3]
    with stepped(lab, tables=replace(SMALL, peers=2 * PEERS)) as both:
        send(lab, 320)
        both.step()
        rows, slots = both.rows(Family.IPV4), both.sensor.slots.slots()
        allow(lab, lab.wireguard_interface, gone.public_key)
        both.step()
        assert len(both.sensor.slots) == 2 * PEERS - 2
        assert both.metric("table_entries")["peers",] == 2 * PEERS - 2
        allow(lab, lab.wireguard_interface, gone.public_key, *gone.allowed_ips())
        both.step()
        assert both.rows(Family.IPV4) == rows
        assert sorted(slot.number for slot in both.sensor.slots.slots()) == sorted(
            slot.number for slot in slots
        )
        assert both.metric("table_entries")["peers",] == 2 * PEERS


def test_a_slot_that_is_used_again_begins_with_nothing(lab: Lab) -> None:
    """With as many slots as addresses, newcomers get the numbers of those who left, and new rows."""
    gone, key = lab.peers[3], new_private_key()
    with stepped(lab, tables=replace(SMALL, peers=2 * PEERS)) as both:
        send(lab, 320)
        both.step()
        names = {name for name, _ in both.rows(Family.IPV4)}
        allow(lab, lab.wireguard_interface, gone.public_key)
        both.step()
        allow(lab, lab.wireguard_interface, key, "10.127.255.9/32", "fc00:bbbb:bbbb:bb01::ff09/128")
        for _ in range(2):  # the kept slots are let go of, then they are free
            both.step()
        assert {slot.number for slot in both.sensor.slots.slots()} == set(range(2 * PEERS))
        rows = both.rows(Family.IPV4)
        assert [flows for name, flows in rows if name not in names] == [0]
        tried = both.trials()
        both.step()
        assert both.trials() == tried
        remove(lab, lab.wireguard_interface, key)
        allow(lab, lab.wireguard_interface, gone.public_key, *gone.allowed_ips())


def test_a_peer_comes_and_goes(lab: Lab) -> None:
    """A peer that is added has slots at the next look; when it is removed only the others keep theirs."""
    key, addresses = (
        new_private_key(),
        ["10.127.255.1/32", "fc00:bbbb:bbbb:bb01::ff01/128", "10.127.254.0/24"],
    )
    with stepped(lab) as both:
        before = both.sensor.slots.slots()
        allow(lab, lab.wireguard_interface, key, *addresses)
        both.step()
        found = [slot for slot in both.sensor.slots.slots() if slot not in before]
        assert sorted(f"{slot.allowed.address}/{slot.allowed.prefix}" for slot in found) == sorted(addresses)
        assert {slot.pseudonym for slot in found} == {both.rows(Family.IPV6)[-1][0]}
        remove(lab, lab.wireguard_interface, key)
        both.step()
        assert both.sensor.slots.slots() == before
        assert both.metric("table_entries")["peers",] == len(before)


def test_who_left_is_forgotten_after_the_window(lab: Lab) -> None:
    """The pseudonym of a peer that left goes with its last flows in the window; its rows are used again."""
    gone = lab.peers[3]
    theirs = [ip_interface(allowed).ip for allowed in gone.allowed_ips()]
    with stepped(lab, window=2.0) as both:
        roster = both.aggregator.epoch.roster
        send(lab, 320)
        both.step()
        name = next(
            slot.pseudonym for slot in both.sensor.slots.slots() if slot.allowed.address in theirs
        ).encode()
        allow(lab, lab.wireguard_interface, gone.public_key)
        both.step()
        assert (roster.gone, name in roster.names) == (2, True)

        def forgotten() -> bool:
            both.step()
            return not roster.gone

        until(forgotten, "somebody who left is not forgotten")
        assert name not in roster.names
        rows = roster.rows
        allow(lab, lab.wireguard_interface, gone.public_key, *gone.allowed_ips())
        both.step()
        assert (roster.rows, roster.present) == (rows, 2 * PEERS)


def test_addresses_without_room_are_said_until_there_is_room(lab: Lab) -> None:
    """Three addresses too many are in the metric at once and at every look, and gone when there is room."""
    with stepped(lab, tables=replace(SMALL, peers=2 * PEERS - 3)) as both:
        for _ in range(2):
            assert both.metric("peers_refused") == {(): 3.0}
            both.step()
        for peer in lab.peers[:2]:
            allow(lab, lab.wireguard_interface, peer.public_key)
        for _ in range(2):  # slots are free when the aggregator has let them go
            both.step()
        assert both.metric("peers_refused") == {(): 0.0}
        assert len(both.sensor.slots) == 2 * PEERS - 4


def test_flows_of_an_unknown_peer_are_unattributed(lab: Lab) -> None:
    """A peer that the service has not met yet costs coverage, and is counted from the next look on."""
    fresh = lab.peers[5]
    allow(lab, lab.wireguard_interface, fresh.public_key)
    with stepped(lab) as both:
        allow(lab, lab.wireguard_interface, fresh.public_key, *fresh.allowed_ips())
        send(lab, 160)
        both.step()
        lost = both.metric("events_lost")["unattributed",]
        assert lost == 20
        assert both.metric("coverage_ratio") == {(): 140 / 160}
        lab.forget()
        send(lab, 160, seed=2)
        both.step()
        assert both.metric("events_lost")["unattributed",] == lost
        assert both.pairs().total() == 300


def test_flows_of_a_slot_that_stands_for_nobody_are_unattributed(lab: Lab) -> None:
    """Should the kernel count for a slot that the aggregator was not told of, coverage says so."""
    with stepped(lab) as both:
        (slot,) = (
            slot.number
            for slot in both.sensor.slots.slots()
            if slot.allowed.address == lab.peers[0].tunnel[Family.IPV6]
        )
        both.aggregator.epoch.roster.retire([slot])
        send(lab, 160)
        both.step()
        assert both.pairs().total() == 150
        assert both.metric("coverage_ratio") == {(): 150 / 160}
        assert both.metric("flows")["ipv6", "counted"] == 80


def test_a_fault_in_judging_is_counted_and_the_watch_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report that stands stays, the failure is counted, and the next cycle has every flow."""
    with stepped(lab) as both:
        made = both.aggregator.snapshot.made
        with monkeypatch.context() as broken:
            broken.setattr("detector.daemon.aggregator.judge", None)
            send(lab, 160)
            both.step()
        assert both.aggregator.snapshot.made == made
        assert both.metric("cycles")["failed",] == 1
        both.step()
        assert both.pairs().total() == 160
        assert both.metric("cycles") == {("good",): 2.0, ("failed",): 1.0}


def test_health_is_lost_when_reports_grow_old(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is healthy as long as reports are made, and says for how long none was."""
    with stepped(lab, interval=0.0) as both:
        assert both.aggregator.healthy() == (True, "reports are being made")
        assert both.aggregator.ready() == (True, "watching")
        monkeypatch.setattr("detector.daemon.aggregator._LATE", -1)
        assert both.aggregator.healthy()[0] is False
