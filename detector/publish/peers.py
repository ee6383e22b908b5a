# SPDX-License-Identifier: Apache-2.0
"""The peers of one family at one moment, by pseudonym: the riskiest, and everything about one.

A view holds references to columns that nobody changes, so making one costs nothing, and answering from one
keeps nobody waiting. No peer key, tunnel address or destination is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.analysis.evalues import FALSE_DISCOVERIES, flag
from detector.analysis.numerics import Floats
from detector.analysis.observation import Observation, Trials
from detector.analysis.report import FamilyReport, PeerColumns
from detector.base.verdicts import VERDICTS, Verdict
from detector.counts.observing import Observed

_VERDICT_STEP = 1e9  # so that evidence never outweighs a verdict
_MOST_EVIDENCE = 1e6

# From a peer's columns to what is sorted by, shape (P,), the least first.
_ORDERS = {
    "risk": lambda one: one.verdict * _VERDICT_STEP - np.clip(one.log_e, -_MOST_EVIDENCE, _MOST_EVIDENCE),
    "flows": lambda one: -one.flows,
    "votes": lambda one: -one.votes,
    "consistency": lambda one: -np.nan_to_num(one.consistency, nan=-1.0),
    "same_destination": lambda one: -np.nan_to_num(one.same_destination, nan=-1.0),
    "evidence": lambda one: -one.log_e,
    "peers_on_exit": lambda one: one.anonymity,
}
SORTS = tuple(_ORDERS)


@dataclass(frozen=True, slots=True)
class PeerView:
    """One family; P peers.

    Attributes:
        observed: what the analysis was told, the pairs in ascending order of their peers as `observe` makes
            them, and which rows of the roster the peers are.
        report: what it said.
        columns: what it said of each peer.
        names: pseudonyms by row of the roster.
        present: shape (P,), bool: the relay still has the peer.
    """

    observed: Observed
    report: FamilyReport
    columns: PeerColumns
    names: NDArray[np.bytes_]
    present: NDArray[np.bool_]

    @property
    def observation(self) -> Observation:
        """What the analysis was told."""
        return self.observed.observation

    def name(self, peer: int) -> str:
        """A peer's pseudonym."""
        return str(self.names[self.observed.rows[peer]].decode())

    def pairs(self, peer: int) -> slice:
        """Where a peer's pairs are."""
        first, end = np.searchsorted(self.observation.peer, np.array([peer, peer + 1], np.uint32))
        return slice(int(first), int(end))

    def find(self, pseudonym: str) -> list[int]:
        """The peers with a pseudonym: one for each tunnel address that it has or had."""
        try:
            rows = np.flatnonzero(self.names == pseudonym.encode("ascii"))
        except UnicodeEncodeError:
            return []
        at = np.searchsorted(self.observed.rows, rows)
        inside = at < len(self.observed.rows)
        at, rows = at[inside], rows[inside]
        return [int(peer) for peer in at[self.observed.rows[at] == rows]]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The peers that match, in an order; small, so that it can be kept.

    Attributes:
        seen: peers with flows in the window.
        matching: those of them that match.
        first: shape (n, 2), the first of these: the view's place among the views, and the peer in it.
    """

    seen: int
    matching: int
    first: NDArray[np.int64]


def rank(views: Sequence[PeerView], sort: str, verdict: Verdict | None, limit: int) -> Ranking:
    """The first peers in an order, of those with flows in the window.

    Args:
        views: of the families that are asked for.
        sort: one of `SORTS`.
        verdict: only peers with this one.
        limit: how many at most.
    """
    keys, places = [np.empty(0)], [np.empty((0, 2), np.int64)]
    seen = 0
    for number, view in enumerate(views):
        active = view.columns.flows > 0
        seen += int(np.count_nonzero(active))
        if verdict is not None:
            active &= view.columns.verdict == VERDICTS.index(verdict)
        peers = np.flatnonzero(active)
        keys.append(np.asarray(_ORDERS[sort](view.columns), np.float64)[peers])
        places.append(np.stack([np.full(len(peers), number), peers], axis=1))
    key = np.concatenate(keys)
    return Ranking(seen, len(key), np.concatenate(places)[_first(key, limit)])


def _first(key: Floats, limit: int) -> NDArray[np.intp]:
    """Where the least keys are, in order; not all of them are sorted."""
    few = np.argpartition(key, limit)[:limit] if len(key) > limit else np.arange(len(key))
    order: NDArray[np.intp] = few[np.argsort(key[few], kind="stable")]
    return order


def summaries(views: Sequence[PeerView], ranking: Ranking, limit: int) -> list[dict[str, Any]]:
    """The first of a ranking of these views, as objects for JSON."""
    found = [(views[number], int(peer)) for number, peer in ranking.first[:limit]]
    return [_summary(view, peer, _busiest_share(view, peer)) for view, peer in found]


def _busiest_share(view: PeerView, peer: int) -> float:
    """Share of the peer's flows that its busiest exit has."""
    flows = view.observation.flows[view.pairs(peer)]
    return float(flows.max() / flows.sum()) if len(flows) else 0.0


def _summary(view: PeerView, peer: int, share: float) -> dict[str, Any]:
    columns = view.columns
    exit_ = int(columns.exit[peer])
    return {
        "pseudonym": view.name(peer),
        "family": view.observation.family.value,
        "verdict": VERDICTS[columns.verdict[peer]].value,
        "present": bool(view.present[peer]),
        "flows": int(columns.flows[peer]),
        "votes": int(columns.votes[peer]),
        "consistency": _number(columns.consistency[peer]),
        "same_destination": _number(columns.same_destination[peer]),
        "log10_e": _number(columns.log_e[peer] / math.log(10)),
        "exit": str(view.observation.exits[exit_]) if exit_ >= 0 else None,
        "exit_share": _number(share),
        "peers_on_exit": int(columns.anonymity[peer]),
    }


def matching(views: Sequence[PeerView], beginning: str, most: int) -> list[str]:
    """Pseudonyms in these views that begin so, in order and `most` at most; one that is whole alone."""
    try:
        wanted = beginning.encode("ascii")
    except UnicodeEncodeError:
        return []
    found: set[str] = set()
    for view in views:
        names = view.names[view.observed.rows]
        if (names == wanted).any():
            return [beginning]
        # Not by np.char: it is imported at first use, and this process may open no file by then.
        found |= {name.decode() for name in names.tolist() if name.startswith(wanted)}
    return sorted(found)[:most]


def explain(views: Sequence[PeerView], pseudonym: str) -> list[dict[str, Any]]:
    """Everything about one peer: an object for each of its tunnel addresses."""
    return [_whole(view, peer) for view in views for peer in view.find(pseudonym)]


def _whole(view: PeerView, peer: int) -> dict[str, Any]:
    one = view.observation
    return _summary(view, peer, _busiest_share(view, peer)) | {
        "wide": bool(one.is_network[peer]) if one.is_network is not None else False,
        "log10_e_needed": _needed(view),
        "pool_size": view.report.pool_size,
        "exits": _exits(view, peer),
        "contrasts": {
            "any": {"observed": _number(view.columns.consistency[peer]), **_chance(view.report, "any")},
            "same_destination": _contrast(view, "same_destination", one.same_destination, peer),
            "same_port": _contrast(view, "same_port", one.same_port, peer),
        },
        "predictors": _predictors(view, peer),
    }


def _needed(view: PeerView) -> float | None:
    """The evidence that a peer was to have to be called pinned: e-BH's threshold (docs/leak-modes.md §5)."""
    judged = view.report.judged
    if not judged:
        return None
    flagged = int(np.count_nonzero(flag(view.columns.log_e, judged)))
    return _number(math.log10(judged / (FALSE_DISCOVERIES * max(flagged, 1))))


def _exits(view: PeerView, peer: int) -> list[dict[str, Any]]:
    one = view.observation
    rows = np.arange(len(one.peer))[view.pairs(peer)]
    rows = rows[np.argsort(-one.flows[rows].astype(np.int64), kind="stable")]
    return [
        {
            "exit": str(one.exits[one.exit[row]]),
            "flows": int(one.flows[row]),
            "votes": int(one.votes[row]),
            "sessions_begun": int(one.session_starts[row]),
        }
        for row in rows
    ]


def _contrast(view: PeerView, name: str, trials: Trials, peer: int) -> dict[str, Any]:
    tried, true = int(trials.tried[peer]), int(trials.true[peer])
    return {
        "observed": _number(true / tried) if tried else None,
        "tried": tried,
        **_chance(view.report, name),
    }


def _chance(report: FamilyReport, name: str) -> Mapping[str, Any]:
    contrast = report.contrasts.get(name)
    return {"chance": _number(contrast.chance) if contrast else None}


def _predictors(view: PeerView, peer: int) -> dict[str, Any]:
    """Whether each predictor names the exit that the peer has; not which exit it names."""
    one, exit_ = view.observation, view.columns.exit[peer]
    said: dict[str, Any] = {
        name: {"names_its_exit": bool(exit_ >= 0 and (np.atleast_1d(table[peer]) == exit_).any())}
        for name, table in one.predicted.items()
    }
    for trial in one.predictor_trials or ():
        if trial.flagged is not None:
            named = bool(trial.flagged[peer]) or said.get(trial.predictor, {}).get("names_its_exit", False)
            said[trial.predictor] = {"names_its_exit": named}
    tried = int(one.destination_predictor.tried[peer])
    if tried:
        hits, expected = int(one.destination_predictor.true[peer]), one.destination_predictor.expected
        said["kernel_destination"] = {
            "ratio": _number(hits / tried),
            "tried": tried,
            "chance": None if expected is None else _number(expected[peer] / tried),
        }
    return said


def _number(value: float) -> float | None:
    """Four decimals; None for what JSON has no number for."""
    return round(float(value), 4) + 0.0 if math.isfinite(value) else None
