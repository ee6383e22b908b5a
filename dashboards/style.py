# SPDX-License-Identifier: Apache-2.0
"""How our panels look: each has a unit, a description, thresholds, and a link to a runbook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    TableSortByFieldState,
    VizLegendOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    ConstantVariable,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.statetimeline import Panel as StatePanel
from grafana_foundation_sdk.builders.table import Panel as TablePanel
from grafana_foundation_sdk.builders.timeseries import Panel as SeriesPanel
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from detector.base.verdicts import RANKED, VERDICT_WORDS, Verdict

SOURCE = DataSourceRef("prometheus", "${datasource}")
RUNBOOKS = "https://runbooks.example.net/exitprint"

AnyPanel = StatPanel | StatePanel | TablePanel | SeriesPanel
_Panel = TypeVar("_Panel", StatPanel, StatePanel, TablePanel, SeriesPanel)
Steps = Mapping[float | None, str]
"""From which value on which colour; None is the beginning."""

PLAIN: Steps = {None: "blue"}
ANY_IS_BAD: Steps = {None: "green", 1: "red"}

COLOURS = {
    Verdict.PREDICTABLE: "dark-red",
    Verdict.EXCLUSIVE: "red",
    Verdict.PINNED: "orange",
    Verdict.DESTINATION_LINKED: "yellow",
    Verdict.UNKNOWN: "purple",
    Verdict.SESSION_STICKY: "blue",
    Verdict.SINGLE_EXIT: "light-green",
    Verdict.UNLINKABLE: "green",
}
# As relay:exitprint_verdict:worst has them: unknown comes after the leaks.
RANKS = {verdict: VERDICT_WORDS[verdict].rank for verdict in RANKED}
# Pinned by a secret that no other relay has, as canaries show: between unknown and the harmless verdicts.
MITIGATED, MITIGATED_RANK, MITIGATED_COLOUR = "mitigated", 3.5, "semi-dark-blue"
RANK_STEPS: Steps = {
    None: "green",
    2: "light-green",
    3: "blue",
    3.5: "semi-dark-blue",
    4: "purple",
    5: "yellow",
    6: "orange",
    7: "red",
}


@dataclass(frozen=True, slots=True)
class About:
    """What every panel has.

    Attributes:
        runbook: the alert whose runbook helps with what the panel shows.
        unit: as Grafana calls it.
    """

    title: str
    description: str
    runbook: str
    unit: str = "short"
    steps: Steps = field(default_factory=lambda: PLAIN)


@dataclass(frozen=True, slots=True)
class Query:
    """A query and how its series are called."""

    expr: str
    legend: str = "__auto"


def _target(query: Query, number: int, *, now: bool, table: bool = False) -> Dataquery:
    made = Dataquery().expr(query.expr).ref_id(chr(ord("A") + number)).datasource(SOURCE)
    made = made.legend_format(query.legend).exemplar(False)
    made = made.instant() if now else made.range()
    return made.format(PromQueryFormat.TABLE if table else PromQueryFormat.TIME_SERIES)


def _dressed(panel: _Panel, about: About) -> _Panel:
    steps = [Threshold(value, colour) for value, colour in about.steps.items()]
    runbook = DashboardLink(f"Runbook: {about.runbook}").type(DashboardLinkType.LINK)
    runbook = runbook.url(f"${{runbooks}}/{about.runbook}.md").target_blank(True)
    return (
        panel.title(about.title)
        .description(about.description)
        .unit(about.unit)
        .thresholds(ThresholdsConfig().steps(steps))
        .links([runbook])
        .datasource(SOURCE)
    )


def stat(
    about: About, *queries: Query, named: bool = False, units: Mapping[str, str] | None = None
) -> StatPanel:
    """Big numbers of now; `named` shows the series' names, `units` has those of series that differ."""
    panel = _dressed(StatPanel(), about).graph_mode(BigValueGraphMode.NONE)
    panel = panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.text_mode(BigValueTextMode.NAME if named else BigValueTextMode.AUTO)
    for number, query in enumerate(queries):
        panel = panel.with_target(_target(query, number, now=True))
    for name, unit in (units or {}).items():
        panel = panel.override_by_name(name, [DynamicConfigValue("unit", unit)])
    return panel


def series(about: About, *queries: Query, stacked: bool = False, most: float | None = None) -> SeriesPanel:
    """Lines over time; `most` is the largest value that there can be."""
    panel = _dressed(SeriesPanel(), about).min(0).show_points(VisibilityMode.NEVER).fill_opacity(10)
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel = panel.legend(legend.show_legend(True))
    if stacked:
        panel = panel.stacking(StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60)
    if most is not None:
        panel = panel.max(most)
    for number, query in enumerate(queries):
        panel = panel.with_target(_target(query, number, now=False))
    return panel


def states(about: About, *queries: Query, ranks: bool = False) -> StatePanel:
    """Bars of states over time; with `ranks` the values are ranks of verdicts."""
    panel = _dressed(StatePanel(), about).merge_values(True).show_value(VisibilityMode.AUTO).line_width(0)
    if ranks:
        panel = panel.mappings([verdict_names()])
    for number, query in enumerate(queries):
        panel = panel.with_target(_target(query, number, now=False))
    return panel


RELAY_PAGE = (
    "/d/exitprint-relay?${datasource:queryparam}"
    "&var-fleet=${__data.fields.fleet}&var-relay=${__data.fields.relay}"
)
RUNBOOK_PAGE = "${runbooks}/${__data.fields.alertname}.md"


def table(
    about: About,
    columns: Mapping[str, Query],
    units: Mapping[str, str],
    *,
    worst: str = "",
    ranks: str = "",
    links: Mapping[str, tuple[str, str]] | None = None,
) -> TablePanel:
    """One row for each relay, one column for each query, by the name of the column.

    Args:
        about: its unit is that of columns without one in `units`.
        columns: their queries; label columns come before them.
        units: by name of the column.
        worst: the column that rows are sorted by, largest first.
        ranks: the column with ranks of verdicts: shown as words in their colours.
        links: by column, title and address of what a cell leads to.
    """
    panel = _dressed(TablePanel(), about)
    names = {f"Value #{chr(ord('A') + number)}": name for number, name in enumerate(columns)}
    for number, query in enumerate(columns.values()):
        panel = panel.with_target(_target(query, number, now=True, table=True))
    organized = {"excludeByName": {"Time": True, "__name__": True}, "renameByName": names}
    panel = panel.with_transformation(DataTransformerConfig("merge", options={}))
    panel = panel.with_transformation(DataTransformerConfig("organize", options=organized))
    for name, unit in units.items():
        panel = panel.override_by_name(name, [DynamicConfigValue("unit", unit)])
    if worst:
        panel = panel.sort_by([TableSortByFieldState().display_name(worst).desc(True)])
    if ranks:
        words = DynamicConfigValue("mappings", [verdict_names()])
        panel = panel.override_by_name(
            ranks, [words, DynamicConfigValue("custom.cellOptions", {"type": "color-background"})]
        )
    for name, (title, url) in (links or {}).items():
        link = {"title": title, "url": url, "targetBlank": False}
        panel = panel.override_by_name(name, [DynamicConfigValue("links", [link])])
    return panel


def verdict_names() -> ValueMap:
    """From ranks to verdicts, in their colours."""
    said = {f"{rank:g}": (verdict.value, COLOURS[verdict]) for verdict, rank in RANKS.items()}
    said[f"{MITIGATED_RANK:g}"] = (MITIGATED, MITIGATED_COLOUR)
    worst_first = sorted(said, key=float, reverse=True)
    return ValueMap(
        {rank: ValueMappingResult(*said[rank], index=place) for place, rank in enumerate(worst_first)}
    )


def in_colours_of_verdicts(panel: SeriesPanel) -> SeriesPanel:
    """Series that are called as a verdict get its colour."""
    for verdict, colour in (*COLOURS.items(), (MITIGATED, MITIGATED_COLOUR)):
        fixed = DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(str(verdict), [fixed])
    return panel


def chance_dashed(panel: SeriesPanel) -> SeriesPanel:
    """What chance would give is drawn in dashes."""
    dashes = DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]})
    return panel.override_by_regexp("/chance/", [dashes, DynamicConfigValue("custom.fillOpacity", 0)])


@dataclass(frozen=True, slots=True)
class Part:
    """A row of the dashboard: its title and its panels with width and height."""

    title: str
    panels: Sequence[tuple[AnyPanel, int, int]]


def laid_out(dashboard: Dashboard, parts: Sequence[Part]) -> Dashboard:
    """Put the parts below each other; panels go from left to right and wrap."""
    number = 0
    for part in parts:
        number += 1
        dashboard = dashboard.with_row(Row(part.title).id(number))
        for panel, width, height in part.panels:
            number += 1
            dashboard = dashboard.with_panel(panel.id(number).span(width).height(height))
    return dashboard


def blank(title: str, uid: str, description: str, *, many: bool) -> Dashboard:
    """A dashboard with its variables; `many` lets several relays be chosen."""
    about = {"fleet": "label_values(relay:exitprint_relay:seen, fleet)"}
    about["relay"] = 'label_values(relay:exitprint_relay:seen{fleet=~"$fleet"}, relay)'
    dashboard = Dashboard(title).uid(uid).description(description).tags(["exitprint"]).readonly()
    dashboard = dashboard.time("now-24h", "now").refresh("1m").timezone("browser")
    dashboard = dashboard.tooltip(DashboardCursorSync.CROSSHAIR)
    dashboard = dashboard.with_variable(
        DatasourceVariable("datasource").label("Data source").type("prometheus")
    )
    for name, query in about.items():
        dashboard = dashboard.with_variable(_choice(name, query, many=many or name == "fleet"))
    runbooks = ConstantVariable("runbooks").label("Runbooks").value(RUNBOOKS)
    others = DashboardLink("exitprint").type(DashboardLinkType.DASHBOARDS).tags(["exitprint"])
    others = others.include_vars(True).keep_time(True)
    return dashboard.with_variable(runbooks).link(others)


def _choice(name: str, query: str, *, many: bool) -> QueryVariable:
    made = QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(query)
    made = made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return made.multi(True).include_all(True).all_value(".+") if many else made
