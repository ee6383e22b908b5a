# SPDX-License-Identifier: Apache-2.0
"""The registry of metrics, what the exporter makes of it, and the page about it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import Metric as Family_
from prometheus_client import generate_latest
from prometheus_client import parser as text
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from detector.analysis.report import Report
from detector.analysis.verdict import judge
from detector.base.family import Family
from detector.config.model import Config
from detector.counts.canaries import Place
from detector.kernel.tables import Outcome
from detector.publish.exporter import Exposition, Samples, registry
from detector.publish.metrics import BY_NAME, METRICS, PREFIX
from detector.publish.snapshot import About, Snapshot, samples
from tools.metrics_page import PAGE, page
from tools.simulated_relays import MAPPINGS, relay, traffic

_ABOUT = About(Config(relay="relay-1"), "netfilter")


def _report(mapping: str = "persistent", peers: int = 90, flows: int = 24) -> Report:
    rng = np.random.default_rng(1)
    sent = traffic(rng, peers, flows, destinations=12, ports=8)
    return judge([relay(rng, MAPPINGS[mapping], 59, sent)])


def _snapshot(report: Report | None) -> Snapshot:
    return Snapshot(
        report=report,
        since=1.0,
        made=2.0,
        durations={"collect": 0.1, "judge": 0.2},
        outcomes={(family, outcome): 7 for family in Family for outcome in Outcome},
        fill={"pairs": 1, "peers": 2, "window": 3},
        resident={"sensor": 1, "aggregator": 2},
        canaries=(Place("c1", Family.IPV4, 3, 1.0, 4, 8), Place("c2", Family.IPV6)),
    )


def parse_openmetrics(page: str) -> list[Family_]:
    """What a strict reader of OpenMetrics finds."""
    return list(openmetrics.text_string_to_metric_families(page))  # type: ignore[no-untyped-call]


def parse_text(page: str) -> list[Family_]:
    """What a reader of the Prometheus text format finds."""
    return list(text.text_string_to_metric_families(page))


def _openmetrics(report: Report | None) -> str:
    made = registry(lambda: samples(_snapshot(report), _ABOUT))
    page: bytes = generate_openmetrics(made)  # type: ignore[no-untyped-call]
    return page.decode()


def _text(report: Report | None) -> str:
    return generate_latest(registry(lambda: samples(_snapshot(report), _ABOUT))).decode()


def test_every_metric_of_the_registry_is_exported_and_no_other() -> None:
    """A report with evidence brings samples of each registered metric, with its type, help and unit."""
    families = {family.name: family for family in parse_openmetrics(_openmetrics(_report()))}
    assert set(families) == {PREFIX + metric.name for metric in METRICS}
    for metric in METRICS:
        family = families[PREFIX + metric.name]
        assert (family.type, family.documentation, family.unit) == (metric.kind, metric.help, metric.unit)
        assert {sample.name for sample in family.samples} == {metric.series}


def test_label_values_are_those_of_the_registry() -> None:
    """Every sample has the labels that its metric declares, with values that are listed."""
    for family in parse_openmetrics(_openmetrics(_report())):
        metric = BY_NAME[family.name.removeprefix(PREFIX)]
        for sample in family.samples:
            assert set(sample.labels) == set(metric.label_names)
            for label in metric.labels:
                assert not label.values or sample.labels[label.name] in label.values


def test_units_end_the_names() -> None:
    """A unit is the end of the name, and nothing that ends like a unit lacks it."""
    for metric in METRICS:
        assert not metric.unit or metric.name.endswith(f"_{metric.unit}")
        assert metric.unit or not metric.name.endswith(("_seconds", "_bytes", "_ratio", "_bits"))


@pytest.mark.parametrize("report", [_report, lambda: _report(flows=0), lambda: None])
@pytest.mark.parametrize(
    ("write", "read"), [(_openmetrics, parse_openmetrics), (_text, parse_text)], ids=["openmetrics", "text"]
)
def test_both_formats_are_valid(
    report: Callable[[], Report | None],
    write: Callable[[Report | None], str],
    read: Callable[[str], list[Family_]],
) -> None:
    """What is served parses in both formats, with much evidence, with none, and before the first report."""
    assert "exitprint_build_info" in {
        sample.name for family in read(write(report())) for sample in family.samples
    }


def test_a_page_is_written_once_a_moment_and_format() -> None:
    """Asked again at the same moment the same page is given; a new report brings a new page."""
    asked: list[Snapshot] = []
    moments = [_snapshot(_report()), _snapshot(None)]

    def counted(now: Snapshot, about: About) -> Samples:
        asked.append(now)
        return samples(now, about)

    exposition = Exposition(lambda: (moments[0], _ABOUT), counted)
    text, kind = exposition.page("")
    assert exposition.page("") == (text, kind)
    assert exposition.page("application/openmetrics-text; version=1.0.0")[1] != kind
    assert asked == [moments[0]] * 2
    del moments[0]
    assert b"exitprint_leak_bits{" in text
    assert b"exitprint_leak_bits{" not in exposition.page("")[0]


def test_what_is_gone_disappears() -> None:
    """A contrast without trials, or a report that is not there, leaves no series behind."""
    assert "exitprint_consistency_ratio{" in _openmetrics(_report())
    assert "exitprint_consistency_ratio{" not in _openmetrics(_report(flows=0))
    assert "exitprint_relay_verdict{" not in _openmetrics(None)


def test_the_number_of_series_does_not_grow_with_the_peers() -> None:
    """A relay of 2,000 peers has exactly the series of one with 90."""
    few, many = _openmetrics(_report()), _openmetrics(_report(peers=2000))
    assert len(few.splitlines()) == len(many.splitlines())


@pytest.mark.skipif(not shutil.which("promtool"), reason="NO promtool here")
def test_promtool_has_nothing_to_say() -> None:
    """`promtool check metrics` accepts the page; its one word is about bits, which are not of memory here."""
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=_text(_report()),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines() == ['exitprint_leak_bits use base unit "bytes" instead of "bits"']


def test_the_page_is_current() -> None:
    """docs/metrics.md is what the registry gives; `make generate` renews it."""
    assert PAGE.read_text() == page()


def test_a_canary_is_told_by_name_and_place() -> None:
    """Interval of the pool, size and votes, under the canary's name; one without a place has no interval."""
    made = {
        sample.name + str(sorted(sample.labels.values())): sample.value
        for family in parse_text(_text(None))
        for sample in family.samples
        if "canar" in sample.name
    }
    assert made == {
        "exitprint_canaries[]": 0.0,
        "exitprint_canary_position_low_ratio['c1', 'ipv4']": 0.5,
        "exitprint_canary_position_high_ratio['c1', 'ipv4']": 0.625,
        "exitprint_canary_pool_size['c1', 'ipv4']": 8.0,
        "exitprint_canary_pool_size['c2', 'ipv6']": 0.0,
        "exitprint_canary_votes['c1', 'ipv4']": 3.0,
        "exitprint_canary_votes['c2', 'ipv6']": 0.0,
        "exitprint_canary_kept_ratio['c1', 'ipv4']": 1.0,
    }
