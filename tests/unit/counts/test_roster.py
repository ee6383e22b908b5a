# SPDX-License-Identifier: Apache-2.0
"""Rows of the roster: one for each stay of a tunnel address in a slot, never shared."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.base.family import Family, pack
from detector.counts.roster import NOBODY, Exits, Member, Roster


def member(slot: int, family: Family = Family.IPV4, name: str = "peer-a", **said: list[str | None]) -> Member:
    """A member with predictions."""
    return Member(slot, family, False, name, said)


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 12), min_size=1)), max_size=30))
def test_a_row_belongs_to_one_stay_in_one_slot(steps: list[tuple[bool, set[int]]]) -> None:
    """However slots are taken, left and taken again, each stay has a row of its own and keeps it."""
    table, rows, stays = Roster(Exits()), {}, 0
    for joins, slots in steps:
        if joins:
            table.add([member(slot) for slot in sorted(slots)])
            for slot in sorted(slots):
                rows[slot] = stays
                stays += 1
        else:
            table.retire(slots)
            for slot in slots & rows.keys():
                del rows[slot]
        found = table.rows_of(np.arange(20))
        assert {slot: row for slot, row in enumerate(found.tolist()) if row != NOBODY} == rows
        assert table.rows == stays
        assert table.present == len(rows)
        assert table.slots == max(rows, default=-1) + 1


def test_who_left_is_forgotten_when_nothing_is_left_of_him() -> None:
    """A row without evidence loses its name and prediction and is used again; what was looked at stays."""
    exits = Exits()
    table = Roster(exits)
    table.add([member(slot, name=f"peer-{slot}", kernel=["203.0.113.1"]) for slot in range(4)])
    table.retire([1, 2])
    names = table.names
    table.forget(np.array([2, 3, 2]))  # of 2 there is evidence, 0 is here, 1 is neither
    assert table.pseudonyms(np.arange(4)) == ["peer-0", "", "peer-2", "peer-3"]
    assert (table.rows, table.present, table.gone, table.predictions) == (4, 2, 1, 3)
    assert names.tolist() == [f"peer-{slot}".encode() for slot in range(4)]
    before = table.names
    table.add([member(1, Family.IPV6, name="peer-new"), member(9, name="peer-newer")])
    assert table.rows_of(np.array([1, 9])).tolist() == [1, 4]
    assert table.select(Family.IPV6, np.empty(0, np.int64)).tolist() == [1]
    assert table.predicted(np.array([1]))["kernel"].tolist() == [[NOBODY]]
    assert before.tolist()[1] == b""
    table.forget(np.empty(0, np.int64))
    assert (table.rows, table.present, table.gone) == (5, 4, 0)


def test_slots_beyond_all_that_were_told_of_are_nobodys() -> None:
    """A number that the roster has never heard of is nobody's, however large."""
    table = Roster(Exits())
    table.add([member(3)])
    assert table.rows_of(np.array([3, 4, 5_000_000], np.uint32)).tolist() == [0, NOBODY, NOBODY]


def test_rows_are_selected_by_family_and_by_presence_or_evidence() -> None:
    """A row of somebody who left counts as long as there is evidence of it, in its own family only."""
    table = Roster(Exits())
    table.add([member(0), member(1, Family.IPV6), member(2), member(3)])
    table.retire([2, 3])
    seen = np.array([2, 1])
    assert table.select(Family.IPV4, seen).tolist() == [0, 2]
    assert table.select(Family.IPV6, seen).tolist() == [1]


def test_predictions_of_several_pools_are_kept_apart() -> None:
    """Each row has one exit for each pool, where a predictor says one; rows without it have none."""
    exits = Exits()
    table = Roster(exits)
    table.add([member(0, kernel=["203.0.113.1"])])
    table.add([member(1, kernel=["203.0.113.2", None, "2001:db8::1"], netmap=["203.0.113.1"]), member(2)])
    found = {
        name: [[None if one == NOBODY else str(exits.addresses()[one]) for one in row] for row in rows]
        for name, rows in table.predicted(np.array([0, 1, 2])).items()
    }
    assert found == {
        "kernel": [
            ["203.0.113.1", None, None],
            ["203.0.113.2", None, "2001:db8::1"],
            [None, None, None],
        ],
        "netmap": [[None], ["203.0.113.1"], [None]],
    }


def test_names_come_with_their_rows() -> None:
    """A pseudonym is read back whole, for the rows asked for."""
    table = Roster(Exits())
    table.add([member(0, name="peer-abcdefgh"), member(1, name="peer-abcdefghijklmnopq")])
    assert table.pseudonyms(np.array([1, 0])) == ["peer-abcdefghijklmnopq", "peer-abcdefgh"]


ADDRESSES = st.one_of(
    st.integers(1, 30).map(lambda host: f"203.0.113.{host}"),
    st.tuples(st.integers(0, 40), st.integers(1, 40)).map(
        lambda part: f"2001:db8:0:{part[0]:x}::{part[1]:x}"
    ),
)


@given(st.lists(st.lists(ADDRESSES, max_size=40), max_size=4))
def test_exits_keep_their_numbers(rounds: list[list[str]]) -> None:
    """Every exit has one number for good, however many are looked up at once."""
    exits, known = Exits(), dict[str, int]()
    for texts in rounds:
        packed = np.array([pack(ip_address(text)) for text in texts], "V16")
        numbers = exits.numbers(packed)
        for text, number in zip(texts, numbers.tolist(), strict=True):
            assert known.setdefault(text, number) == number
    assert exits.addresses() == [ip_address(text) for text in sorted(known, key=lambda one: known[one])]


def test_who_comes_back_has_its_row() -> None:
    """An address that left and is back goes on in its row, also when nothing of it was in the window."""
    table = Roster(Exits())
    assert table.add([member(slot) for slot in range(3)]) == []
    table.leave([1])
    table.forget(np.empty(0, np.int64))
    assert (table.present, table.gone, table.rows_of(np.array([1])).tolist()) == (2, 1, [1])
    assert table.add([member(1), member(5)]) == [1]
    assert table.rows_of(np.array([1, 5])).tolist() == [1, 3]
    table.leave([1])
    table.retire([1])
    table.forget(np.empty(0, np.int64))
    assert table.add([member(1)]) == []
