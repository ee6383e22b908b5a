# SPDX-License-Identifier: Apache-2.0
"""Exits by load: true sums, in a number of columns that any pool fits in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detector.analysis.observation import Observation
from detector.counts.load import MAX_COLUMNS, Load, load_of
from detector.counts.observing import PoolRanges
from tests.unit.publish.page.moments import as_ipv6, observed, pool_of


def load(one: Observation, pools: list[PoolRanges] | None = None, floor: int = 5) -> Load:
    """Of a family, with its pool unless others are given."""
    return load_of(one, [pool_of(one)] if pools is None else pools, floor)


def test_idle_exits_of_a_small_pool_are_columns_too() -> None:
    """A pool of 59 of which few carry anything shows 59 columns, by address."""
    one = load(observed("jhash", peers=7))
    assert (len(one.columns), one.listed, one.in_use) == (59, 59, 7)
    assert [column.first for column in one.columns] == sorted(column.first for column in one.columns)
    assert sum(not column.flows for column in one.columns) == 52
    assert (one.crowded_less, one.busiest) == (7, 1 / 7)


@pytest.mark.parametrize("pool", [MAX_COLUMNS, MAX_COLUMNS + 1, 1000])
def test_columns_are_bounded_and_lose_nothing(pool: int) -> None:
    """Flows and exits of the columns sum up to all of them, however large the pool is."""
    for seen in (observed("random", pool=pool), as_ipv6(observed("random", pool=pool))):
        one = load(seen)
        assert len(one.columns) <= MAX_COLUMNS
        assert sum(column.flows for column in one.columns) == one.flows == int(seen.flows.sum())
        assert sum(column.exits for column in one.columns) == one.listed
        assert len(np.unique(seen.exit)) == one.in_use


def test_fewest_peers_of_a_column_are_those_of_its_loneliest_exit() -> None:
    """Where exits share a column, the exit with the fewest peers is what is told."""
    seen = observed("random", pool=200)
    peers = np.bincount(seen.exit)
    one = load(seen)
    assert min(column.peers for column in one.columns) == peers[peers > 0].min()
    assert load(seen, floor=int(peers.max()) + 1).crowded_less == one.in_use


def test_without_flows_there_is_nothing() -> None:
    """No columns, and no division by zero."""
    none = replace(observed("random"), flows=np.zeros(0, np.uint32), peer=np.zeros(0, np.uint32))
    assert load(replace(none, exit=np.zeros(0, np.uint32))) == Load()
