# SPDX-License-Identifier: Apache-2.0
"""The words of the judgement: verdicts, reasons, kinds and contrasts, with all that is said of each, once.

Terminal, status page, inspect socket, runbooks, dashboards, metrics and rules are made from the tables below,
or are checked against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The verdicts of docs/leak-modes.md §4, worst first."""

    PREDICTABLE = "predictable"
    EXCLUSIVE = "exclusive"
    PINNED = "pinned"
    DESTINATION_LINKED = "destination_linked"
    SESSION_STICKY = "session_sticky"
    SINGLE_EXIT = "single_exit"
    UNLINKABLE = "unlinkable"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How bad it is: critical pages, a warning is a ticket."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"
    OK = "ok"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why a verdict is `unknown`, for machines."""

    NOT_WATCHED = "not_watched"
    SENSOR_LOST = "sensor_lost"
    COVERAGE = "coverage"
    UNTRACKED = "untracked"
    UNTRANSLATED = "untranslated"
    NO_FLOWS = "no_flows"
    TOO_FEW_VOTES = "too_few_votes"
    TOO_FEW_PEERS = "too_few_peers"
    SMALL_SAMPLE = "small_sample"
    DESTINATIONS_NOT_REPEATED = "destinations_not_repeated"
    DOUBTFUL = "doubtful"
    FEW_STAND_OUT = "few_stand_out"
    STICKY_SO_FAR = "sticky_so_far"
    SILENT_CHANGE = "silent_change"
    ONE_EXIT_UNSETTLED = "one_exit_unsettled"


class ExclusiveKind(StrEnum):
    """What of a peer nobody else has, where the verdict is `exclusive`."""

    EXIT = "exit"
    POOL = "pool"
    PREFIX = "prefix"
    PORT_BLOCK = "port_block"
    UNTRANSLATED = "untranslated"


class ContrastName(StrEnum):
    """Which pairs of flows of one peer are compared."""

    ANY = "any"
    SAME_DESTINATION = "same_destination"
    SAME_PORT = "same_port"


@dataclass(frozen=True, slots=True)
class VerdictWords:
    """What is said of a verdict.

    Attributes:
        rank: 8 is the worst; nothing known comes before all harmless verdicts. Recording rules have it too.
        severity: how bad it is.
        headline: of a relay, in plain words; the verdict's own name comes after it.
        meaning: of one peer.
        first: what to do first.
        runbook: the name of the alert whose runbook says more, None where there is nothing to do.
    """

    rank: int
    severity: Severity
    headline: str
    meaning: str
    first: str
    runbook: str | None = None


@dataclass(frozen=True, slots=True)
class ReasonWords:
    """What is said of a reason.

    Attributes:
        missing: what stands in the way, in half a sentence.
        cure: what would give a verdict, in one sentence.
        first: what to do first.
        runbook: the name of the alert whose runbook says more.
    """

    missing: str
    cure: str
    first: str
    runbook: str = "ExitprintNoVerdict"


VERDICTS = tuple(Verdict)
LEAKS = VERDICTS[: VERDICTS.index(Verdict.SESSION_STICKY)]
CONTRASTS = tuple(ContrastName)

MORE_FLOWS = "More flows of more peers would give a verdict."
_WAIT = "Wait for more traffic, and look again."

VERDICT_WORDS: Mapping[Verdict, VerdictWords] = {
    Verdict.PREDICTABLE: VerdictWords(
        8,
        Severity.CRITICAL,
        "Leaking: anybody can compute which exit address a peer gets",
        "its exit follows from its tunnel address, or from that and the site, without a secret",
        "Replace the NAT rule that chooses without a secret.",
        "ExitprintMappingPredictable",
    ),
    Verdict.EXCLUSIVE: VerdictWords(
        7,
        Severity.CRITICAL,
        "Leaking: some peers have an exit address to themselves",
        "it keeps an exit that nobody else uses: the address is the identity",
        "Let peers share exits: some have one to themselves.",
        "ExitprintExclusiveExits",
    ),
    Verdict.PINNED: VerdictWords(
        6,
        Severity.WARNING,
        "Leaking on this relay: peers keep their exit address",
        "it keeps its exit to all destinations and in all sessions, beyond what chance would do",
        "Decide whether peers are to keep their exit; where not, let each flow draw.",
        "ExitprintMappingPinned",
    ),
    Verdict.DESTINATION_LINKED: VerdictWords(
        5,
        Severity.WARNING,
        "Leaking to sites: a site sees the same exit address whenever a peer returns",
        "a site sees the same exit again when it comes back, beyond what chance would do",
        "Replace the NAT rule that gives a site the same exit again.",
        "ExitprintDestinationLinked",
    ),
    Verdict.SESSION_STICKY: VerdictWords(
        3,
        Severity.INFO,
        "No leak across sessions: each session of a peer gets an exit address of its own",
        "it keeps its exit for a session, and gets a new one with the next",
        "Nothing: one exit for a session and a new one for the next is as it should be.",
    ),
    Verdict.SINGLE_EXIT: VerdictWords(
        2,
        Severity.OK,
        "Nothing to learn: everybody leaves by one exit address",
        "everybody has the same exit: there is nothing to learn from it",
        "Nothing: everybody has the same exit.",
    ),
    Verdict.UNLINKABLE: VerdictWords(
        1,
        Severity.OK,
        "No leak: exit addresses do not say who the peer is",
        "its exits look as if they were drawn anew for each flow",
        "Nothing.",
    ),
    Verdict.UNKNOWN: VerdictWords(
        4,
        Severity.UNKNOWN,
        "Not known: the evidence does not allow a verdict",
        "there is too little evidence for a word about it",
        "Wait for more traffic, and look again; the reason says what is missing.",
        "ExitprintNoVerdict",
    ),
}
RANKED = tuple(sorted(VERDICTS, key=lambda verdict: -VERDICT_WORDS[verdict].rank))
"""As a relay's verdict is chosen from its families': the worst first, `unknown` before all harmless ones."""

REASON_WORDS: Mapping[Reason, ReasonWords] = {
    Reason.NOT_WATCHED: ReasonWords(
        "the service waits for WireGuard, so nobody is watched now",
        "What is waited for, once it is there, would give a verdict.",
        "See to what the service waits for.",
    ),
    Reason.SENSOR_LOST: ReasonWords(
        "the process that knows the peers has ended, so nobody is watched now",
        "The service, once it is started again, would give a verdict.",
        "Start the service again, and read in its log why it ended.",
        "ExitprintDetectorDown",
    ),
    Reason.COVERAGE: ReasonWords(
        "too many flows were lost or belong to no known peer",
        "Larger tables, or the missing peers made known, would give a verdict.",
        "Find out what is lost: a harmless verdict needs nearly all flows.",
        "ExitprintCoverageLow",
    ),
    Reason.UNTRACKED: ReasonWords(
        "packets of peers leave without an entry in connection tracking, so their exits are not seen",
        "Rules that let connection tracking see the peers' packets would give a verdict.",
        "Look for a notrack rule, or a family that no NAT rule translates.",
        "ExitprintCoverageLow",
    ),
    Reason.UNTRANSLATED: ReasonWords(
        "flows of peers leave under the peer's private address, so another machine chooses the exit",
        "The verdict of the machine that translates them would say more.",
        "Watch the machine that translates these flows: this one does not choose their exit.",
    ),
    Reason.NO_FLOWS: ReasonWords("no translated flow of a peer was seen", MORE_FLOWS, _WAIT),
    Reason.TOO_FEW_VOTES: ReasonWords(
        "no peer reached three flows that are new in both destination and source port", MORE_FLOWS, _WAIT
    ),
    Reason.TOO_FEW_PEERS: ReasonWords(
        "too few peers, with too few flows to different destinations, to have shown a leak", MORE_FLOWS, _WAIT
    ),
    Reason.SMALL_SAMPLE: ReasonWords(
        "the evidence would not yet have shown a leak of a small part of the peers", MORE_FLOWS, _WAIT
    ),
    Reason.DESTINATIONS_NOT_REPEATED: ReasonWords(
        "peers went back to the same destination too seldom to tell whether a site sees the same exit again",
        "More repeated visits would give a verdict.",
        _WAIT,
    ),
    Reason.DOUBTFUL: ReasonWords(
        "exits repeat more than chance likely has it, yet not surely so", MORE_FLOWS, _WAIT
    ),
    Reason.FEW_STAND_OUT: ReasonWords(
        "one or two peers keep their exits beyond chance, too few for a word about the relay",
        "More peers that do the same, or a rule that says so, would give a verdict.",
        "Look at the peers that stand out, and at the rule that serves them.",
    ),
    Reason.STICKY_SO_FAR: ReasonWords(
        "peers keep their exit so far, and no second session has shown whether the next one gets another",
        "Second sessions of the same peers would give a verdict.",
        "Wait until peers have come back, or ask the rules: exitprint audit.",
    ),
    Reason.SILENT_CHANGE: ReasonWords(
        "the way that exits are chosen has changed, though no rule that we read has",
        "New evidence, collected since the change, would give a verdict.",
        "Find out what changed: marks, routes, uplinks, or a rule that is not read.",
    ),
    Reason.ONE_EXIT_UNSETTLED: ReasonWords(
        "one exit alone was seen, by too few peers to tell a single exit from a coincidence",
        MORE_FLOWS,
        _WAIT,
    ),
}

EXCLUSIVE_WORDS: Mapping[ExclusiveKind, str] = {
    ExclusiveKind.EXIT: "alone on an exit address",
    ExclusiveKind.POOL: "alone on a pool of exit addresses",
    ExclusiveKind.PREFIX: "alone on a prefix of exit addresses",
    ExclusiveKind.PORT_BLOCK: "alone on a block of source ports of an exit address",
    ExclusiveKind.UNTRANSLATED: "not translated at all: the tunnel address itself is what sites see",
}

CONTRAST_WORDS: Mapping[ContrastName, str] = {
    ContrastName.ANY: "to different sites",
    ContrastName.SAME_DESTINATION: "to the same site",
    ContrastName.SAME_PORT: "from the same source port",
}


def plain(verdict: str) -> str:
    """A verdict's name as words; the name that metrics and rules use has underscores."""
    return verdict.replace("_", " ")


def words_of(verdict: str) -> VerdictWords:
    """What is said of a verdict by its name; of a name that is none, what is said of `unknown`."""
    known = verdict in VERDICTS
    return VERDICT_WORDS[Verdict(verdict) if known else Verdict.UNKNOWN]
