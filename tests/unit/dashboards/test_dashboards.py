# SPDX-License-Identifier: Apache-2.0
"""The dashboards: current, true to the registry, and as Grafana's dashboard-linter wants them.

The rules are those of the linter's docs; what dashboards/.lint excludes is replaced by a rule of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import promql_parser as ql
import pytest
import yaml

from dashboards.__main__ import FOLDER, files
from dashboards.style import MITIGATED, MITIGATED_RANK, RANKS
from detector.publish import metrics
from tests import promql
from tests.promql import Schema, WrongQueryError, rules_in

DEPLOY = Path(__file__).parents[3] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
BOARDS: dict[str, Any] = {path.stem: json.loads(text) for path, text in files().items()}
# Units of Grafana's own list that are used here; any other begins with "suffix:".
UNITS = {"short", "percentunit", "s", "bytes", "cps", "dateTimeFromNow"}

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that show something."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


def targets(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every query with what it is in."""
    return (target for panel in panels(board) for target in panel["targets"])


def plain(expr: str) -> str:
    """A query as Prometheus would get it, but for the variables in matchers."""
    return expr.replace("$__rate_interval", "5m")


def _schema() -> Schema:
    schema = Schema()
    schema.record(
        [rule for name in ("recording", "fleet") for rule in rules_in(PROMETHEUS / f"exitprint-{name}.yml")]
    )
    schema.alert(rules_in(PROMETHEUS / "exitprint-alerts.yml"))
    return schema


def _selectors(expr: str) -> list[ql.VectorSelector]:
    found: list[ql.VectorSelector] = []

    def visit(part: ql.Expr) -> None:
        if isinstance(part, ql.MatrixSelector):
            part = part.vector_selector
        if isinstance(part, ql.VectorSelector):
            found.append(part)

    ql.walk(ql.parse(plain(expr)), visit)
    return found


def test_the_files_are_current() -> None:
    """The JSON beside the code is what the code makes; `make generate` renews it."""
    assert {path: path.read_text() for path in FOLDER.glob("*.json")} == files()


@each_board
def test_every_query_names_what_there_is(board: dict[str, Any]) -> None:
    """Metrics, labels and label values of all panels are those of the registry and of the rules."""
    schema = _schema()
    for target in targets(board):
        schema.labels(plain(target["expr"]))


@each_board
def test_legends_name_labels_that_the_series_have(board: dict[str, Any]) -> None:
    """A label in a legend is one of the query's result."""
    schema = _schema()
    for target in targets(board):
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(
            schema.labels(plain(target["expr"]))
        )


@pytest.mark.parametrize("name", ["coverage_ratio", "flows", "consistency_ratio", "build"])
def test_a_renamed_metric_is_found_in_the_dashboards(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panels that use a metric are wrong once the registry calls it something else."""
    old = metrics.BY_NAME[name].series
    monkeypatch.setattr(
        promql, "METRICS", [replace(one, name="else") if one.name == name else one for one in metrics.METRICS]
    )
    schema = Schema()
    wrong = []
    for target in targets(BOARDS["relay"]):
        try:
            schema.labels(plain(target["expr"]))
        except WrongQueryError as error:
            wrong.append(str(error))
    assert any(f"no metric {old} " in text for text in wrong)


@each_board
def test_every_panel_has_what_a_reader_needs(board: dict[str, Any]) -> None:
    """Title, description, unit, thresholds, a query, and the link to a runbook that exists (panel-*-rule)."""
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"].endswith(".")
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS or defaults["unit"].startswith("suffix:")
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert panel["targets"]
        (link,) = panel["links"]
        name = link["url"].removeprefix("${runbooks}/")
        assert (DEPLOY / "runbooks" / name).is_file()


@each_board
def test_the_variables_are_those_that_are_wanted(board: dict[str, Any]) -> None:
    """Data source, fleet and relay, renewed when the time changes (template-*-rule)."""
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables) == ["datasource", "fleet", "relay", "runbooks"]
    source = variables["datasource"]
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")
    schema = _schema()
    for name in ("fleet", "relay"):
        variable = variables[name]
        assert variable["refresh"] == 2
        assert variable["datasource"]["uid"] == "${datasource}"
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
        assert label in schema.labels(selector)


@each_board
def test_everything_asks_the_chosen_data_source(board: dict[str, Any]) -> None:
    """Panels and queries take the data source from the variable (panel-datasource-rule)."""
    for holder in (*panels(board), *targets(board)):
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@each_board
def test_queries_keep_to_the_chosen_fleet_and_relay(board: dict[str, Any]) -> None:
    """Every selector of series with a fleet or relay is held to what was chosen."""
    schema = _schema()
    for target in targets(board):
        for selector in _selectors(target["expr"]):
            held = {(matcher.name, matcher.value) for matcher in selector.matchers.matchers}
            for label in ("fleet", "relay"):
                assert label not in schema.series[selector.name or ""] or (label, f"${label}") in held


@each_board
def test_rates_are_over_the_interval_that_grafana_chooses(board: dict[str, Any]) -> None:
    """No range is written out (target-rate-interval-rule)."""
    for target in targets(board):
        assert set(re.findall(r"\[(.*?)\]", target["expr"])) <= {"$__rate_interval"}


@each_board
def test_counters_are_shown_as_rates_and_nothing_else_is(board: dict[str, Any]) -> None:
    """A counter is inside rate or increase; a gauge is not (target-counter-agg-rule)."""
    counters = {metric.series for metric in metrics.METRICS if metric.kind == "counter"}
    for target in targets(board):
        rated = set(re.findall(r"(?:rate|increase)\((\w+)", target["expr"]))
        named = {selector.name for selector in _selectors(target["expr"])}
        assert rated == named & counters


@each_board
def test_a_dashboard_is_not_edited_in_place(board: dict[str, Any]) -> None:
    """It is made from code (uneditable-dashboard), has a fixed uid, and ids that do not collide."""
    assert board["editable"] is False
    assert board["uid"].startswith("exitprint-")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@each_board
def test_panels_do_not_overlap(board: dict[str, Any]) -> None:
    """Each cell of the grid belongs to one panel, within the width."""
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_linter_is_told_what_does_not_hold() -> None:
    """dashboards/.lint excludes the rules about job and instance, each with its reason, and no other."""
    excluded = yaml.safe_load((FOLDER / ".lint").read_text())["exclusions"]
    assert set(excluded) == {
        f"{kind}-{name}-rule" for kind in ("template", "target") for name in ("job", "instance")
    }
    assert all(one["reason"] for one in excluded.values())


def test_ranks_are_those_of_the_recording_rule() -> None:
    """A rank has the name of the verdict that the rule gave it."""
    rules = {
        rule["record"]: rule["expr"]
        for rule in rules_in(PROMETHEUS / "exitprint-recording.yml")
        if "record" in rule
    }
    expr = rules["relay_family:exitprint_verdict:rank"]
    said = re.findall(r'(?<![\d.])(\d) \* (?:\(\s+)?\S+trusted{verdict="(\w+)"', expr)
    assert {verdict: int(rank) for rank, verdict in said} | {"unknown": 4} == RANKS
    assert f"{MITIGATED_RANK:g} * (" in expr
    assert f'"verdict", "{MITIGATED}"' in expr
