"""Every query of the dashboards and rules, in the form that returns data in a healthy cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmtrain_monitoring.dashboards import DASHBOARDS
from llmtrain_monitoring.promql import metric_names
from llmtrain_monitoring.rules import ALERTS, RECORDINGS
from tests.support.exported_metrics import HARDWARE

VARIABLES: Mapping[str, str] = {
    "__rate_interval": "30s",
    "__range": "10m",
    "namespace": ".+",
    "llmtrain_job": ".+",
}
LEVELS: Mapping[str, str] = {"llmtrain-fleet": "leaf", "llmtrain-network": "level_leaf"}
"""Values of the variable `level`, by dashboard."""

_COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) ")
_OFFSET = re.compile(r"offset \w+")
_ABSENT = re.compile(r"\babsent\((.+)\)")


@dataclass(frozen=True, slots=True)
class Expression:
    """A query, and where it is."""

    where: str
    text: str

    @property
    def hardware(self) -> frozenset[str]:
        """Metrics of the hardware list that the query needs."""
        return metric_names(self.text) & HARDWARE.keys()


def expressions() -> tuple[Expression, ...]:
    """Return the queries of all panels, recording rules and alerts."""
    recorded = (Expression(f"rule {rule.record}", rule.expr) for rule in RECORDINGS)
    alerts = (Expression(f"alert {alert.name}", observed(alert.expr)) for alert in ALERTS)
    return (*recorded, *alerts, *_queries())


def _queries() -> Iterator[Expression]:
    for page in DASHBOARDS:
        values = {**VARIABLES, "level": LEVELS.get(page.uid, "")}
        for panel in page.panels:
            for number, query in enumerate(panel.queries):
                where = f"{page.title}: {panel.title} {number}"
                yield Expression(where, filled(query.whole, values))


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a query with values for its variables."""
    return re.sub(r"\$([a-z_]\w*)", lambda found: values[found[1]], text)


def observed(alert: str) -> str:
    """Return what an alert compares: data that is there without the fault.

    Comparisons become 0 or 1, the absence of a series becomes the series, and what must not exist
    beside a series becomes what must. A run of a minute has no values of an hour ago.
    """
    text = _COMPARISON.sub(r" \1 bool ", _ABSENT.sub(r"(\1)", alert))
    return _OFFSET.sub("offset 2s", text.replace(" unless ", " and "))
