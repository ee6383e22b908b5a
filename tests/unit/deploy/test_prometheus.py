# SPDX-License-Identifier: Apache-2.0
"""Alerts, recording rules, routes and runbooks: accepted by their own tools, and true to the registry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from detector.analysis.verdict import COVERAGE_FLOOR
from detector.base.verdicts import LEAKS, VERDICTS
from detector.cli import main
from detector.publish import metrics
from tests import promql
from tests.promql import Schema, WrongQueryError, rules_in
from tools.rules import Parameters, files

DEPLOY = Path(__file__).parents[3] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RECORDING, ALERTS = PROMETHEUS / "exitprint-recording.yml", PROMETHEUS / "exitprint-alerts.yml"
FLEET = PROMETHEUS / "exitprint-fleet.yml"
ROUTES = DEPLOY / "alertmanager" / "alertmanager.yml"
CASES = Path(__file__).parent / "rules"

ALERT_RULES = rules_in(ALERTS)
NAMES = [rule["alert"] for rule in ALERT_RULES]
PAGES = [
    "ExitprintMappingPredictable",
    "ExitprintExclusiveExits",
    "ExitprintUntranslatedFlows",
    "ExitprintFleetLeaking",
    "ExitprintFleetLinked",
]
LEAK_ALERTS = {rule["alert"] for rule in ALERT_RULES if "leak_bits:trusted" in rule["expr"]}

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="NO promtool here")
needs_amtool = pytest.mark.skipif(not shutil.which("amtool"), reason="NO amtool here")


def _schema() -> Schema:
    schema = Schema()
    schema.record([*rules_in(RECORDING), *rules_in(FLEET)])
    return schema


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)


def test_every_query_of_a_rule_names_what_there_is() -> None:
    """Metrics, labels and label values of all rules are those of the registry and of the recording rules."""
    schema = _schema()
    assert all(schema.labels(rule["expr"]) for rule in ALERT_RULES)


def test_annotations_name_labels_that_the_alert_has() -> None:
    """A label in a summary or description is one that the query's result or the rule itself brings."""
    schema = _schema()
    for rule in ALERT_RULES:
        there = {*schema.labels(rule["expr"]), *rule["labels"], "relay", "fleet"}
        named = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
        assert set(named) <= there


@pytest.mark.parametrize("name", ["relay_verdict", "coverage_ratio", "flows", "table_capacity", "leak_bits"])
def test_a_renamed_metric_is_found_in_the_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules that use a metric are wrong once the registry calls it something else."""
    renamed = [replace(one, name="else") if one.name == name else one for one in metrics.METRICS]
    monkeypatch.setattr(promql, "METRICS", renamed)
    with pytest.raises(WrongQueryError, match=f"no metric exitprint_{name}"):
        schema = _schema()
        for rule in ALERT_RULES:
            schema.labels(rule["expr"])


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("exitprint_nothing", "no metric exitprint_nothing"),
        ('exitprint_relay_verdict{verdct="pinned"}', "no label verdct"),
        ('exitprint_relay_verdict{verdict="pined"}', "no verdict pined"),
        ('exitprint_relay_verdict{verdict=~"pinned|unkown"}', "no verdict unkown"),
        ("sum by (predictor) (exitprint_leak_bits)", "no label predictor"),
        (
            "exitprint_leak_bits * on (fleet) group_left (verdict) exitprint_coverage_ratio",
            "no label verdict",
        ),
        ("exitprint_leak_bits / exitprint_coverage_ratio", "never equals"),
        ("max by (relay) (exitprint_waiting) and on (fleet) exitprint_waiting", "no label fleet"),
        ('label_replace(exitprint_waiting, "a", "$1", "b", "(.*)")', "no label b"),
        ("rate(exitprint_flows[5m])", "no metric exitprint_flows"),
        ("sum by (", "unclosed"),
    ],
)
def test_a_wrong_query_is_found(query: str, wrong: str) -> None:
    """Each kind of mistake is named."""
    with pytest.raises(WrongQueryError, match=wrong):
        Schema().labels(query)


@needs_promtool
def test_promtool_accepts_rules_and_example() -> None:
    """`promtool check` finds nothing in the rules, nor in the example that loads them."""
    for command in (
        ("rules", "--lint=all", "--lint-fatal", RECORDING, FLEET, ALERTS),
        ("config", PROMETHEUS / "prometheus.yml"),
    ):
        done = _run("promtool", "check", *command)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_and_recordings_behave_as_the_cases_say() -> None:
    """`promtool test rules` agrees with every case in tests/deploy/rules."""
    done = _run("promtool", "test", "rules", *sorted(CASES.glob("*.yml")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_has_its_cases(alert: str) -> None:
    """Firing, quiet, data loss and just below are all there, and one expects the alert."""
    tests = yaml.safe_load((CASES / f"{alert}.yml").read_text())["tests"]
    kinds = Counter(re.match(r"firing|quiet|data loss|just below", test["name"])[0] for test in tests)  # type: ignore[index]
    assert set(kinds) == {"firing", "quiet", "data loss", "just below"}
    assert any(
        check["exp_alerts"]
        for test in tests
        for check in test["alert_rule_test"]
        if check["alertname"] == alert
    )


def test_the_cases_speak_of_series_that_there_are() -> None:
    """The series of the cases, too, are those of the registry."""
    schema = Schema()
    for file in CASES.glob("*.yml"):
        for test in yaml.safe_load(file.read_text())["tests"]:
            for line in test["input_series"]:
                schema.labels(line["series"])


def test_loss_takes_harmless_verdicts_and_no_leak() -> None:
    """A harmless verdict is recorded at the coverage at which the analysis trusts itself, a leak always."""
    recorded = {rule["record"]: rule["expr"] for rule in rules_in(RECORDING)}
    assert recorded["relay:exitprint_report:trusted"] == f"relay:exitprint_report:fresh >= {COVERAGE_FLOOR}"
    leaks, harmless = re.split(r"(?m)^or$", recorded["relay_family:exitprint_verdict:trusted"])
    assert f'verdict=~"{"|".join(LEAKS)}"' in leaks
    assert "relay:exitprint_report:fresh" in leaks
    assert f'verdict=~"{"|".join(VERDICTS[len(LEAKS) : -1])}"' in harmless
    assert "relay:exitprint_report:trusted" in harmless
    assert len(LEAK_ALERTS) == 5


def test_the_worst_verdict_is_the_one_of_the_analysis() -> None:
    """The ranks order the verdicts as the analysis does; 4 is left for unknown, 3.5 for mitigated."""
    expr = next(
        rule["expr"]
        for rule in rules_in(RECORDING)
        if rule["record"] == "relay_family:exitprint_verdict:rank"
    )
    given = re.findall(r'([\d.]+) \* (?:\(\s+)?relay_family:exitprint_verdict:trusted{verdict="(\w+)"', expr)
    ranks = {float(rank): verdict for rank, verdict in given}
    assert [ranks.pop(rank) for rank in (8, 7, 6, 5)] == list(LEAKS)
    assert [ranks.pop(rank) for rank in (3, 2, 1)] == list(VERDICTS[len(LEAKS) : -1])
    assert ranks == {3.5: "pinned"}
    assert "4 * relay_family:exitprint_verdict:unknown" in expr


def test_alerts_are_few_and_have_what_a_person_needs() -> None:
    """At most twenty; each with severity, runbook, and a text that fits a phone."""
    assert len(NAMES) <= 20
    for rule in ALERT_RULES:
        assert rule["labels"]["severity"] == ("page" if rule["alert"] in PAGES else "ticket")
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"].endswith(f"/{rule['alert']}.md")
        assert len(re.sub(r"{{ with.*?{{ end }}", "", notes["summary"])) < 120
        assert len(notes["description"]) < 320


def test_leak_alerts_say_relay_family_predictor_and_bits() -> None:
    """The text names them, so that nobody has to open a dashboard to know how bad it is."""
    for rule in ALERT_RULES:
        if rule["alert"] in LEAK_ALERTS - {"ExitprintMitigationRegressed"}:
            text = rule["annotations"]["summary"] + rule["annotations"]["description"]
            assert "$labels.relay" in text
            assert "$labels.family" in text
            assert "redictor" in text
            assert "bits" in text


def test_every_alert_has_a_runbook_and_no_runbook_is_left_over() -> None:
    """deploy/runbooks has one file for each alert, with the same parts in the same order."""
    files = {path.stem: path.read_text() for path in (DEPLOY / "runbooks").glob("*.md")}
    assert set(files) == set(NAMES)
    for name, text in files.items():
        assert re.findall(r"^#+ (.*)$", re.sub(r"(?m)^    .*$", "", text), re.M) == [
            name,
            "Meaning",
            "Impact, in a user's words",
            "Diagnosis",
            "Mitigation",
            "Prove that it is fixed",
        ]


def test_runbooks_name_commands_that_there_are() -> None:
    """Each `exitprint COMMAND` of a runbook is a command."""
    there = main.list_commands(click.Context(main))
    for path in (DEPLOY / "runbooks").glob("*.md"):
        named = re.findall(r"(?:`|^    )exitprint ([a-z-]+)", path.read_text(), re.M)
        assert set(named) <= set(there)


def test_runbooks_state_the_times_of_the_rules() -> None:
    """What a runbook says of when an alert fires is what the rule says."""
    words = {"5m": "five minutes", "10m": "ten minutes", "15m": "a quarter of an hour", "1h": "an hour"}
    words |= {"6h": "six hours", "": "at once"}
    for rule in ALERT_RULES:
        severity = re.search(
            r"^Severity: .*$", (DEPLOY / "runbooks" / f"{rule['alert']}.md").read_text(), re.M
        )
        assert severity
        assert words[rule.get("for", "")] in severity[0]
        assert rule["labels"]["severity"] in severity[0]


@needs_amtool
def test_amtool_accepts_the_routes() -> None:
    """`amtool check-config` finds nothing."""
    done = _run("amtool", "check-config", ROUTES)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_amtool
@pytest.mark.parametrize("rule", ALERT_RULES, ids=NAMES)
def test_alerts_go_where_their_severity_sends_them(rule: dict[str, Any]) -> None:
    """`amtool config routes test` sends pages to the pager and tickets to the tickets."""
    receiver = "pager" if rule["alert"] in PAGES else "tickets"
    labels = [f"alertname={rule['alert']}", f"severity={rule['labels']['severity']}", "fleet=f", "relay=r"]
    done = _run(
        "amtool",
        "config",
        "routes",
        "test",
        f"--config.file={ROUTES}",
        f"--verify.receivers={receiver}",
        *labels,
    )
    assert (done.returncode, done.stdout.strip()) == (0, receiver)


def test_messages_are_grouped_by_fleet_and_alert_and_bounded() -> None:
    """A fleet in which one thing is wrong is one message, with ten alerts at most."""
    config = yaml.safe_load(ROUTES.read_text())
    route = config["route"]["routes"][0]
    assert route["group_by"] == ["fleet", "alertname"]
    assert "group_by" not in json.dumps(route["routes"])
    assert {hook["max_alerts"] for one in config["receivers"] for hook in one["webhook_configs"]} == {10}


def test_no_ticket_silences_a_page() -> None:
    """A page is silenced by nothing but the page about its whole fleet."""
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in ALERT_RULES}
    for rule in yaml.safe_load(ROUTES.read_text())["inhibit_rules"]:
        source = re.search(r'"(.+)"', rule["source_matchers"][0])[1]  # type: ignore[index]
        targets = " ".join(rule["target_matchers"])
        pages = any(page in targets for page in PAGES) or "Exitprint.+" in targets
        if pages and severities[source] == "ticket":
            assert 'severity = "ticket"' in targets


def test_the_rules_are_what_the_generator_writes() -> None:
    """`make generate` has been run."""
    assert files() == {path.name: path.read_text() for path in (RECORDING, FLEET, ALERTS)}


@needs_promtool
def test_rules_take_other_names(tmp_path: Path) -> None:
    """With an operator's own labels, job, thresholds and runbooks none of ours is left."""
    theirs = Parameters("cluster", "host", "wg", 0.9, 7, runbooks="https://wiki.example/rb")
    for name, text in files(theirs).items():
        (tmp_path / name).write_text(text)
        queries = " ".join(rule["expr"] for rule in rules_in(tmp_path / name))
        assert not re.findall(r"(?:by|on|without|left) \([^)]*\b(fleet|relay)\b[^)]*\)", queries)
        assert 'job="exitprint"' not in text
        assert "runbooks.example.net" not in text
        assert not re.search(r"\$labels\.(fleet|relay)\b", text)
    done = _run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *tmp_path.glob("*.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ">= 0.9" in (tmp_path / RECORDING.name).read_text()


def test_labels_that_are_none_are_refused() -> None:
    """A name that is no label's, or one for both, is an error."""
    for fleet, relay in (("a-b", "relay"), ("fleet", "1"), ("same", "same")):
        with pytest.raises(ValueError, match=r"label"):
            Parameters(fleet, relay)


def test_the_page_on_alerts_is_true_to_the_rules() -> None:
    """docs/alerts.md lists every alert with its severity and how long it takes."""
    words = {"5m": "5 min", "10m": "10 min", "15m": "15 min", "1h": "1 h", "6h": "6 h", "": "at once"}
    page = (DEPLOY.parent / "docs" / "alerts.md").read_text()
    rows = re.findall(r"^\| (Exitprint\w+) \| (\w+) \| [^|]+ \| ([^|]+) \|$", page, re.M)
    assert rows == [
        (rule["alert"], rule["labels"]["severity"], words[rule.get("for", "")]) for rule in ALERT_RULES
    ]
