# SPDX-License-Identifier: Apache-2.0
"""What the analysis says: one immutable report, and the JSON object that people and machines get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.analysis.numerics import Floats
from detector.base.answers import SCHEMA_VERSION
from detector.base.family import Family
from detector.base.verdicts import ExclusiveKind, Reason, Verdict
from detector.predictors.guess import GUESS


@dataclass(frozen=True, slots=True)
class ContrastReport:
    """One contrast, as evidence.

    Attributes:
        observed: share of same exits, mean over peers.
        chance: what independent exits give.
        corrected: k, 0 independent, 1 always the same; None where chance is certainty.
        peers, trials: how many were tried.
        detectable: the smallest k that this much evidence would have shown; None if none.
    """

    observed: float
    chance: float
    kappa: float | None
    peers: int
    trials: int
    detectable: float | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "observed": _rounded(self.observed),
            "chance": _rounded(self.chance),
            "corrected": _rounded(self.kappa),
            "peers": self.peers,
            "trials": self.trials,
            "detectable": _rounded(self.detectable),
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """What one predictor explains: share of trials, against its own chance."""

    ratio: float
    chance: float
    trials: int
    holds: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "ratio": _rounded(self.ratio),
            "chance": _rounded(self.chance),
            "trials": self.trials,
            "holds": self.holds,
        }


@dataclass(frozen=True, slots=True)
class PoolReport:
    """The peers that one configured pool serves: where a leak that holds for a part of them sits.

    Attributes:
        pool: index of the pool in the observation.
        size: its addresses.
        peers: peers whose busiest exit it has.
        judged, flagged: how many of them were judged, and show a leak one by one.
        origin: where the rules that choose from it stand, empty where nobody knows.
        by_verdict: per verdict, how many of the judged peers.
    """

    pool: int
    size: int
    peers: int
    judged: int
    flagged: int
    origin: str = ""
    by_verdict: Mapping[Verdict, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "pool": self.pool,
            "size": self.size,
            "peers": self.peers,
            "judged": self.judged,
            "flagged": self.flagged,
            "origin": self.origin,
            "peers_by_verdict": {verdict.value: count for verdict, count in self.by_verdict.items()},
        }


@dataclass(frozen=True, slots=True)
class PeerColumns:
    """What is known of each peer, shape (P,) each; rows as in the observation. Not part of the JSON object.

    Attributes:
        verdict: index into `VERDICTS`.
        flows, votes: counted.
        consistency: C over the votes, nan below two.
        same_destination: share of trials with the same exit, nan without any.
        log_e: natural logarithm of the e-value that the peer is pinned, -inf where it is not judged.
        exit: index of the exit with most flows, -1 for none.
        anonymity: peers on that exit, 0 for none.
    """

    verdict: NDArray[np.int8]
    flows: Floats
    votes: Floats
    consistency: Floats
    same_destination: Floats
    log_e: Floats
    exit: NDArray[np.intp]
    anonymity: Floats


@dataclass(frozen=True, slots=True)
class AnonymityReport:
    """Peers on an exit in use, and their effective number."""

    least: int
    median: float
    effective_least: float
    effective_median: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "min": self.least,
            "median": _rounded(self.median),
            "effective_min": _rounded(self.effective_least),
            "effective_median": _rounded(self.effective_median),
        }


@dataclass(frozen=True, slots=True)
class FamilyReport:
    """The judgement on one family.

    Attributes:
        verdict: the worst of `findings`.
        predictor: the predictor that explains the exits best, None without one.
        findings: all that hold, worst first.
        suspected: what the evidence says although it may not be trusted, because flows were lost.
        reasons: why the verdict is `unknown`.
        peers: peers with translated flows.
        persons: peers with flows, translated or with a global address of their own; not in the JSON object.
        judged: peers with enough votes for a word about them.
        exits: exits in use.
        pool_size: configured exits.
        flows: translated flows.
        coverage: share of the flows that was counted, 0 to 1.
        in_use: whether the family carried anything, seen or not.
        consistency: chance-corrected k per contrast, None without trials.
        contrasts: the evidence behind `consistency`.
        explained: per predictor tried.
        peers_flagged: per finding, how many single peers show it.
        peers_by_verdict: per verdict, how many peers.
        leaking_share: share of the judged peers that leaks.
        anonymity_set: None without flows.
        leak_bits: what one observed exit tells about the next, mutual information.
        largest_missed: the largest share of the peers that could leak unseen.
        seconds_to_go: until the evidence would be enough, at the rate so far; None where nobody can tell.
        stand_out: per leak, peers that show it and are too few for a word about the relay.
        exclusive_kinds: what peers have to themselves, and how many.
        flow_class: the class of flows that leaks, where it is not all of them.
        prefix: the length of the prefix that peers keep to, where it is not the address.
        untranslated: per kind, flows that left without translation and how many peers sent them.
        seconds: how long ago the oldest of the counts began.
        exits_drift: everybody's exits change with time.
        pools: per configured pool.
        why: one paragraph for people.
        columns: per peer; not in the JSON object.
    """

    family: Family
    verdict: Verdict
    predictor: str | None
    findings: tuple[Verdict, ...]
    suspected: tuple[Verdict, ...]
    reasons: tuple[Reason, ...]
    peers: int
    persons: int
    judged: int
    exits: int
    pool_size: int
    flows: int
    coverage: float
    in_use: bool
    consistency: Mapping[str, float | None]
    contrasts: Mapping[str, ContrastReport]
    explained: Mapping[str, Explained]
    peers_flagged: Mapping[Verdict, int]
    peers_by_verdict: Mapping[Verdict, int]
    leaking_share: float
    anonymity_set: AnonymityReport | None
    leak_bits: float
    largest_missed: float
    seconds_to_go: float | None
    stand_out: Mapping[Verdict, int]
    exclusive_kinds: Mapping[ExclusiveKind, int]
    flow_class: str | None
    prefix: int | None
    untranslated: Mapping[str, tuple[int, int]]
    seconds: float | None
    exits_drift: bool
    pools: tuple[PoolReport, ...]
    why: str = ""
    columns: PeerColumns | None = field(default=None, repr=False, compare=False)

    @property
    def pool_guessed(self) -> bool:
        """Whether the pools are guessed from the exits in use, since nobody told them."""
        return any(pool.origin == GUESS for pool in self.pools)

    def as_dict(self) -> dict[str, object]:
        """The family's part of the JSON object (docs: "The report")."""
        empty: dict[str, object] = dict.fromkeys(("min", "median", "effective_min", "effective_median"))
        return {
            "verdict": self.verdict.value,
            "predictor": self.predictor,
            "findings": [finding.value for finding in self.findings],
            "peers": self.peers,
            "exits": self.exits,
            "pool_size": self.pool_size,
            "flows": self.flows,
            "consistency": {name: _rounded(k) for name, k in self.consistency.items()},
            "explained": {name: one.as_dict() for name, one in self.explained.items()},
            "peers_flagged": {finding.value: count for finding, count in self.peers_flagged.items()},
            "anonymity_set": empty if self.anonymity_set is None else self.anonymity_set.as_dict(),
            "leak_bits": round(round(self.leak_bits, 10), 2),
            "why": self.why,
            "coverage": _rounded(self.coverage),
            "peers_judged": self.judged,
            "peers_by_verdict": {verdict.value: count for verdict, count in self.peers_by_verdict.items()},
            "leaking_share": _rounded(self.leaking_share),
            "largest_missed": _rounded(self.largest_missed),
            "seconds_to_go": None if self.seconds_to_go is None else round(self.seconds_to_go),
            "stand_out": {finding.value: count for finding, count in self.stand_out.items()},
            "exclusive_by_kind": {kind.value: count for kind, count in self.exclusive_kinds.items()},
            "flow_class": self.flow_class,
            "prefix": self.prefix,
            "untranslated": {
                kind: {"flows": flows, "peers": peers} for kind, (flows, peers) in self.untranslated.items()
            },
            "exits_drift": self.exits_drift,
            "suspected": [finding.value for finding in self.suspected],
            "unknown_because": [reason.value for reason in self.reasons],
            "contrasts": {name: one.as_dict() for name, one in self.contrasts.items()},
            "pools": [pool.as_dict() for pool in self.pools],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The judgement on the relay: the worst of its families.

    Attributes:
        verdict: of the family that decides.
        predictor: of that family.
        coverage: share of all flows that was counted, 0 to 1.
        families: per family that was observed.
        why: the paragraph of the family that decides.
    """

    verdict: Verdict
    predictor: str | None
    coverage: float
    families: Mapping[Family, FamilyReport]
    why: str = ""

    def as_dict(self) -> dict[str, object]:
        """The JSON object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.value,
            "predictor": self.predictor,
            "coverage": _rounded(self.coverage),
            "families": {family.value: report.as_dict() for family, report in self.families.items()},
            "why": self.why,
        }


def _rounded(value: float | None) -> float | None:
    """Four decimals, without a minus zero and without numbers that JSON does not know.

    In two steps, so that the last bit of a sum does not decide which way a five is rounded.
    """
    return None if value is None or not np.isfinite(value) else round(round(float(value), 10), 4) + 0.0
