# SPDX-License-Identifier: Apache-2.0
"""The dashboard *Relay*: one relay's verdict, the evidence for it, and the detector's own health and cost."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.style import (
    ANY_IS_BAD,
    PLAIN,
    RANK_STEPS,
    About,
    AnyPanel,
    Part,
    Query,
    blank,
    chance_dashed,
    in_colours_of_verdicts,
    laid_out,
    series,
    stat,
    states,
)

PREDICTABLE, PINNED = "ExitprintMappingPredictable", "ExitprintMappingPinned"
EXCLUSIVE, LINKED = "ExitprintExclusiveExits", "ExitprintDestinationLinked"
NO_VERDICT, COVERAGE, LOST = "ExitprintNoVerdict", "ExitprintCoverageLow", "ExitprintEventsLost"
TABLES, DOWN, REGRESSED = "ExitprintTableNearlyFull", "ExitprintDetectorDown", "ExitprintMitigationRegressed"
_ONE = 'fleet=~"$fleet", relay=~"$relay"'


def _metric(name: str, more: str = "") -> str:
    """A selector of one relay's series."""
    return f"{name}{{{_ONE}{more}}}"


def relay() -> Dashboard:
    """The dashboard."""
    about = "One relay: its verdict over time, the evidence behind it, and the detector's health and cost."
    parts = (_verdict(), _evidence(), _exits(), _flows(), _detector())
    return laid_out(blank("exitprint / Relay", "exitprint-relay", about, many=False), parts)


def _verdict() -> Part:
    now = stat(
        About("Verdict", "The verdict of each family now.", PREDICTABLE, "short", RANK_STEPS),
        Query(_metric("relay_family:exitprint_verdict:rank"), "{{family}}: {{verdict}}"),
        named=True,
    )
    since = stat(
        About("Since", "Since when the relay has its verdict.", REGRESSED, "dateTimeFromNow", PLAIN),
        Query(f"max({_metric('exitprint_verdict_since_timestamp_seconds')}) * 1000", "since"),
    )
    bits = stat(
        About(
            "Leak",
            "Bits that one observed exit tells about the peer's next one.",
            PREDICTABLE,
            "suffix: bits",
            {None: "green", 1: "orange", 3: "red"},
        ),
        Query(_metric("exitprint_leak_bits"), "{{family}}"),
    )
    share = stat(
        About(
            "Peers that leak",
            "Share of the judged peers.",
            PINNED,
            "percentunit",
            {None: "green", 0.01: "orange", 0.1: "red"},
        ),
        Query(_metric("exitprint_leaking_peers_ratio"), "{{family}}"),
    )
    coverage = stat(
        About(
            "Coverage",
            "Share of the peers' flows that were counted. Below 0.95 the verdict is not trusted.",
            COVERAGE,
            "percentunit",
            {None: "red", 0.95: "green"},
        ),
        Query(_metric("exitprint_coverage_ratio"), "coverage"),
    )
    over_time = states(
        About(
            "Verdict over time",
            "Purple is not known, which is not safe. A gap is a family without flows, or data not trusted.",
            REGRESSED,
            "short",
            RANK_STEPS,
        ),
        Query(f"max by (family) ({_metric('relay_family:exitprint_verdict:rank')})", "{{family}}"),
        ranks=True,
    )
    unknown = states(
        About(
            "Why the verdict is unknown",
            "1 for each reason. no_flows alone is a family that is not used.",
            NO_VERDICT,
            "short",
            {None: "transparent", 1: "purple"},
        ),
        Query(
            f"max by (family, reason) ({_metric('exitprint_verdict_unknown_reason')})",
            "{{family}} {{reason}}",
        ),
    )
    numbers: list[tuple[AnyPanel, int, int]] = [
        (now, 8, 4), (since, 4, 4), (bits, 4, 4), (share, 4, 4), (coverage, 4, 4),
    ]  # fmt: skip
    return Part("Verdict", [*numbers, (over_time, 24, 5), (unknown, 24, 8)])


def _evidence() -> Part:
    consistency = series(
        About(
            "Consistency above chance",
            "0: exits are independent of the peer. 1: always the same exit. By contrast: any two flows with"
            " new destination and port, to the same destination, from the same source port.",
            PINNED,
            "percentunit",
            {None: "green", 0.25: "red"},
        ),
        Query(_metric("exitprint_consistency_ratio"), "{{family}} {{contrast}}"),
        most=1,
    )
    against = chance_dashed(
        series(
            About(
                "Consistency against chance",
                "Share of pairs of flows of a peer with the same exit; what independent exits would give.",
                LINKED,
                "percentunit",
            ),
            Query(_metric("exitprint_consistency_observed_ratio"), "{{family}} {{contrast}}"),
            Query(_metric("exitprint_consistency_chance_ratio"), "{{family}} {{contrast}}, chance"),
            most=1,
        )
    )
    explained = chance_dashed(
        series(
            About(
                "Explained against chance",
                "Share of trials in which a predictor without a secret named the exit; what chance gives.",
                PREDICTABLE,
                "percentunit",
            ),
            Query(_metric("exitprint_mapping_explained_ratio"), "{{family}} {{predictor}}"),
            Query(_metric("exitprint_mapping_chance_ratio"), "{{family}} {{predictor}}, chance"),
            most=1,
        )
    )
    named = states(
        About(
            "Predictor",
            "1 for the predictor that the verdict predictable names.",
            PREDICTABLE,
            "short",
            {None: "transparent", 1: "red"},
        ),
        Query(
            f"max by (family, predictor) ({_metric('exitprint_mapping_predictor')})",
            "{{family}} {{predictor}}",
        ),
    )
    return Part("Evidence", [(consistency, 12, 9), (against, 12, 9), (explained, 12, 9), (named, 12, 9)])


def _exits() -> Part:
    exits = series(
        About("Exits", "Exit addresses in use in the window, and configured.", EXCLUSIVE),
        Query(_metric("exitprint_exit_addresses"), "{{family}} {{state}}"),
    )
    sets = series(
        About(
            "Peers on an exit",
            "Sizes of the anonymity sets: smallest and median, by number and by effective number.",
            EXCLUSIVE,
            "short",
            {None: "red", 2: "green"},
        ),
        Query(_metric("exitprint_anonymity_set_peers"), "{{family}} {{statistic}}"),
    )
    peers = in_colours_of_verdicts(
        series(
            About("Peers by verdict", "Peers with flows in the window, both families.", PINNED),
            Query(f"sum by (verdict) ({_metric('exitprint_peers')})", "{{verdict}}"),
            stacked=True,
        )
    )
    judged = series(
        About("Judged peers", "Peers with enough evidence for a word about them.", NO_VERDICT),
        Query(_metric("exitprint_judged_peers"), "{{family}}"),
    )
    return Part("Exits and peers", [(exits, 12, 8), (sets, 12, 8), (peers, 12, 8), (judged, 12, 8)])


def _flows() -> Part:
    flows = series(
        About("New flows", "New flows a second by what became of them.", COVERAGE, "cps"),
        Query(
            f"sum by (family, outcome) (rate({_metric('exitprint_flows_total')}[$__rate_interval]))",
            "{{family}} {{outcome}}",
        ),
        stacked=True,
    )
    lost = series(
        About("Events lost", "Flows or measurements lost a second, by reason.", LOST, "cps", ANY_IS_BAD),
        Query(
            f"sum by (reason) (rate({_metric('exitprint_events_lost_total')}[$__rate_interval]))",
            "{{reason}}",
        ),
    )
    coverage = series(
        About(
            "Coverage",
            "Share of the peers' flows in the window that were counted.",
            COVERAGE,
            "percentunit",
            {None: "red", 0.95: "green"},
        ),
        Query(_metric("exitprint_coverage_ratio"), "coverage"),
        most=1,
    )
    return Part("Flows", [(flows, 12, 8), (lost, 6, 8), (coverage, 6, 8)])


def _detector() -> Part:
    return Part("The detector", [*_health(), *_cost()])


def _health() -> list[tuple[AnyPanel, int, int]]:
    up = states(
        About("Answers", "Whether Prometheus gets an answer.", DOWN, "short", {None: "red", 1: "green"}),
        Query(_metric("up", ', job="exitprint"'), "up"),
        Query(_metric("exitprint_waiting"), "waiting"),
    )
    hook = stat(
        About("Hook and version", "The hook in use, and the version that runs.", DOWN),
        Query(_metric("exitprint_hook_info"), "{{hook}}"),
        Query(_metric("exitprint_build_info"), "{{version}}"),
        named=True,
    )
    age = series(
        About(
            "Age of the report",
            "Time since the last cycle that made a report.",
            NO_VERDICT,
            "s",
            {None: "green", 300: "red"},
        ),
        Query(f"time() - {_metric('exitprint_last_good_cycle_timestamp_seconds')}", "age"),
    )
    cycles = series(
        About("Cycles", "Cycles a second by result.", NO_VERDICT, "cps"),
        Query(f"sum by (result) (rate({_metric('exitprint_cycles_total')}[$__rate_interval]))", "{{result}}"),
    )
    tables = series(
        About(
            "Tables",
            "How full the kernel tables are; with tables.peers too small, peers are refused.",
            TABLES,
            "percentunit",
            {None: "green", 0.8: "red"},
        ),
        Query(
            f"max by (table) ({_metric('exitprint_table_entries')})"
            f" / on (table) max by (table) ({_metric('exitprint_table_capacity')})",
            "{{table}}",
        ),
        most=1,
    )
    rules = series(
        About(
            "Epoch of the rules",
            "A step is a change of the NAT rules. Rules that are not understood, and refused peers, besides.",
            REGRESSED,
        ),
        Query(_metric("exitprint_rules_epoch"), "epoch"),
        Query(_metric("exitprint_rules_not_understood"), "rules not understood"),
        Query(_metric("exitprint_peers_refused"), "refused peers"),
    )
    return [(up, 8, 6), (hook, 4, 6), (rules, 12, 6), (age, 8, 8), (cycles, 8, 8), (tables, 8, 8)]


def _cost() -> list[tuple[AnyPanel, int, int]]:
    duration = series(
        About("Cycle", "Time of the last cycle by phase.", LOST, "s"),
        Query(_metric("exitprint_cycle_duration_seconds"), "{{phase}}"),
        stacked=True,
    )
    memory = series(
        About("Memory", "Resident memory of the two processes.", DOWN, "bytes"),
        Query(_metric("exitprint_process_resident_memory_bytes"), "{{process}}"),
        stacked=True,
    )
    program = series(
        About(
            "Kernel program",
            "Share of one processor in the kernel program; 0 while kernel.bpf_stats_enabled is off.",
            LOST,
            "percentunit",
        ),
        Query(f"rate({_metric('exitprint_program_run_seconds_total')}[$__rate_interval])", "program"),
    )
    rows = series(
        About(
            "Rows drained",
            "Pairs read from the kernel tables a second, and runs of the program.",
            LOST,
            "cps",
        ),
        Query(f"rate({_metric('exitprint_rows_drained_total')}[$__rate_interval])", "rows"),
        Query(f"rate({_metric('exitprint_program_runs_total')}[$__rate_interval])", "runs"),
    )
    return [(duration, 6, 8), (memory, 6, 8), (program, 6, 8), (rows, 6, 8)]
