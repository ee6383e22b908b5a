# SPDX-License-Identifier: Apache-2.0
"""The dashboard *Fleet*: which relays leak, how badly, since when."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.style import (
    ANY_IS_BAD,
    RANK_STEPS,
    RELAY_PAGE,
    RUNBOOK_PAGE,
    About,
    Part,
    Query,
    blank,
    in_colours_of_verdicts,
    laid_out,
    series,
    stat,
    states,
    table,
)

PREDICTABLE, DOWN = "ExitprintMappingPredictable", "ExitprintDetectorDown"
LINKED = "ExitprintFleetLinked"
_WATCHED = {None: "red", 0.95: "orange", 1: "green"}
_RELAYS = 'fleet=~"$fleet", relay=~"$relay"'
_WORST = f"relay:exitprint_verdict:worst{{{_RELAYS}}}"
_SHARES = {None: "green", 0.01: "orange", 0.1: "red"}


def fleet() -> Dashboard:
    """The dashboard."""
    about = "Which relays leak, how badly, since when."
    return laid_out(
        blank("exitprint / Fleet", "exitprint-fleet", about, many=True), (_now(), _relays(), _history())
    )


def _now() -> Part:
    leaking = stat(
        About("Relays that leak", "Relays whose worst verdict is a leak.", PREDICTABLE, "short", ANY_IS_BAD),
        Query(f"count({_WORST} >= 5) or vector(0)", "leak"),
    )
    unknown = stat(
        About(
            "Relays not known",
            "Relays of which nothing can be said: little evidence, loss, or no detector. They are not safe.",
            "ExitprintNoVerdict",
            "short",
            {None: "green", 1: "purple"},
        ),
        Query(f"count({_WORST} == 4) or vector(0)", "not known"),
    )
    watched = stat(
        About(
            "Relays watched", "Relays that answer, of those that are expected.", DOWN, "percentunit", _WATCHED
        ),
        Query(
            'sum(fleet:exitprint_watched_relays:count{fleet=~"$fleet"})'
            ' / sum(fleet:exitprint_expected_relays:count{fleet=~"$fleet"})',
            "of those expected",
        ),
        Query('sum(fleet:exitprint_expected_relays:count{fleet=~"$fleet"})', "expected"),
        units={"expected": "short"},
    )
    linked = stat(
        About(
            "Relays linkable with each other",
            "Relays among which canaries sit at one fraction. None is no proof for relays without canaries.",
            LINKED,
            "short",
            ANY_IS_BAD,
        ),
        Query(
            'max by (fleet, family) (fleet_family:exitprint_linked_relays:count{fleet=~"$fleet"})',
            "{{fleet}} {{family}}",
        ),
    )
    told = stat(
        About(
            "Relays compared",
            "Share of the expected relays of which canaries tell whether they are linkable with others.",
            "ExitprintCanariesMissing",
            "percentunit",
            _WATCHED,
        ),
        Query(
            f"count(count by (fleet, relay) (relay_family:exitprint_canary_linked:bool{{{_RELAYS}}}))"
            ' / sum(fleet:exitprint_expected_relays:count{fleet=~"$fleet"})',
            "compared",
        ),
    )
    share = stat(
        About(
            "Peers that leak", "Share of all judged peers of the fleet.", PREDICTABLE, "percentunit", _SHARES
        ),
        Query(
            'max by (fleet, family) (fleet_family:exitprint_leaking_peers:ratio{fleet=~"$fleet"})',
            "{{fleet}} {{family}}",
        ),
    )
    bits = stat(
        About(
            "Worst leak",
            "Bits that one observed exit tells about the peer's next one, on the worst relay.",
            PREDICTABLE,
            "suffix: bits",
            {None: "green", 1: "orange", 3: "red"},
        ),
        Query(
            'max by (fleet, family) (fleet_family:exitprint_leak_bits:max{fleet=~"$fleet"})',
            "{{fleet}} {{family}}",
        ),
    )
    return Part(
        "Now",
        [
            (leaking, 4, 5),
            (unknown, 4, 5),
            (watched, 4, 5),
            (linked, 4, 5),
            (told, 4, 5),
            (share, 4, 5),
            (bits, 4, 5),
        ],
    )


def _relays() -> Part:
    columns = {
        "Verdict": Query(f"max by (fleet, relay) ({_WORST})"),
        "Linked": Query(f"max by (fleet, relay) (relay_family:exitprint_canary_linked:bool{{{_RELAYS}}})"),
        "Leak": Query(f"max by (fleet, relay) (relay_family:exitprint_leak_bits:trusted{{{_RELAYS}}})"),
        "Peers that leak": Query(
            f"max by (fleet, relay) (relay_family:exitprint_leaking_peers:ratio{{{_RELAYS}}})"
        ),
        "Since": Query(
            f"max by (fleet, relay) (exitprint_verdict_since_timestamp_seconds{{{_RELAYS}}}) * 1000"
        ),
        "Coverage": Query(f"min by (fleet, relay) (exitprint_coverage_ratio{{{_RELAYS}}})"),
    }
    units = {
        "Leak": "suffix: bits",
        "Peers that leak": "percentunit",
        "Since": "dateTimeFromNow",
        "Coverage": "percentunit",
    }
    listing = table(
        About(
            "Relays",
            "Each expected relay's deciding verdict, the worst first; linked is 1 where others share it.",
            PREDICTABLE,
            "short",
            RANK_STEPS,
        ),
        columns,
        units,
        worst="Verdict",
        ranks="Verdict",
        links={"relay": ("Relay", RELAY_PAGE)},
    )
    firing = table(
        About("Alerts", "What fires now on these relays.", PREDICTABLE, "short", ANY_IS_BAD),
        {
            "Firing": Query(
                "count by (fleet, relay, family, alertname, severity) ("
                f'ALERTS{{alertname=~"Exitprint.+", alertstate="firing", {_RELAYS}}})'
            )
        },
        {},
        links={"relay": ("Relay", RELAY_PAGE), "alertname": ("Runbook", RUNBOOK_PAGE)},
    )
    return Part("Relays", [(listing, 14, 9), (firing, 10, 9)])


def _history() -> Part:
    worst = states(
        About(
            "Worst verdict of each relay",
            "Since when a relay leaks. Purple is not known, which is not safe.",
            PREDICTABLE,
            "short",
            RANK_STEPS,
        ),
        Query(f"max by (fleet, relay) ({_WORST})", "{{fleet}} {{relay}}"),
        ranks=True,
    )
    verdicts = in_colours_of_verdicts(
        series(
            About("Relays by verdict", "How many relays have which worst verdict.", PREDICTABLE),
            Query('sum by (verdict) (fleet_verdict:exitprint_relays:count{fleet=~"$fleet"})', "{{verdict}}"),
            stacked=True,
        )
    )
    share = series(
        About(
            "Peers that leak", "Share of all judged peers of the fleet.", PREDICTABLE, "percentunit", _SHARES
        ),
        Query('fleet_family:exitprint_leaking_peers:ratio{fleet=~"$fleet"}', "{{fleet}} {{family}}"),
        most=1,
    )
    bits = series(
        About(
            "Leak of the worst relays",
            "Bits that one observed exit tells about the peer's next one, for the ten worst.",
            PREDICTABLE,
            "suffix: bits",
        ),
        Query(
            f"topk(10, relay_family:exitprint_leak_bits:trusted{{{_RELAYS}}})",
            "{{fleet}} {{relay}} {{family}}",
        ),
    )
    coverage = series(
        About(
            "Coverage",
            "Share of flows counted, of the ten relays with least. Below 0.95 the verdict is not trusted.",
            "ExitprintCoverageLow",
            "percentunit",
            {None: "red", 0.95: "green"},
        ),
        Query(
            f"bottomk(10, min by (fleet, relay) (exitprint_coverage_ratio{{{_RELAYS}}}))",
            "{{fleet}} {{relay}}",
        ),
        most=1,
    )
    fixed = series(
        About(
            "Relays fixed of all",
            "Share of the expected relays that is shown to be fixed. Unknown is not fixed.",
            PREDICTABLE,
            "percentunit",
        ),
        Query('fleet:exitprint_fixed_relays:ratio{fleet=~"$fleet"}', "{{fleet}}"),
        most=1,
    )
    together = series(
        About(
            "Relays linkable with each other",
            "How many relays share what decides, as canaries show.",
            LINKED,
        ),
        Query(
            'max by (fleet, family) (fleet_family:exitprint_linked_relays:count{fleet=~"$fleet"})',
            "{{fleet}} {{family}}",
        ),
    )
    joint = series(
        About(
            "What relays tell together",
            "Bits that the exits of one peer on all linked relays tell, beyond what they would apart.",
            LINKED,
            "suffix: bits",
        ),
        Query(
            'max by (fleet, family) (fleet_family:exitprint_linked_bits:max{fleet=~"$fleet"})',
            "{{fleet}} {{family}}",
        ),
    )
    versions = series(
        About("Versions", "Relays by version of exitprint.", DOWN),
        Query(f"count by (version) (exitprint_build_info{{{_RELAYS}}})", "{{version}}"),
        stacked=True,
    )
    return Part(
        "Over time",
        [
            (worst, 24, 9),
            (fixed, 12, 8),
            (verdicts, 12, 8),
            (together, 12, 8),
            (joint, 12, 8),
            (share, 12, 8),
            (bits, 12, 8),
            (coverage, 12, 8),
            (versions, 12, 8),
        ],
    )
