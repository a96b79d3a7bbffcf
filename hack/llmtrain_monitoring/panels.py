"""Dashboards as data. `grafana.py` renders them to the JSON that Grafana imports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GREEN, ORANGE, RED = "green", "orange", "red"
Step = tuple[float | None, str]
"""The value from which a colour applies; None for the first one."""


class PanelKind(StrEnum):
    """The visualizations that the previews can draw."""

    TIME_SERIES = "timeseries"
    STAT = "stat"
    BAR_GAUGE = "bargauge"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query, with the legend of its series.

    `otherwise` is the result if the expression has none, for what is usually absent.
    """

    expr: str
    legend: str = ""
    otherwise: str = ""

    @property
    def whole(self) -> str:
        """The expression as the panel sends it."""
        return f"{self.expr} or on() {self.otherwise}" if self.otherwise else self.expr


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel; its width is in columns of 24, its height in Grafana's units."""

    title: str
    description: str
    kind: PanelKind
    unit: str
    queries: tuple[Query, ...]
    width: int = 12
    height: int = 8
    steps: tuple[Step, ...] = ((None, GREEN),)
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    stacked: bool = False
    names: bool = False
    """A stat with the legend of its series instead of the value, or a table without the value."""


@dataclass(frozen=True, slots=True)
class PanelRow:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable whose values come from a query; `regex` selects a part of them."""

    name: str
    label: str
    query: str
    regex: str = ""
    multiple: bool = True


@dataclass(frozen=True, slots=True)
class DashboardPage:
    """A dashboard."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[PanelRow, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def series(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 12,
    stacked: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Panel:
    """Return a panel of time series."""
    return Panel(
        title,
        description,
        PanelKind.TIME_SERIES,
        unit,
        queries,
        width,
        stacked=stacked,
        minimum=minimum,
        maximum=maximum,
    )


def stat(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *steps: Step,
    width: int = 4,
    decimals: int | None = None,
    names: bool = False,
) -> Panel:
    """Return a panel with one large value."""
    return Panel(
        title,
        description,
        PanelKind.STAT,
        unit,
        (query,),
        width,
        4,
        steps or ((None, GREEN),),
        decimals=decimals,
        names=names,
    )


def bars(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *steps: Step,
    width: int = 12,
    minimum: float = 0,
    maximum: float | None = None,
) -> Panel:
    """Return a panel with a bar per series."""
    return Panel(
        title,
        description,
        PanelKind.BAR_GAUGE,
        unit,
        (query,),
        width,
        steps=steps or ((None, GREEN),),
        minimum=minimum,
        maximum=maximum,
    )


def table(
    title: str,
    description: str,
    unit: str,
    query: Query,
    width: int = 12,
    height: int = 8,
    names: bool = False,
) -> Panel:
    """Return a panel with a row per series."""
    return Panel(title, description, PanelKind.TABLE, unit, (query,), width, height, names=names)
