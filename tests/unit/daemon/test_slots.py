# SPDX-License-Identifier: Apache-2.0
"""Slots and pseudonyms: no two peers ever share one."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.base.canaries import canary_name
from detector.base.errors import HostError
from detector.base.family import Address
from detector.daemon.slots import Pseudonyms, SlotTable
from detector.wireguard.model import AllowedIp, Interface, InterfacePeers, Kind, PublicKey, Snapshot

A, B, C = (PublicKey(letter * 32) for letter in (b"a", b"b", b"c"))


def ordered(capacity: int, canaries: Mapping[Address, str] | None = None, keep: float = 0.0) -> SlotTable:
    """A table whose numbers follow the order in which peers are read, so that a test can name them."""
    return SlotTable(capacity, canaries or {}, keep, shuffle=lambda _: None)


def ip(last: int) -> AllowedIp:
    """10.0.0.last."""
    return AllowedIp(bytes([10, 0, 0, last]), 32)


def snapshot(peers: Mapping[PublicKey, list[int]], ifindex: int = 7, name: str = "wg0") -> Snapshot:
    """One interface with these peers; a peer's numbers are its addresses."""
    known = {key: tuple(map(ip, addresses)) for key, addresses in peers.items()}
    return Snapshot((InterfacePeers(Interface(name, ifindex, Kind.KERNEL), known),))


def test_each_allowed_ip_has_a_slot() -> None:
    """A peer with two tunnel addresses has two slots and one pseudonym."""
    table = ordered(8)
    changes = table.update(snapshot({A: [1, 2], B: [3]}))
    assert [(slot.number, slot.allowed) for slot in changes.added] == [(0, ip(1)), (1, ip(2)), (2, ip(3))]
    first, second, other = (slot.pseudonym for slot in changes.added)
    assert first == second != other
    assert (len(table), table.taken, changes.retired, changes.refused) == (3, 3, (), 0)


def test_an_unchanged_snapshot_changes_nothing() -> None:
    """The second of two equal snapshots is no change."""
    table = ordered(8)
    table.update(snapshot({A: [1], B: [2]}))
    changes = table.update(snapshot({A: [1], B: [2]}))
    assert not (changes.added or changes.retired or changes.moved or changes.refused)


def test_a_moved_address_gets_another_slot() -> None:
    """An address that moves to another peer leaves the old slot and takes a new one."""
    table = ordered(8)
    table.update(snapshot({A: [1], B: [2]}))
    changes = table.update(snapshot({A: [], B: [2, 1]}))
    assert [slot.number for slot in changes.retired] == [0]
    assert [(slot.number, slot.allowed) for slot in changes.added] == [(2, ip(1))]


def test_a_slot_waits_for_its_release() -> None:
    """The number of a peer that is gone is nobody's until it is released."""
    table = ordered(1)
    table.update(snapshot({A: [1]}))
    changes = table.update(snapshot({B: [2]}))
    assert ([slot.number for slot in changes.retired], changes.added, changes.refused) == ([0], (), 1)
    table.release([0])
    changes = table.update(snapshot({B: [2]}))
    assert [(slot.number, slot.allowed) for slot in changes.added] == [(0, ip(2))]


def test_only_retired_slots_are_released() -> None:
    """Releasing a slot that is in use, free or unknown is refused."""
    table = ordered(2)
    table.update(snapshot({A: [1]}))
    for number in (0, 1, 9):
        with pytest.raises(ValueError, match="not retired"):
            table.release([number])


def test_a_full_table_counts_who_is_left_out() -> None:
    """What does not fit is counted at each update, and nobody loses a slot for it."""
    table = ordered(2)
    assert table.update(snapshot({A: [1, 2], B: [3, 4], C: [5]})).refused == 3
    assert table.update(snapshot({A: [1, 2], B: [3, 4], C: [5]})).refused == 3
    assert [slot.allowed for slot in table.slots()] == [ip(1), ip(2)]


def test_a_new_ifindex_keeps_the_slots() -> None:
    """An interface that is created anew keeps its peers' slots under the new ifindex."""
    table = ordered(4)
    table.update(snapshot({A: [1]}, ifindex=7))
    changes = table.update(snapshot({A: [1]}, ifindex=9))
    assert [(slot.number, slot.ifindex) for slot in changes.moved] == [(0, 9)]
    assert not (changes.added or changes.retired)


def test_an_unread_interface_keeps_its_peers() -> None:
    """A failed reading retires nobody; a vanished interface retires its peers."""
    table = ordered(4)
    table.update(snapshot({A: [1]}))
    assert not table.update(Snapshot((), unread={"wg0": HostError("busy")})).retired
    assert len(table.update(Snapshot((), missing=("wg0",))).retired) == 1


def test_equal_addresses_on_two_interfaces() -> None:
    """The same address on another interface is another slot."""
    table = ordered(4)
    both = snapshot({A: [1]}).interfaces + snapshot({A: [1]}, ifindex=8, name="wg1").interfaces
    assert [slot.ifindex for slot in table.update(Snapshot(both)).added] == [7, 8]


def test_pseudonyms_come_back_and_say_nothing() -> None:
    """A peer that comes back has its pseudonym again; another start gives it another."""
    table = ordered(4)
    (first,) = table.update(snapshot({A: [1]})).added
    table.update(snapshot({}))
    (again,) = table.update(snapshot({A: [1]})).added
    assert again.pseudonym == first.pseudonym
    assert len(first.pseudonym) == len("peer-") + 8
    assert Pseudonyms().name(A) != first.pseudonym


def test_pseudonyms_do_not_collide() -> None:
    """Where two keys have the same first letters, the later one gets more of them."""
    names = Pseudonyms(bytes(32))
    short = names.name(A)
    names._owners[Pseudonyms(bytes(32)).name(B)] = A
    assert names.name(B).startswith(Pseudonyms(bytes(32)).name(B))
    assert len(names.name(B)) == len(short) + 1


def test_nothing_prints_a_peer() -> None:
    """Neither the table nor a change shows a key or an address."""
    table = ordered(4)
    changes = table.update(snapshot({A: [1]}))
    text = f"{table} {changes} {table._slots}"
    for secret in ("10.0.0.1", "\\n\\x00\\x00\\x01", "aaaa", A.hex()):
        assert secret not in text


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from([A, B, C]), st.sets(st.integers(0, 5))), st.booleans())
    )
)
def test_no_number_is_ever_shared(steps: list[tuple[dict[PublicKey, set[int]], bool]]) -> None:
    """Whatever comes and goes, a number passes on only through a release, and the counts add up."""
    table, owners, waiting = ordered(6), dict[int, tuple[str, AllowedIp]](), set[int]()
    for peers, release in steps:
        changes = table.update(snapshot({key: sorted(addresses) for key, addresses in peers.items()}))
        for slot in changes.retired:
            del owners[slot.number]
            waiting.add(slot.number)
        for slot in changes.added:
            assert slot.number not in owners
            assert slot.number not in waiting
            assert slot.number < 6
            owners[slot.number] = (slot.pseudonym, slot.allowed)
        assert len(owners) + changes.refused == sum(map(len, peers.values()))
        assert table.taken == len(owners) + len(waiting)
        if release:
            table.release(waiting)
            waiting.clear()


def test_a_canary_has_its_name_and_nobody_else_has() -> None:
    """The declared address is called by name; another one of the key, and a network around it, are not."""
    table = ordered(8, {ip_address("10.0.0.2"): "c1"})
    wide = AllowedIp(bytes([10, 0, 0, 2]), 31)
    known = {A: (ip(1), ip(2)), B: (wide,)}
    changes = table.update(Snapshot((InterfacePeers(Interface("wg0", 7, Kind.KERNEL), known),)))
    names = [slot.pseudonym for slot in changes.added]
    assert [canary_name(name) for name in names] == [None, "c1", None]
    assert names[0].startswith("peer-")
    assert names[0] != names[2]
    table.update(snapshot({}))
    assert len(table.pseudonyms) == 0


@pytest.mark.parametrize(("away", "same"), [(99.0, True), (100.0, False)])
def test_a_slot_is_kept_for_an_address_that_left(away: float, same: bool) -> None:
    """An address that is back in time has its slot and name, whatever its key; later its slot is retired."""
    table = ordered(8, keep=100.0)
    (before,) = table.update(snapshot({A: [1]}), 0.0).added
    left = table.update(snapshot({}), 10.0)
    assert (left.left, left.retired, left.ended, table.taken) == ((before,), (), (), 1)
    assert not table.update(snapshot({}), 10.0 + away - 1).ended
    changes = table.update(snapshot({} if not same else {B: [1]}), 10.0 + away)
    if same:
        assert [(one.number, one.pseudonym) for one in changes.added] == [(before.number, before.pseudonym)]
    else:
        assert (changes.ended, table.held()["retired"]) == ((before.number,), 1)
        table.release([before.number])
        assert table.taken == 0


def test_an_address_that_goes_to_somebody_else_is_another_person() -> None:
    """A key that was there before and takes over an address gets another slot; the kept one ends at once."""
    table = ordered(8, keep=100.0)
    table.update(snapshot({A: [1, 3], B: [2]}), 0.0)
    changes = table.update(snapshot({A: [3], B: [2, 1]}), 1.0)
    assert ([slot.number for slot in changes.left], changes.ended) == ([0], (0,))
    assert [(slot.number, slot.allowed) for slot in changes.added] == [(3, ip(1))]
    table.update(snapshot({A: [], B: [2, 1]}), 2.0)
    (back,) = table.update(snapshot({A: [3], B: [2, 1]}), 3.0).added
    assert back.number == 1


def test_the_oldest_kept_slots_go_when_there_is_need_of_room() -> None:
    """A full table lets go of those who left first, as many as are wanted."""
    table = ordered(3, keep=1000.0)
    table.update(snapshot({A: [1, 2, 3]}), 0.0)
    table.update(snapshot({A: [1, 2]}), 1.0)
    table.update(snapshot({A: [1]}), 2.0)
    changes = table.update(snapshot({A: [1], B: [4]}), 3.0)
    assert (changes.ended, changes.refused) == ((2,), 1)
    table.release([2])
    (added,) = table.update(snapshot({A: [1], B: [4]}), 4.0).added
    assert added.number == 2
    (back,) = table.update(snapshot({A: [1, 2], B: [4]}), 5.0).added
    assert back.number == 1


def test_what_is_kept_says_no_address() -> None:
    """A slot that waits for its address holds a hash of it, under a key that is drawn at start."""
    tables = ordered(4, keep=1000.0), ordered(4, keep=1000.0)
    for table in tables:
        table.update(snapshot({A: [1]}), 0.0)
        table.update(snapshot({}), 1.0)
    first, second = (list(table._kept) for table in tables)
    assert first != second
    assert bytes([10, 0, 0, 1]) not in first[0]


def test_numbers_do_not_follow_the_addresses() -> None:
    """Peers are read in the order of their addresses, and their numbers say nothing of it."""
    table = SlotTable(500)
    peers = {PublicKey(bytes([number]) * 32): [number] for number in range(250)}
    added = table.update(snapshot(peers)).added
    assert sorted(slot.number for slot in added) == list(range(250))
    assert sum(slot.allowed == ip(slot.number) for slot in added) < 15
