# SPDX-License-Identifier: Apache-2.0
"""What everybody may see tells of no single peer."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from detector.analysis.verdict import judge
from detector.config.model import Config
from detector.counts.load import Column, Load, load_of
from detector.publish.bins import binned, coarse
from detector.publish.discretion import discreet
from detector.publish.page.render import View, render
from detector.publish.snapshot import About, Snapshot
from tests.unit.publish.page.moments import observed, pool_of

A, B = ip_address("203.0.113.1"), ip_address("203.0.113.2")


def load(*columns: Column) -> Load:
    """Some columns of one exit each."""
    flows = sum(one.flows for one in columns)
    return Load(columns, len(columns), len(columns), flows, 0.5, 1)


@pytest.mark.parametrize(("persons", "withheld"), [(1, True), (4, True), (5, False)])
def test_an_exit_of_few_peers_shows_no_count(persons: int, withheld: bool) -> None:
    """On each side of the floor; an exit that nobody uses is just that."""
    one = discreet(load(Column(A, A, 1, 1000, persons, persons), Column(B, B, 1, 0, 0, 0)), 5)
    shown, idle = one.columns
    assert (shown.withheld, shown.flows) == (withheld, 0 if withheld else 1010)
    assert shown.peers == (0 if withheld else 5)
    assert not idle.withheld
    assert (one.busiest == 0) is withheld


def test_exits_that_share_a_column_count_their_peers_together() -> None:
    """Five peers on five exits of one column are five; what each did cannot be told apart."""
    assert not discreet(load(Column(A, B, 5, 1000, 1, 5)), 5).columns[0].withheld
    assert discreet(load(Column(A, B, 5, 1000, 1, 4)), 5).columns[0].withheld


def test_small_changes_do_not_show() -> None:
    """A count is told to a quarter, so most changes by six are not seen, and none to the last flow."""
    assert [binned(count) for count in (0, 1, 2, 10, 1000)] == [0, 1, 2, 9, 1010]
    told = [binned(1000 + 6 * step) for step in range(40)]
    assert len(set(told)) <= 3
    for count in range(1, 5000, 7):
        assert count / 1.2 <= binned(count) + 0.5
        assert binned(count) - 0.5 <= count * 1.2


def test_one_peers_flows_change_nothing_on_the_page() -> None:
    """Every exit is one person's: with six flows more of one of them the page is the same."""
    before = observed("persistent", peers=8)
    after = replace(before, flows=before.flows + np.where(before.peer == 3, 6, 0).astype(np.uint32))
    about = About(Config(relay="r"), "netfilter")
    pages = []
    for one in (before, after):
        loads = {one.family: discreet(load_of(one, [pool_of(one)], 5), 5)}
        now = Snapshot(report=judge([one]), loads=loads, made=1.0, since=1.0)
        pages.append(render(View(now, about, (True, ""), (True, ""), 2.0)))
    exits = [re.findall(r"<title>203\.0\.113\.[^<]*|<td>[^<]*|<rect[^>]*>", page) for page in pages]
    assert exits[0]
    assert exits[0] == exits[1]
    assert "fewer than 5 peers, so not told" in pages[0]


def test_who_is_not_root_sees_counts_in_bins() -> None:
    """At any depth; shares, names and the rest are as they are."""
    told = {
        "peers": [{"pseudonym": "p", "flows": 1003, "exit_share": 0.5, "exits": [{"flows": 7, "votes": 1}]}],
        "window": 86400,
        "flows": None,
    }
    assert coarse(told) == {
        "peers": [{"pseudonym": "p", "flows": 1010, "exit_share": 0.5, "exits": [{"flows": 7, "votes": 1}]}],
        "window": 86400,
        "flows": None,
    }
