# SPDX-License-Identifier: Apache-2.0
"""A relay that is made up, for the aggregator to judge once before it gives up root's rights.

Libraries import parts of themselves when these are used first (`numpy.unique` brings in `numpy.ma`), and the
code may lie where the aggregator's user can read nothing, as below /root.
"""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from detector.base.family import Family, pack
from detector.base.flows import FLOW_CLASSES, LAGS
from detector.counts import words
from detector.counts.columns import Columns, merge
from detector.counts.observing import PoolRanges
from detector.counts.roster import Member
from detector.counts.window import Counts
from detector.kernel.drain import EXIT, Drained, Pairs

_PEERS = 16  # in each family
_VOTES = 12
_EXITS = {Family.IPV4: "203.0.113.{}", Family.IPV6: "2001:db8::{}"}
_POOL = 4


def pools() -> list[PoolRanges]:
    """A pool for each family."""
    return [
        PoolRanges(family, _POOL, ((pack(ip_address(text.format(1))), pack(ip_address(text.format(_POOL)))),))
        for family, text in _EXITS.items()
    ]


def members() -> list[Member]:
    """The peers, each with an exit that is predicted."""
    return [
        Member(slot, family, False, f"rehearsal{slot}", {"kernel_persistent": [_exit(family, slot)]})
        for slot, family in enumerate(family for family in Family for _ in range(_PEERS))
    ]


def drained() -> Drained:
    """Half of the peers keep to the exit that is predicted, the others are everywhere."""
    rows = []
    for member in members():
        for number in range(_POOL):
            share = _VOTES * (number == member.slot % _POOL) if member.slot % 2 else _VOTES // _POOL
            if share:
                rows.append((member.slot, pack(ip_address(_exit(member.family, number))), share))
    exits = list(dict.fromkeys(packed for _, packed, _ in rows))
    flows = Pairs(
        np.array([slot for slot, _, _ in rows], np.uint32),
        np.array([exits.index(packed) for _, packed, _ in rows], np.int32),
        np.array([share for _, _, share in rows], np.uint64),
    )
    return Drained(flows, flows, flows, np.frombuffer(b"".join(exits), EXIT))


def evidence(outcomes: tuple[int, int]) -> Counts:
    """Those that keep to an exit do so where others do not, in every class of flow and over sessions."""
    rows = np.arange(len(members()))
    parts = [
        Columns.of(
            words.keys_of(rows, word), np.where(rows % 2, np.uint64(_VOTES << at), np.uint64(_VOTES << 48))
        )
        for first, count, at in (
            (words.VOTE_SANDWICHES, len(FLOW_CLASSES) * len(LAGS), 16),
            (words.RETURN_SANDWICHES, len(LAGS), 16),
        )
        for word in range(first, first + count)
    ]
    once = [Columns.of(words.keys_of(rows, word), np.ones(len(rows), np.uint64)) for word in words.SINGLE]
    return Counts(np.zeros(outcomes, np.int64), words=merge([*parts, *once]))


def _exit(family: Family, number: int) -> str:
    return _EXITS[family].format(1 + number % _POOL)
