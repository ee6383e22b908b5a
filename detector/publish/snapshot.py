# SPDX-License-Identifier: Apache-2.0
"""One moment of the service, never changed after it was made: the report, and the service's own state.

Metrics and the status object are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from detector import __version__
from detector.analysis.changes import Change
from detector.analysis.report import AnonymityReport, FamilyReport, Report
from detector.base.answers import SCHEMA_VERSION
from detector.base.family import Family
from detector.base.moments import written
from detector.base.verdicts import LEAKS, VERDICTS, Reason
from detector.config.model import Config
from detector.config.reload import Reload
from detector.counts.canaries import Place
from detector.counts.load import Load
from detector.counts.observing import Flood
from detector.kernel.bpf import RunTime
from detector.kernel.tables import LOSSES, Outcome, capacities
from detector.predictors import NAMES
from detector.publish.events import Event
from detector.publish.exporter import Samples
from detector.publish.peers import PeerView
from detector.publish.retention import Holding

Rows = list[tuple[tuple[str, ...], float]]

_NO_REPORT = {"verdict": "unknown", "predictor": None, "coverage": None, "why": "There is no report yet."}
_OUTCOMES = {
    Outcome.COUNTED: "counted",
    Outcome.NOT_A_PEER: "not_a_peer",
    Outcome.NOT_TRANSLATED: "not_translated",
    Outcome.UNATTRIBUTED: "unattributed",
    Outcome.LOST_PAIRS: "lost",
}


@dataclass(frozen=True, slots=True)
class About:
    """What hardly changes while the service runs.

    Attributes:
        page: where a browser on the relay finds the status page, empty where that is not known.
    """

    config: Config
    hook: str
    page: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment.

    Attributes:
        report: None before the first cycle.
        since, made, epoch_since: seconds since 1970: the verdict's, the report's, the rules' beginning.
        cycles, failures: cycles that made a report, and that did not.
        durations: seconds of the last cycle by phase.
        outcomes: flows since the start.
        fill: entries in use by table.
        refused_peers: tunnel addresses that the table has no room for.
        resident: bytes by process.
        loads: how flows are spread over the exits.
        epoch: number of the current epoch, 0 before the rules were read.
        change: by family, what the last change of the rules did to the mapping.
        waiting: what is waited for, empty for nothing.
        sensor_seen: when the sensor said something last, in seconds since 1970; 0 before it did.
        reload: how reading the configuration went last.
        peers: by family, for who asks on the relay itself.
        holds: what is in memory.
        canaries: where each sits in its pool.
        floods: by family, the peer that has most of what the tables had no room for.
    """

    report: Report | None = None
    since: float = 0.0
    made: float = 0.0
    cycles: int = 0
    failures: int = 0
    durations: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[tuple[Family, Outcome], int] = field(default_factory=dict)
    drained_rows: int = 0
    fill: Mapping[str, int] = field(default_factory=dict)
    refused_peers: int = 0
    resident: Mapping[str, int] = field(default_factory=dict)
    run_time: RunTime = field(default_factory=RunTime)
    loads: Mapping[Family, Load] = field(default_factory=dict)
    epoch: int = 0
    epoch_since: float = 0.0
    change: Mapping[Family, Change] = field(default_factory=dict)
    not_understood: int = 0
    waiting: str = ""
    sensor_seen: float = 0.0
    reload: Reload = field(default_factory=Reload)
    peers: tuple[PeerView, ...] = field(default=(), repr=False)
    holds: tuple[Holding, ...] = ()
    family_since: Mapping[Family, float] = field(default_factory=dict)
    news: tuple[Event, ...] = field(default=(), repr=False)
    history: tuple[Event, ...] = field(default=(), repr=False)
    canaries: tuple[Place, ...] = ()
    floods: tuple[Flood, ...] = ()


def status(now: Snapshot, about: About) -> dict[str, object]:
    """The report object of the design, with what the service knows beside it."""
    report = now.report.as_dict() if now.report else dict(_NO_REPORT)
    return report | {
        "schema_version": SCHEMA_VERSION,
        "families": _families(now),
        "relay": about.config.relay,
        "since": _time(now.since),
        "made": _time(now.made),
        "cycles": now.cycles,
        "interval": about.config.interval,
        "window": about.config.window,
        "anonymity_floor": about.config.anonymity_floor,
        "epoch": {
            "number": now.epoch,
            "since": _time(now.epoch_since),
            "change": {family.value: change.as_dict() for family, change in now.change.items()},
        },
        "configuration": {
            "last_reload_successful": now.reload.good,
            "read": _time(now.reload.at),
            "restart_needed": list(now.reload.restart),
        },
        "hook": about.hook,
        "page": about.page,
        "runbooks": about.config.runbooks or f"{about.page}/runbooks",
        "waiting": now.waiting,
        "rules_not_understood": now.not_understood,
        "canaries": [_canary(place) for place in now.canaries],
        "floods": [
            {
                "pseudonym": one.name,
                "family": one.family.value,
                "flows": one.flows,
                "share": round(one.flows / one.refused, 2),
            }
            for one in now.floods
        ],
        "lost": {reason: _total(now, outcome) for reason, outcome in LOSSES.items()},
        "unattributed": _total(now, Outcome.UNATTRIBUTED),
    }


def _canary(place: Place) -> dict[str, object]:
    return {
        "canary": place.name,
        "family": place.family.value,
        "position": place.interval,
        "pool_size": place.pool_size,
        "votes": place.votes,
        "kept": place.kept,
    }


def _families(now: Snapshot) -> dict[str, dict[str, object]]:
    """Each family's part of the report, with since when it stands and the rules that do it."""
    families = now.report.families if now.report else {}
    return {
        family.value: report.as_dict()
        | {"since": _time(now.family_since.get(family, 0.0)), "rules_at_fault": list(rules_at_fault(report))}
        for family, report in families.items()
    }


def _time(seconds: float) -> str | None:
    return written(seconds) if seconds else None


def _total(now: Snapshot, outcome: Outcome) -> int:
    return sum(count for (_, one), count in now.outcomes.items() if one is outcome)


def samples(now: Snapshot, about: About) -> Samples:
    """Everything for /metrics, by name of the metric."""
    found: dict[str, Rows] = {
        "build": [((__version__,), 1)],
        "hook": [((about.hook,), 1)] if about.hook else [],
        "flows": _flows(now),
        "events_lost": _lost(now),
        "cycle_duration_seconds": [((phase,), seconds) for phase, seconds in now.durations.items()],
        "cycles": [(("good",), now.cycles), (("failed",), now.failures)],
        "last_good_cycle_timestamp_seconds": [((), now.made)],
        "rows_drained": [((), now.drained_rows)],
        "table_entries": [((table,), entries) for table, entries in now.fill.items()],
        "table_capacity": [((table,), fits) for table, fits in capacities(about.config.tables).items()],
        "peers_refused": [((), now.refused_peers)],
        "process_resident_memory_bytes": [((process,), size) for process, size in now.resident.items()],
        "program_run_seconds": [((), now.run_time.nanoseconds / 1e9)],
        "program_runs": [((), now.run_time.runs)],
        "rules_epoch": [((), now.epoch)],
        "rules_not_understood": [((), now.not_understood)],
        "waiting": [((), float(bool(now.waiting)))],
        "sensor_last_seen_timestamp_seconds": [((), now.sensor_seen)],
        "config_last_reload_successful": [((), float(now.reload.good))],
        "config_last_reload_success_timestamp_seconds": [((), now.reload.at)],
        "config_restart_needed": [((), len(now.reload.restart))],
        "canaries": [((), len(about.config.canaries.peers))],
        **_canaries(now.canaries),
    }
    if now.report:
        found["coverage_ratio"] = [((), now.report.coverage)]
        found["verdict_since_timestamp_seconds"] = [((), now.since)]
        flooded = {one.family for one in now.floods}
        found["flood"] = [((family,), float(family in flooded)) for family in Family]
        for family, report in now.report.families.items():
            for name, rows in _family(family, report).items():
                found.setdefault(name, []).extend(rows)
    return found


def _canaries(places: Sequence[Place]) -> dict[str, Rows]:
    """The place of each canary: never its exit address."""
    found: dict[str, Rows] = {
        "canary_pool_size": [((one.name, one.family), one.pool_size) for one in places],
        "canary_votes": [((one.name, one.family), one.votes) for one in places],
        "canary_kept_ratio": [((one.name, one.family), one.kept) for one in places if one.kept is not None],
    }
    intervals = [((one.name, one.family), one.interval) for one in places if one.interval]
    found["canary_position_low_ratio"] = [(labels, interval[0]) for labels, interval in intervals]
    found["canary_position_high_ratio"] = [(labels, interval[1]) for labels, interval in intervals]
    return found


def _flows(now: Snapshot) -> Rows:
    return [
        ((family, name), float(now.outcomes[family, outcome]))
        for family in Family
        for outcome, name in _OUTCOMES.items()
        if (family, outcome) in now.outcomes
    ]


def _lost(now: Snapshot) -> Rows:
    reasons = LOSSES | {"unattributed": Outcome.UNATTRIBUTED}
    return [((reason,), float(_total(now, outcome))) for reason, outcome in reasons.items()]


def _family(family: Family, report: FamilyReport) -> dict[str, Rows]:
    return {
        "relay_verdict": [((family, verdict), float(verdict is report.verdict)) for verdict in VERDICTS],
        "verdict_unknown_reason": [((family, reason), float(reason in report.reasons)) for reason in Reason],
        "mapping_predictor": [((family, name), float(name == report.predictor)) for name in NAMES],
        "mapping_explained_ratio": [((family, name), one.ratio) for name, one in report.explained.items()],
        "mapping_chance_ratio": [((family, name), one.chance) for name, one in report.explained.items()],
        "leak_bits": [((family,), report.leak_bits)],
        "leaking_peers_ratio": [((family,), report.leaking_share)],
        "peers": [((family, verdict), report.peers_by_verdict.get(verdict, 0)) for verdict in VERDICTS],
        "judged_peers": [((family,), report.judged)],
        "untranslated_peers": [
            ((family, kind), report.untranslated.get(kind, (0, 0))[1])
            for kind in ("global", "private", "untracked")
        ],
        "exit_addresses": [
            ((family, "in_use"), report.exits),
            ((family, "configured"), 0 if report.pool_guessed else report.pool_size),
            ((family, "guessed"), report.pool_size if report.pool_guessed else 0),
        ],
        "anonymity_set_peers": _anonymity_set(family, report.anonymity_set),
        **_consistency(family, report),
    }


def _anonymity_set(family: Family, peers: AnonymityReport | None) -> Rows:
    if peers is None:
        return []
    return [
        ((family, "min"), peers.least),
        ((family, "median"), peers.median),
        ((family, "effective_min"), peers.effective_least),
        ((family, "effective_median"), peers.effective_median),
    ]


def _consistency(family: Family, report: FamilyReport) -> dict[str, Rows]:
    """The contrasts that were tried, against chance."""
    tried = {name: one for name, one in report.contrasts.items() if one.peers}
    return {
        "consistency_ratio": [
            ((family, name), one.kappa) for name, one in tried.items() if one.kappa is not None
        ],
        "consistency_observed_ratio": [((family, name), one.observed) for name, one in tried.items()],
        "consistency_chance_ratio": [((family, name), one.chance) for name, one in tried.items()],
    }


def rules_at_fault(report: FamilyReport) -> tuple[str, ...]:
    """Where the rules stand whose peers show the family's verdict, if that is a leak; each once."""
    if report.verdict not in LEAKS:
        return ()
    found = (
        pool.origin
        for pool in report.pools
        if pool.origin and pool.judged and 2 * pool.by_verdict.get(report.verdict, 0) >= pool.judged
    )
    return tuple(dict.fromkeys(found))
