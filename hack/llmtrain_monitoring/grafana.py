"""Render dashboards with the Grafana Foundation SDK, in the classic JSON format."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries

from llmtrain_monitoring.panels import DashboardPage, Panel, PanelKind, Query, Variable

_COLUMN_WIDTH = 75
"""Least width of a column: tables with the coordinates of ranks have ten."""
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def render(page: DashboardPage) -> str:
    """Return the JSON of a dashboard."""
    board = (
        build.Dashboard(page.title)
        .uid(page.uid)
        .description(page.description)
        .tags(["llmtrain"])
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            build.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for variable in page.variables:
        board = board.with_variable(_variable(variable))
    number = 0
    for row in page.rows:
        board = board.with_row(build.Row(row.title))
        for panel in row.panels:
            number += 1
            board = board.with_panel(_panel(panel).id(number))
    encoded = json.loads(JSONEncoder(sort_keys=True).encode(board.build()))
    return json.dumps(encoded, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def _variable(variable: Variable) -> Any:
    built = (
        build.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_SOURCE)
        .query(variable.query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(variable.multiple)
        .include_all(variable.multiple)
    )
    return built.regex(variable.regex) if variable.regex else built


def _panel(panel: Panel) -> Any:
    built = _BUILDERS[panel.kind](panel)
    built = (
        built.title(panel.title)
        .description(panel.description)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
        .thresholds(
            build.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(value=value, color=color) for value, color in panel.steps])
        )
    )
    if panel.minimum is not None:
        built = built.min(panel.minimum)
    if panel.maximum is not None:
        built = built.max(panel.maximum)
    if panel.decimals is not None:
        built = built.decimals(panel.decimals)
    for ref, query in zip("ABCDEF", panel.queries, strict=False):
        built = built.with_target(_target(query, ref, panel))
    return built


def _target(query: Query, ref: str, panel: Panel) -> Any:
    target = prometheus.Dataquery().expr(query.whole).ref_id(ref).datasource(_SOURCE)
    if query.legend:
        target = target.legend_format(query.legend)
    # A panel of names shows each series of the range, also an earlier phase of a job.
    if panel.kind in (PanelKind.BAR_GAUGE, PanelKind.TABLE) or panel.names:
        target = target.instant()
    if panel.kind is PanelKind.TABLE:
        target = target.format(queries.PromQueryFormat.TABLE)
    return target


def _legend() -> Any:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .calcs([])
    )


def _time_series(panel: Panel) -> Any:
    built = timeseries.Panel().legend(_legend()).fill_opacity(40 if panel.stacked else 5)
    if panel.stacked:
        stacking = common.StackingConfig().mode(options.StackingMode.NORMAL)
        built = built.stacking(stacking)
    return built


def _stat(panel: Panel) -> Any:
    mode = options.BigValueTextMode.NAME if panel.names else options.BigValueTextMode.VALUE
    graph = options.BigValueGraphMode.NONE if panel.names else options.BigValueGraphMode.AREA
    return stat.Panel().reduce_options(_last_value()).text_mode(mode).graph_mode(graph)


def _bar_gauge(panel: Panel) -> Any:
    return (
        bargauge.Panel()
        .legend(_legend())
        .reduce_options(_last_value())
        .display_mode(options.BarGaugeDisplayMode.GRADIENT)
        .orientation(options.VizOrientation.HORIZONTAL)
    )


def _table(panel: Panel) -> Any:
    hidden = dict.fromkeys(("Time", "__name__", *(["Value"] if panel.names else [])), True)
    names = {"llmtrain_job": "job", "slowest_domain": "slowest domain", "Value": "value"}
    return (
        table.Panel()
        .min_width(_COLUMN_WIDTH)
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize", options={"excludeByName": hidden, "renameByName": names}
            )
        )
    )


def _last_value() -> Any:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


_BUILDERS = {
    PanelKind.TIME_SERIES: _time_series,
    PanelKind.STAT: _stat,
    PanelKind.BAR_GAUGE: _bar_gauge,
    PanelKind.TABLE: _table,
}
