# SPDX-License-Identifier: Apache-2.0
"""A report that may be pasted anywhere: what is the matter with a relay, and nothing about a peer.

Numbers of peers and flows are bins with a floor, shares are in steps of 5 %, times are full hours. Left out
are the relay's name, exit addresses, rules and their places, pseudonyms, and every share of too few peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from detector import __version__
from detector.base.answers import (
    SCHEMA_VERSION,
    EventAnswer,
    HistoryAnswer,
    JudgedAnswer,
    PublicAnswer,
    PublicEventAnswer,
    PublicFamilyAnswer,
    StatusAnswer,
)
from detector.base.family import Family
from detector.base.verdicts import CONTRAST_WORDS, Reason, Verdict, plain, words_of
from detector.predictors import NAMES
from detector.terminal import family_label

LEAST_FLOOR = 5
_STEPS = (1, 2, 5)
_SHARE_STEP = 0.05


def public_report(status: StatusAnswer, history: HistoryAnswer) -> PublicAnswer:
    """What may be published of a status and a history."""
    floor = max(LEAST_FLOOR, status["anonymity_floor"])
    return {
        "schema_version": SCHEMA_VERSION,
        "exitprint": __version__,
        "floor": floor,
        "verdict": _verdict(status["verdict"]),
        "predictor": _predictor(status["predictor"]),
        "since": _hour(status["since"]),
        "made": _hour(status["made"]),
        "hook": status["hook"] if status["hook"] in ("netfilter", "kprobe") else "",
        "window_hours": round(status["window"] / 3600, 1),
        "coverage": _share(status["coverage"]),
        "waiting": bool(status["waiting"]),
        "rules_not_understood": bool(status["rules_not_understood"]),
        "families": {
            name: _family(one, floor) for name, one in status["families"].items() if name in tuple(Family)
        },
        "changes": [_event(event) for event in history["events"] if event["kind"] in ("verdict", "epoch")],
    }


def public_text(report: PublicAnswer) -> str:
    """The same as text for a ticket."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: PublicAnswer) -> Iterator[str]:
    yield f"{words_of(report['verdict']).headline}."
    by = f" by {report['predictor']}" if report["predictor"] else ""
    yield f"Verdict: {plain(report['verdict'])}{by}, since {report['since'] or 'no report'}"
    window = f"window {report['window_hours']:g} h"
    yield (
        f"exitprint {report['exitprint']}, hook {report['hook'] or 'none'}, {window}, "
        f"coverage {_percent(report['coverage'])}, report of {report['made'] or 'none'}"
    )
    if report["waiting"]:
        yield "The service waits for something."
    if report["rules_not_understood"]:
        yield "Some NAT rules are not understood."
    for name, family in report["families"].items():
        yield ""
        by = f" by {family['predictor']}" if family["predictor"] else ""
        yield f"{family_label(name)}: {plain(family['verdict'])}{by}"
        if family["unknown_because"]:
            yield f"  because: {', '.join(family['unknown_because'])}"
        yield f"  peers {family['peers']}, judged {family['peers_judged']}, flows {family['flows']}"
        yield f"  exits in use {family['exits']} of {family['pool_size']}"
        if family["leaking_share"] is not None:
            yield f"  leaking share {_percent(family['leaking_share'])}"
        for contrast, share in family["contrasts"].items():
            label = next((words for known, words in CONTRAST_WORDS.items() if known == contrast), contrast)
            yield f"  same exit {label}: {_percent(share)}"
    if report["changes"]:
        yield ""
    for change in report["changes"]:
        about = change["family"] or "relay"
        yield f"{change['hour']}  {about} {change['kind']}: {change['from']} -> {change['to']}"
    yield ""
    yield (
        f"Numbers are bins, and fewer than {report['floor']} are not told apart; there is no peer, address, "
        "name or rule in this report."
    )


def _family(one: JudgedAnswer, floor: int) -> PublicFamilyAnswer:
    enough = one["peers_judged"] >= floor
    return {
        "verdict": _verdict(one["verdict"]),
        "predictor": _predictor(one["predictor"]),
        "unknown_because": [reason for reason in one["unknown_because"] if reason in tuple(Reason)],
        "peers": binned(one["peers"], floor),
        "peers_judged": binned(one["peers_judged"], floor),
        "flows": binned(one["flows"], floor),
        "exits": binned(one["exits"], floor),
        "pool_size": binned(one["pool_size"], floor),
        "leaking_share": _share(one["leaking_share"]) if enough else None,
        "contrasts": {
            name: _share(contrast["observed"])
            for name, contrast in one["contrasts"].items()
            if enough and contrast["peers"] >= floor
        },
    }


def _event(event: EventAnswer) -> PublicEventAnswer:
    """A change, by the words that are known; numbers of epochs are left out."""
    is_verdict = event["kind"] == "verdict"
    return {
        "hour": _hour(event["time"]) or "",
        "kind": event["kind"],
        "family": event["family"] if event["family"] in tuple(Family) else None,
        "from": _named(event["from"]) if is_verdict else "",
        "to": _named(event["to"]) if is_verdict else "changed",
    }


def _named(text: str) -> str:
    """A verdict and its predictor, as far as they are words of ours."""
    name, _, predictor = text.partition(" by ")
    by = f" by {predictor}" if _predictor(predictor) else ""
    return _verdict(name) + by if name in tuple(Verdict) else "nothing"


def _verdict(name: str) -> str:
    return name if name in tuple(Verdict) else Verdict.UNKNOWN.value


def _predictor(name: str | None) -> str | None:
    return name if name in NAMES else None


def binned(number: int, floor: int) -> str:
    """A number as a bin: below the floor one, above it 1, 2 and 5 times a power of ten."""
    if number < floor:
        return f"fewer than {floor}"
    edges = sorted({floor, *(step * 10**power for power in range(40) for step in _STEPS)})
    lower = max(edge for edge in edges if floor <= edge <= number)
    upper = min(edge for edge in edges if edge > lower) - 1
    return f"{lower:,} to {upper:,}" if lower < upper else f"{lower:,}"


def _share(share: float | None) -> float | None:
    return None if share is None else round(round(share / _SHARE_STEP) * _SHARE_STEP, 2)


def _percent(share: float | None) -> str:
    return "not known" if share is None else f"about {share:.0%}"


def _hour(moment: str | None) -> str | None:
    return None if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H}:00 UTC"
