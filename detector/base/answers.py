# SPDX-License-Identifier: Apache-2.0
"""The objects that `--json` prints, key by key. docs/schemas/ is made from them.

Within a version keys are added, and none changes its meaning or goes away; `schema_version` counts versions.
Times are ISO 8601 in UTC, shares are from 0 to 1, spans are seconds.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

SCHEMA_VERSION = 1

VerdictName = Literal[
    "predictable",
    "exclusive",
    "pinned",
    "destination_linked",
    "session_sticky",
    "single_exit",
    "unlinkable",
    "unknown",
]


class ContrastAnswer(TypedDict):
    """How often two flows of one peer share their exit, against chance."""

    observed: float | None
    chance: float | None
    corrected: float | None
    peers: int
    trials: int
    detectable: float | None


class ExplainedAnswer(TypedDict):
    """How often a public function names the exit, against chance."""

    ratio: float | None
    chance: float | None
    trials: int
    holds: bool


class AnonymityAnswer(TypedDict):
    """Peers on an exit in use, and their effective number."""

    min: int | None
    median: float | None
    effective_min: float | None
    effective_median: float | None


class PoolAnswer(TypedDict):
    """The peers that one pool of exits serves, and the rule that chooses from it."""

    pool: int
    size: int
    peers: int
    judged: int
    flagged: int
    origin: str
    peers_by_verdict: dict[str, int]


class UntranslatedAnswer(TypedDict):
    """Flows that left with the address that they came with, and the peers that sent them."""

    flows: int
    peers: int


class FamilyAnswer(TypedDict):
    """The judgement on one address family."""

    verdict: VerdictName
    predictor: str | None
    findings: list[VerdictName]
    suspected: list[VerdictName]
    unknown_because: list[str]
    why: str
    coverage: float | None
    flows: int
    peers: int
    peers_judged: int
    peers_flagged: dict[str, int]
    peers_by_verdict: dict[str, int]
    leaking_share: float | None
    exits: int
    pool_size: int
    consistency: dict[str, float | None]
    contrasts: dict[str, ContrastAnswer]
    explained: dict[str, ExplainedAnswer]
    anonymity_set: AnonymityAnswer
    leak_bits: float
    pools: list[PoolAnswer]
    largest_missed: float | None  # share of the peers that could leak unseen
    seconds_to_go: int | None  # until the evidence would be enough, at the rate so far
    stand_out: dict[str, int]  # per leak, peers that show it and are too few for a word about the relay
    exclusive_by_kind: dict[str, int]
    flow_class: str | None  # the class of flows that leaks, where it is not all of them
    prefix: int | None  # length of the prefix that peers keep to, where it is not the address
    untranslated: dict[str, UntranslatedAnswer]
    exits_drift: bool  # everybody's exits change with time


class JudgedAnswer(FamilyAnswer):
    """The same from a running service."""

    since: str | None
    rules_at_fault: list[str]


class RemarkAnswer(TypedDict):
    """What a person has to know of a listing beside its verdict."""

    kind: str
    text: str


class ListingAnswer(TypedDict):
    """How `analyze` read its files, and what became of the lines and flows."""

    form: str
    lines: int
    flows: int
    translated: int
    with_time: int
    other_events: int
    garbage: int
    garbage_lines: list[int]
    events_lost: bool
    strangers: int
    inside: int
    pools_guessed: bool
    families_guessed: list[str]
    warnings: list[RemarkAnswer]


class ReportAnswer(TypedDict):
    """What `analyze --json` and `lab --json` print."""

    schema_version: int
    verdict: VerdictName
    predictor: str | None
    coverage: float | None
    families: dict[str, FamilyAnswer]
    why: str
    rules_not_understood: NotRequired[int]
    listing: NotRequired[ListingAnswer]  # of `analyze`


class ChangeAnswer(TypedDict):
    """What the last change of the rules did to one family's mapping."""

    outcome: str
    compared_with: int
    peers: int
    same: float
    same_chance: float
    moved: float
    sticky_share_before: float
    sticky_share_after: float
    step: int | None
    relative: float | None
    why: str


class EpochAnswer(TypedDict):
    """The rules as they are: number, since when, and by family what their change did."""

    number: int
    since: str | None
    change: dict[str, ChangeAnswer]


class ConfigurationAnswer(TypedDict):
    """How reading the configuration file went last."""

    last_reload_successful: bool
    read: str | None
    restart_needed: list[str]


class CommandAnswer(TypedDict("CommandAnswer", {"for": str})):  # a word of Python's
    """A command to type, and what for."""

    command: str


class AdviceAnswer(TypedDict):
    """What to do first."""

    what: str
    commands: list[CommandAnswer]
    runbook: str | None


class CanaryAnswer(TypedDict):
    """Where in its pool a canary sits: relative position, from and to; None while not settled."""

    canary: str
    family: str
    position: list[float] | None
    pool_size: int
    votes: int
    kept: float | None


class FloodAnswer(TypedDict):
    """The peer that has most of the flows that the tables had no room for."""

    pseudonym: str
    family: str
    flows: int
    share: float  # of all such flows of the family


class StatusAnswer(TypedDict):
    """What the service says of itself and its relay; `status --json` adds the advice."""

    schema_version: int
    relay: str
    verdict: VerdictName
    predictor: str | None
    since: str | None
    why: str
    coverage: float | None
    families: dict[str, JudgedAnswer]
    made: str | None
    cycles: int
    interval: float
    window: float
    anonymity_floor: int
    epoch: EpochAnswer
    configuration: ConfigurationAnswer
    hook: str
    page: str
    runbooks: str
    waiting: str
    rules_not_understood: int
    lost: dict[str, int]
    unattributed: int
    canaries: list[CanaryAnswer]
    floods: list[FloodAnswer]


class AdvisedAnswer(StatusAnswer):
    """What `status --json` prints."""

    advice: AdviceAnswer


class EventAnswer(TypedDict("EventAnswer", {"from": str})):  # a word of Python's
    """One change."""

    time: str
    kind: Literal["verdict", "epoch", "coverage", "state"]
    family: str | None
    to: str
    reasons: list[str]
    evidence: dict[str, float]
    rules_at_fault: list[str]
    why: str


class HeadAnswer(TypedDict):
    """What every other answer of the service begins with."""

    schema_version: int
    relay: str
    made: str | None
    window: float


class HistoryAnswer(HeadAnswer):
    """What `history --json` prints; the newest last, and no more than `room`."""

    room: int
    events: list[EventAnswer]


class PeerAnswer(TypedDict):
    """One tunnel address, by its peer's pseudonym."""

    pseudonym: str
    family: str
    verdict: VerdictName
    present: bool
    flows: int
    votes: int
    consistency: float | None
    same_destination: float | None
    log10_e: float | None
    exit: str | None
    exit_share: float | None
    peers_on_exit: int


class PeersAnswer(HeadAnswer):
    """What `peers --json` prints."""

    sort: str
    peers_with_flows: int
    matching: int
    peers: list[PeerAnswer]


class ExitAnswer(TypedDict):
    """One exit of a peer."""

    exit: str
    flows: int
    votes: int
    sessions_begun: int


class _TriedAnswer(TypedDict, total=False):
    tried: int


class PeerContrastAnswer(_TriedAnswer):
    """One contrast of one peer; `tried` where it is not pairs of votes."""

    observed: float | None
    chance: float | None


class PredictedAnswer(TypedDict, total=False):
    """Whether a predictor names the peer's exit, or for how many of its flows it does."""

    names_its_exit: bool
    ratio: float | None
    tried: int
    chance: float | None


class ExplainedPeerAnswer(PeerAnswer):
    """Everything about one tunnel address."""

    wide: bool
    log10_e_needed: float | None
    pool_size: int
    exits: list[ExitAnswer]
    contrasts: dict[str, PeerContrastAnswer]
    predictors: dict[str, PredictedAnswer]


class ExplainAnswer(HeadAnswer):
    """What `explain --json` prints."""

    pseudonym: str
    tunnel_addresses: list[ExplainedPeerAnswer]


class HoldingAnswer(TypedDict):
    """One kind of thing that is in memory."""

    where: str
    what: str
    count: int | None
    until: str
    room: int | None
    oldest: float | None
    size: int | None


class RetentionAnswer(HeadAnswer):
    """What `retention --json` prints."""

    holds: list[HoldingAnswer]


class ReplacementAnswer(TypedDict):
    """What to write instead of a NAT rule."""

    text: str
    effect: str
    expression: str
    alternatives: list[list[str]]
    language: str
    replaces: list[str]
    how: str
    commands: str
    iptables: str


class RuleAnswer(TypedDict):
    """What one source-NAT rule leaks, or `count` of them that leak alike, from `where` to `last`."""

    where: str
    text: str
    families: list[str]
    verdict: str
    predictor: str | None
    severity: str
    reach: str
    bits: float | None
    exits: int
    why: str
    remedy: ReplacementAnswer | None
    leaks: bool
    form: str
    comment: str
    note: str
    count: int
    last: NotRequired[str]
    remedy_at: NotRequired[str]  # the `where` that has the remedy, which is for this rule too


class AuditAnswer(TypedDict):
    """What `audit --json` prints."""

    schema_version: int
    result: Literal["clean", "leaks", "not understood", "no source NAT"]
    source: str
    families: list[str]
    rules: list[RuleAnswer]


class CheckAnswer(TypedDict):
    """One thing that the service needs of a host."""

    check: str
    status: Literal["ok", "note", "fail"]
    text: str
    mend: str


class DoctorAnswer(TypedDict):
    """What `doctor --json` prints."""

    schema_version: int
    can_run: bool
    checks: list[CheckAnswer]


class AfterAnswer(TypedDict):
    """What is linked after some relays."""

    relays: int
    pool: int
    combinations: int
    cells: int
    distinct: float
    deviation: float
    bits: float
    excess_bits: float
    guess: float
    blind: float
    same_tuple: float


class LinkageAnswer(TypedDict):
    """What one mapping links."""

    mapping: str
    meaning: str
    caveat: str
    after: list[AfterAnswer]


class SimulateAnswer(LinkageAnswer):
    """What `simulate --json` prints."""

    schema_version: int
    pools: list[int]
    keys: int
    mitigation: LinkageAnswer | None


class GoneAnswer(TypedDict):
    """A line of `watch --json` while nobody answers; all others are of `status --json`, without advice."""

    error: str


class PublicFamilyAnswer(TypedDict):
    """One family as it may be published: numbers are bins, shares in steps of 5 %."""

    verdict: str
    predictor: str | None
    unknown_because: list[str]
    peers: str
    peers_judged: str
    flows: str
    exits: str
    pool_size: str
    leaking_share: float | None
    contrasts: dict[str, float | None]


class PublicEventAnswer(TypedDict("PublicEventAnswer", {"from": str})):  # a word of Python's
    """One change as it may be published."""

    hour: str
    kind: str
    family: str | None
    to: str


class PublicAnswer(TypedDict):
    """What `report --public --json` prints."""

    schema_version: int
    exitprint: str
    floor: int
    verdict: str
    predictor: str | None
    since: str | None
    made: str | None
    hook: str
    window_hours: float
    coverage: float | None
    waiting: bool
    rules_not_understood: bool
    families: dict[str, PublicFamilyAnswer]
    changes: list[PublicEventAnswer]
