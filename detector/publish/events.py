# SPDX-License-Identifier: Apache-2.0
"""One thing that happened, as people and machines are told of it. Nothing in it says who a peer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from detector.base.family import Family
from detector.base.moments import written
from detector.base.verdicts import Reason

MAX_EVENTS = 100


class EventKind(StrEnum):
    """What changed."""

    VERDICT = "verdict"
    EPOCH = "epoch"
    COVERAGE = "coverage"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        at: seconds since 1970.
        family: None for what concerns the whole relay.
        before, after: in words: verdicts (with predictor), numbers of epochs, shares, what is waited for.
        reasons: why a verdict is `unknown`.
        evidence: numbers that the new verdict rests on, by name.
        rules: where the rules stand whose peers show the new verdict.
        why: one paragraph.
        is_bad: it is worse than before, or nothing good.
    """

    at: float
    kind: EventKind
    family: Family | None
    before: str
    after: str
    reasons: tuple[Reason, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    why: str = ""
    is_bad: bool = False

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "time": written(self.at),
            "kind": self.kind.value,
            "family": None if self.family is None else self.family.value,
            "from": self.before,
            "to": self.after,
            "reasons": [reason.value for reason in self.reasons],
            "evidence": dict(self.evidence),
            "rules_at_fault": list(self.rules),
            "why": self.why,
        }
