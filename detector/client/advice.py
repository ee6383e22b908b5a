# SPDX-License-Identifier: Apache-2.0
"""From a status object to what to do now: the next commands, and the runbook that has the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

RUNBOOKS = "deploy/runbooks"

_COVERAGE = "coverage"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do.

    Attributes:
        what: one sentence.
        commands: each with what it is for.
        runbook: the file in the project that says more, None where nothing is wrong.
    """

    what: str
    commands: tuple[tuple[str, str], ...] = ()
    runbook: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"commands": [{"command": one, "for": why} for one, why in self.commands]}


Advise = Callable[[Mapping[str, Any]], Advice]

_AUDIT = ("exitprint audit", "which NAT rule does it, and the rule to write instead")
_PEERS = ("exitprint peers", "whom it concerns, by pseudonym")
_PROVE = ("exitprint watch", "after the change: a new epoch, and then a verdict that is a good one")
_DOCTOR = ("exitprint doctor", "what of this host is in the way")
_LOG = ("journalctl -u exitprint", "what the service says of itself")
_HOLDS = ("exitprint status --json", "which tables lost how much, under `lost`")


def advice_for(status: Mapping[str, Any]) -> Advice:
    """What to do about a status object."""
    if status.get("waiting"):
        return Advice(
            "Nothing is judged as long as the service waits.", (_DOCTOR, _LOG), _runbook("NoVerdict")
        )
    if status.get("rules_not_understood") and status["verdict"] not in _LEAKS:
        return Advice(
            "Some NAT rules are not understood: read them, the verdict goes by what was seen alone.",
            (_AUDIT, _LOG),
        )
    return _BY_VERDICT.get(status["verdict"], _unknown)(status)


def _leak(what: str, runbook: str) -> Advise:
    return lambda _: Advice(what, (_AUDIT, _PEERS, _PROVE), _runbook(runbook))


def _good(what: str) -> Advise:
    return lambda _: Advice(what)


def _unknown(status: Mapping[str, Any]) -> Advice:
    reasons = {reason for family in status["families"].values() for reason in family["unknown_because"]}
    if _COVERAGE in reasons:
        return Advice(
            "Find out what is lost: a verdict needs nearly all flows.",
            (_HOLDS, _LOG),
            _runbook("CoverageLow"),
        )
    return Advice(
        "Wait for more traffic, and look again; the reason says what is missing.",
        (_PROVE, _DOCTOR),
        _runbook("NoVerdict"),
    )


def _runbook(name: str) -> str:
    return f"{RUNBOOKS}/Exitprint{name}.md"


_BY_VERDICT: dict[str, Advise] = {
    "predictable": _leak("Replace the NAT rule that chooses without a secret.", "MappingPredictable"),
    "exclusive": _leak("Let peers share exits: some have one to themselves.", "ExclusiveExits"),
    "pinned": _leak(
        "Decide whether peers are to keep their exit; where not, let each flow draw.", "MappingPinned"
    ),
    "destination_linked": _leak(
        "Replace the NAT rule that gives a site the same exit again.", "DestinationLinked"
    ),
    "session_sticky": _good("Nothing: one exit for a session and a new one for the next is as it should be."),
    "single_exit": _good("Nothing: everybody has the same exit."),
    "unlinkable": _good("Nothing."),
}
_LEAKS = tuple(_BY_VERDICT)[:4]
