# SPDX-License-Identifier: Apache-2.0
"""From a status object to what to do now: the next commands, and the runbook that has the rest."""

from __future__ import annotations

from dataclasses import dataclass

from detector.base.answers import AdviceAnswer, CommandAnswer, StatusAnswer
from detector.base.verdicts import LEAKS, REASON_WORDS, VERDICT_WORDS, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do.

    Attributes:
        what: one sentence.
        commands: each with what it is for.
        runbook: where the runbook is that says more, None where nothing is wrong.
    """

    what: str
    commands: tuple[tuple[str, str], ...] = ()
    runbook: str | None = None

    def as_dict(self) -> AdviceAnswer:
        """For JSON."""
        commands: list[CommandAnswer] = [{"command": one, "for": why} for one, why in self.commands]
        return {"what": self.what, "commands": commands, "runbook": self.runbook}


_AUDIT = ("exitprint audit", "which NAT rule does it, and the rule to write instead")
_PEERS = ("exitprint peers", "whom it concerns, by pseudonym")
_PROVE = ("exitprint watch", "after the change: a new epoch, a good verdict")
_DOCTOR = ("exitprint doctor", "what of this host is in the way")
_LOG = ("journalctl -u exitprint", "what the service says of itself")
_LOST = ("exitprint status --json", "which tables lost how much, under `lost`")

_COMMANDS = {
    Reason.COVERAGE: (_LOST, _LOG),
    Reason.UNTRACKED: (_AUDIT, _LOST),
    Reason.UNTRANSLATED: (_AUDIT, _DOCTOR),
    Reason.SENSOR_LOST: (_LOG, _DOCTOR),
    Reason.FEW_STAND_OUT: (_PEERS, _AUDIT),
    Reason.STICKY_SO_FAR: (_AUDIT, _PROVE),
    Reason.SILENT_CHANGE: (_AUDIT, _LOG),
}


def advice_for(status: StatusAnswer) -> Advice:
    """What to do about a status object."""
    if status.get("waiting"):
        runbook = _link(status, REASON_WORDS[Reason.NOT_WATCHED].runbook)
        return Advice("Nothing is judged as long as the service waits.", (_DOCTOR, _LOG), runbook)
    verdict = Verdict(status["verdict"]) if status["verdict"] in tuple(Verdict) else Verdict.UNKNOWN
    if status.get("rules_not_understood") and verdict not in LEAKS:
        return Advice(
            "Some NAT rules are not understood: read them, the verdict goes by what was seen alone.",
            (_AUDIT, _LOG),
        )
    if verdict is Verdict.UNKNOWN:
        return _unknown(status)
    words = VERDICT_WORDS[verdict]
    return Advice(
        words.first, (_AUDIT, _PEERS, _PROVE) if verdict in LEAKS else (), _link(status, words.runbook)
    )


def _unknown(status: StatusAnswer) -> Advice:
    """By the first reason that somebody can do something about; else waiting is all."""
    given = {reason for family in status["families"].values() for reason in family["unknown_because"]}
    for reason, commands in _COMMANDS.items():
        if reason in given:
            because = REASON_WORDS[reason]
            return Advice(because.first, commands, _link(status, because.runbook))
    words = VERDICT_WORDS[Verdict.UNKNOWN]
    return Advice(words.first, (_PROVE, _DOCTOR), _link(status, words.runbook))


def _link(status: StatusAnswer, runbook: str | None) -> str | None:
    return None if runbook is None else f"{status['runbooks']}/{runbook}.md"
