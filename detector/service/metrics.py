# SPDX-License-Identifier: Apache-2.0
"""The registry of metrics: name, type, help, labels and source of each; the exporter is made from it.

No label ever holds a peer, a key, a tunnel address or a destination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: without the `exitprint_` prefix; a counter's without `_total`, an info's without `_info`.
        kind: as in the exposition format.
        labels: their names, in the order of the samples.
        help: one sentence.
        source: where the value comes from.
    """

    name: str
    kind: Literal["gauge", "counter", "info"]
    labels: tuple[str, ...]
    help: str
    source: str


PREFIX = "exitprint_"

METRICS = (
    Metric("relay_verdict", "gauge", ("family", "verdict"),
           "1 for the verdict of the family, 0 for all others.", "report"),
    Metric("mapping_explained_ratio", "gauge", ("family", "predictor"),
           "Share of trials in which the predictor named the exit.", "report"),
    Metric("mapping_chance_ratio", "gauge", ("family", "predictor"),
           "Share of trials in which the predictor would name the exit by chance.", "report"),
    Metric("consistency_ratio", "gauge", ("family", "contrast"),
           "Two flows of a peer share an exit more often than by chance: 0 not at all, 1 always.", "report"),
    Metric("leak_bits", "gauge", ("family",),
           "What one observed exit tells about the peer's next one.", "report"),
    Metric("peers", "gauge", ("family", "verdict"),
           "Peers by the verdict on each of them.", "report"),
    Metric("exit_addresses", "gauge", ("family", "state"),
           "Exit addresses that are configured, and that are in use in the window.", "report"),
    Metric("flows", "counter", ("family", "outcome"),
           "New flows by what became of them.", "kernel table outcomes"),
    Metric("events_lost", "counter", ("reason",),
           "Flows or measurements that a table had no room for.", "kernel table outcomes"),
    Metric("coverage_ratio", "gauge", (),
           "Share of the peers' translated flows in the window that were counted and attributed.", "report"),
    Metric("hook", "info", ("hook",), "The hook that the kernel program is attached to.", "loader"),
    Metric("build", "info", ("version",), "The version that is running.", "package"),
    Metric("cycle_duration_seconds", "gauge", ("phase",),
           "Time that the last cycle took, by phase.", "aggregator"),
    Metric("cycles", "counter", ("result",), "Cycles of drain and analysis, by result.", "aggregator"),
    Metric("last_good_cycle_timestamp_seconds", "gauge", (),
           "When the last cycle ended that made a report.", "aggregator"),
    Metric("rows_drained", "counter", (), "Pairs read from the kernel tables.", "aggregator"),
    Metric("table_entries", "gauge", ("table",),
           "Entries in use; for pairs, those that the last drain found.", "aggregator"),
    Metric("table_capacity", "gauge", ("table",), "Entries that fit.", "configuration"),
    Metric("peers_refused", "gauge", (),
           "Tunnel addresses that tables.peers has no room for.", "sensor"),
    Metric("process_resident_memory_bytes", "gauge", ("process",),
           "Resident memory of the sensor and of the aggregator.", "procfs"),
    Metric("program_run_seconds", "counter", (),
           "Time in the kernel program; 0 while kernel.bpf_stats_enabled is off.", "kernel"),
    Metric("program_runs", "counter", (),
           "Runs of the kernel program; 0 while kernel.bpf_stats_enabled is off.", "kernel"),
    Metric("rules_epoch", "gauge", (), "Number of the epoch: it grows when the NAT rules change.", "sensor"),
    Metric("rules_not_understood", "gauge", (),
           "Rules about source NAT that are not understood.", "sensor"),
    Metric("waiting", "gauge", (), "1 while the service waits for WireGuard or conntrack.", "sensor"),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}
