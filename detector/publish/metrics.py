# SPDX-License-Identifier: Apache-2.0
"""The registry of metrics: name, type, unit, help, labels with their values, and source of each.

The exporter, docs/metrics.md and the checks of alert rules and dashboards are made from it, so a name is
changed here and nowhere else. No label ever holds a peer, a key, a tunnel address or a destination, and no
label has more values than are written here: the number of series does not grow with the peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detector.base.family import Family
from detector.base.verdicts import CONTRASTS, VERDICTS, Reason
from detector.kernel.tables import LOSSES
from detector.predictors import NAMES

Unit = Literal["", "seconds", "bytes", "ratio", "bits"]


@dataclass(frozen=True, slots=True)
class Label:
    """One label.

    Attributes:
        values: all that it can have; empty for one constant that the running program decides.
    """

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: without the `exitprint_` prefix; a counter's without `_total`, an info's without `_info`.
        kind: as in the exposition format.
        unit: the end of the name, as OpenMetrics wants it; empty for numbers of things.
        labels: in the order of the samples.
        help: one sentence.
        source: where the value comes from.
    """

    name: str
    kind: Literal["gauge", "counter", "info"]
    unit: Unit
    labels: tuple[Label, ...]
    help: str
    source: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels' names."""
        return tuple(label.name for label in self.labels)

    @property
    def series(self) -> str:
        """The name of the samples, as a query has it."""
        return PREFIX + self.name + {"gauge": "", "counter": "_total", "info": "_info"}[self.kind]


PREFIX = "exitprint_"

_FAMILY = Label("family", tuple(Family))
_VERDICT = Label("verdict", VERDICTS)
_PREDICTOR = Label("predictor", NAMES)
_CONTRAST = Label("contrast", CONTRASTS)
_CANARY = Label("canary")
_TABLE = Label("table", ("pairs", "peers", "exits", "window"))

METRICS = (
    Metric("relay_verdict", "gauge", "", (_FAMILY, _VERDICT),
           "1 for the verdict of the family, 0 for all others.", "report"),
    Metric("verdict_since_timestamp_seconds", "gauge", "seconds", (),
           "Since when the relay has the verdict that it has.", "report"),
    Metric("verdict_unknown_reason", "gauge", "", (_FAMILY, Label("reason", tuple(Reason))),
           "1 for each reason why the verdict of the family is unknown, 0 for all others.", "report"),
    Metric("mapping_predictor", "gauge", "", (_FAMILY, _PREDICTOR),
           "1 for the predictor that the verdict predictable names, 0 for all others.", "report"),
    Metric("mapping_explained_ratio", "gauge", "ratio", (_FAMILY, _PREDICTOR),
           "Share of trials in which the predictor named the exit.", "report"),
    Metric("mapping_chance_ratio", "gauge", "ratio", (_FAMILY, _PREDICTOR),
           "Share of trials in which the predictor would name the exit by chance.", "report"),
    Metric("consistency_ratio", "gauge", "ratio", (_FAMILY, _CONTRAST),
           "Two flows of a peer share an exit more often than by chance: 0 not at all, 1 always.", "report"),
    Metric("consistency_observed_ratio", "gauge", "ratio", (_FAMILY, _CONTRAST),
           "Share of pairs of flows of a peer that share an exit, mean over peers.", "report"),
    Metric("consistency_chance_ratio", "gauge", "ratio", (_FAMILY, _CONTRAST),
           "Share of pairs of flows of a peer that would share an exit if exits were independent.", "report"),
    Metric("leak_bits", "gauge", "bits", (_FAMILY,),
           "What one observed exit tells about the peer's next one.", "report"),
    Metric("leaking_peers_ratio", "gauge", "ratio", (_FAMILY,),
           "Share of the judged peers that leaks.", "report"),
    Metric("peers", "gauge", "", (_FAMILY, _VERDICT),
           "Peers with flows in the window, by the verdict on each of them.", "report"),
    Metric("judged_peers", "gauge", "", (_FAMILY,),
           "Peers with enough evidence for a word about them.", "report"),
    Metric("exit_addresses", "gauge", "", (_FAMILY, Label("state", ("in_use", "configured", "guessed"))),
           "Exit addresses in use, and those of the pools, which are guessed where none is told.", "report"),
    Metric("anonymity_set_peers", "gauge", "",
           (_FAMILY, Label("statistic", ("min", "median", "effective_min", "effective_median"))),
           "Peers on an exit address that is in use; effective: as many equally busy ones.", "report"),
    Metric("flows", "counter", "",
           (_FAMILY, Label("outcome", ("counted", "not_a_peer", "not_translated", "unattributed", "lost"))),
           "New flows by what became of them.", "kernel table outcomes"),
    Metric("events_lost", "counter", "", (Label("reason", (*LOSSES, "unattributed")),),
           "Flows or measurements that a table had no room for.", "kernel table outcomes"),
    Metric("flood", "gauge", "", (_FAMILY,),
           "Whether one peer has most of the flows in the window that the tables had no room for.", "window"),
    Metric("coverage_ratio", "gauge", "ratio", (),
           "Share of the peers' translated flows in the window that were counted and attributed.", "report"),
    Metric("untranslated_peers", "gauge", "", (_FAMILY, Label("kind", ("global", "private", "untracked"))),
           "Peers whose flows left with their own address, global or private, or past connection tracking.",
           "report"),
    Metric("canaries", "gauge", "", (), "Canaries that the configuration declares.", "configuration"),
    Metric("canary_position_low_ratio", "gauge", "ratio", (_CANARY, _FAMILY),
           "Where in its pool the canary's most used exit begins: k / N of exit k of N.", "window"),
    Metric("canary_position_high_ratio", "gauge", "ratio", (_CANARY, _FAMILY),
           "Where in its pool the canary's most used exit ends: (k + 1) / N.", "window"),
    Metric("canary_pool_size", "gauge", "", (_CANARY, _FAMILY),
           "Exit addresses of the pool that the canary's most used exit is in, 0 for none.", "window"),
    Metric("canary_votes", "gauge", "", (_CANARY, _FAMILY),
           "Flows of the canary to new destinations from new source ports, in the window.", "window"),
    Metric("canary_kept_ratio", "gauge", "ratio", (_CANARY, _FAMILY),
           "Share of the canary's votes that took its most used exit: 1 where it keeps to it.", "window"),
    Metric("hook", "info", "", (Label("hook"),),
           "The hook that the kernel program is attached to.", "loader"),
    Metric("build", "info", "", (Label("version"),), "The version that is running.", "package"),
    Metric("cycle_duration_seconds", "gauge", "seconds", (Label("phase", ("collect", "judge")),),
           "Time that the last cycle took, by phase.", "aggregator"),
    Metric("cycles", "counter", "", (Label("result", ("good", "failed")),),
           "Cycles of drain and analysis, by result.", "aggregator"),
    Metric("last_good_cycle_timestamp_seconds", "gauge", "seconds", (),
           "When the last cycle ended that made a report.", "aggregator"),
    Metric("rows_drained", "counter", "", (), "Rows of counts read from the kernel tables.", "aggregator"),
    Metric("table_entries", "gauge", "", (_TABLE,),
           "Entries in use: blocks of pairs at the last drain, peers, exits met, pairs in the window.",
           "aggregator"),
    Metric("table_capacity", "gauge", "", (Label("table", ("pairs", "peers", "exits")),),
           "Entries that fit.", "configuration"),
    Metric("peers_refused", "gauge", "", (),
           "Tunnel addresses that tables.peers has no room for.", "sensor"),
    Metric("process_resident_memory_bytes", "gauge", "bytes", (Label("process", ("sensor", "aggregator")),),
           "Resident memory of the sensor and of the aggregator.", "procfs"),
    Metric("program_run_seconds", "counter", "seconds", (),
           "Time in the kernel program; 0 while kernel.bpf_stats_enabled is off.", "kernel"),
    Metric("program_runs", "counter", "", (),
           "Runs of the kernel program; 0 while kernel.bpf_stats_enabled is off.", "kernel"),
    Metric("rules_epoch", "gauge", "", (),
           "Number of the epoch: it grows when the NAT rules change.", "sensor"),
    Metric("rules_not_understood", "gauge", "", (),
           "Rules about source NAT that are not understood.", "sensor"),
    Metric("waiting", "gauge", "", (), "1 while the service waits for WireGuard or conntrack.", "sensor"),
    Metric("sensor_last_seen_timestamp_seconds", "gauge", "seconds", (),
           "When the sensor last said that it lives; without it nothing is followed.", "aggregator"),
    Metric("config_last_reload_successful", "gauge", "", (),
           "1, or 0 if the configuration file was not accepted at the last SIGHUP: the one before stands.",
           "sensor"),
    Metric("config_last_reload_success_timestamp_seconds", "gauge", "seconds", (),
           "When the configuration file was last read and accepted.", "sensor"),
    Metric("config_restart_needed", "gauge", "", (),
           "Keys of the configuration file that differ from what is in use and need a restart.", "sensor"),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}
