# SPDX-License-Identifier: Apache-2.0
"""What the inspect socket answers, made from the snapshot that was published last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detector.base.answers import SCHEMA_VERSION
from detector.base.errors import UsageError
from detector.base.family import Family
from detector.base.moments import written
from detector.base.verdicts import VERDICTS, Verdict
from detector.publish.events import MAX_EVENTS
from detector.publish.inspect.socket import Answer, Arguments
from detector.publish.peers import SORTS, PeerView, Ranking, explain, matching, rank, summaries
from detector.publish.snapshot import About, Snapshot, status

_USUAL_LIMIT = 20
_MAX_LIMIT = 1000
_MAX_PSEUDONYM = 64
_FEW = 4  # pseudonyms that are named where a beginning is not enough


def handlers(snapshot: Callable[[], Snapshot], about: Callable[[], About]) -> dict[str, Answer]:
    """By request. Each takes one snapshot and looks at nothing else.

    Args:
        snapshot: what was published last.
        about: what else is to be told of the service.
    """
    rankings = _Rankings()
    return {
        "status": lambda _: status(snapshot(), about()),
        "peers": lambda arguments: _peers(snapshot(), about(), arguments, rankings),
        "explain": lambda arguments: _explain(snapshot(), about(), arguments),
        "history": lambda _: _history(snapshot(), about()),
        "retention": lambda _: _retention(snapshot(), about()),
        "holds": lambda _: _retention(snapshot(), about()),  # its name until release 1
    }


class _Rankings:
    """The rankings of one snapshot: who asks again and again costs the cycle nothing."""

    def __init__(self) -> None:
        self._of = -1
        self._known: dict[tuple[str | None, ...], Ranking] = {}

    def get(self, now: Snapshot, family: str | None, verdict: str | None, sort: str) -> Ranking:
        """Made at the first question; the snapshot itself is not kept."""
        if self._of != now.cycles:
            self._of, self._known = now.cycles, {}
        key = family, verdict, sort
        if key not in self._known:
            wanted = None if verdict is None else Verdict(verdict)
            self._known[key] = rank(_views(now, family), sort, wanted, _MAX_LIMIT)
        return self._known[key]


def _views(now: Snapshot, family: str | None) -> list[PeerView]:
    return [view for view in now.peers if family in (None, view.observation.family)]


def _peers(now: Snapshot, about: About, arguments: Arguments, rankings: _Rankings) -> dict[str, Any]:
    family = _one_of(arguments, "family", tuple(Family), None)
    verdict = _one_of(arguments, "verdict", VERDICTS, None)
    sort = _one_of(arguments, "sort", SORTS, SORTS[0]) or SORTS[0]
    limit = arguments.get("limit", _USUAL_LIMIT)
    if type(limit) is not int or not 1 <= limit <= _MAX_LIMIT:
        raise UsageError("limit is no number from 1 to 1000", "ask for fewer, and filter")
    ranking = rankings.get(now, family, verdict, sort)
    return _head(now, about) | {
        "sort": sort,
        "peers_with_flows": ranking.seen,
        "matching": ranking.matching,
        "peers": summaries(_views(now, family), ranking, limit),
    }


def _explain(now: Snapshot, about: About, arguments: Arguments) -> dict[str, Any]:
    pseudonym = arguments.get("pseudonym")
    if not isinstance(pseudonym, str) or not 1 <= len(pseudonym) <= _MAX_PSEUDONYM:
        raise UsageError("pseudonym is missing", "see them with: exitprint peers")
    names = matching(now.peers, pseudonym, _FEW)
    if len(names) > 1:
        some = f"{', '.join(names[:-1])} ..." if len(names) == _FEW else ", ".join(names)
        raise UsageError(f"several pseudonyms begin so: {some}", "write more of the one that is meant")
    found = explain(now.peers, names[0]) if names else []
    if not found:
        raise UsageError(
            "no peer has this pseudonym now",
            "it lives as long as the service and the peer; see them with: exitprint peers",
        )
    return _head(now, about) | {"pseudonym": names[0], "tunnel_addresses": found}


def _retention(now: Snapshot, about: About) -> dict[str, Any]:
    return _head(now, about) | {"holds": [one.as_dict() for one in now.holds]}


def _history(now: Snapshot, about: About) -> dict[str, Any]:
    return _head(now, about) | {
        "room": MAX_EVENTS,
        "events": [event.as_dict() for event in now.history],
    }


def _head(now: Snapshot, about: About) -> dict[str, Any]:
    made = written(now.made) if now.made else None
    return {
        "schema_version": SCHEMA_VERSION,
        "relay": about.config.relay,
        "made": made,
        "window": about.config.window,
    }


def _one_of(arguments: Arguments, key: str, known: Sequence[str], usual: str | None) -> str | None:
    value = arguments.get(key)
    if value is None:
        return usual
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{key} is none of {', '.join(known)}", "")
    return value
