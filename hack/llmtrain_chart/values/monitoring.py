"""Values of monitors, rules and dashboards."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmtrain_chart.values.base import (
    ChartModel,
    Labels,
    Manifest,
    Manifests,
    OptionalInterval,
    OptionalName,
    Texts,
)


class MetricsService(ChartModel):
    """The headless Service of the operator's metrics port."""

    enabled: bool = True
    """Create it. The ServiceMonitor and `helm test` need it."""
    labels: Labels = {}
    """More labels."""
    annotations: Texts = {}
    """Annotations."""


class Monitor(ChartModel):
    """A ServiceMonitor or PodMonitor of the Prometheus operator."""

    enabled: bool = False
    """Create it. It needs the CustomResourceDefinitions of the Prometheus operator."""
    namespace: OptionalName = ""
    """Namespace of the object; empty for the namespace of the release."""
    labels: Labels = {}
    """More labels. Many installations select monitors by the label `release`."""
    annotations: Texts = {}
    """Annotations."""
    interval: OptionalInterval = ""
    """Interval of scrapes; empty for Prometheus' own."""
    scrape_timeout: OptionalInterval = ""
    """Limit of a scrape; empty for Prometheus' own."""
    honor_labels: bool = False
    """Keep labels of the metrics that conflict with labels of the target."""
    relabelings: Manifests = []
    """Relabelings of targets, after those of the chart."""
    metric_relabelings: Manifests = []
    """Relabelings of samples."""
    endpoint_additional_properties: Manifest = {}
    """More fields of the endpoint."""


class CustomRule(ChartModel):
    """Changes of one alert."""

    for_: Annotated[OptionalInterval, Field(alias="for")] = ""
    """Time that the condition must hold."""
    severity: str = ""
    """Label `severity`."""
    keep_firing_for: OptionalInterval = ""
    """Time that the alert continues after its condition."""
    expr: str = ""
    """Condition."""


class Rules(ChartModel):
    """The PrometheusRule with recording rules and alerts."""

    enabled: bool = False
    """Create it. It needs the CustomResourceDefinitions of the Prometheus operator."""
    namespace: OptionalName = ""
    """Namespace of the object; empty for the namespace of the release."""
    labels: Labels = {}
    """More labels. Many installations select rules by the label `release`."""
    annotations: Texts = {}
    """Annotations."""
    runbook_url: str = ""
    """Address of the runbook pages for the annotation `runbook_url`: `{alert}` in it is replaced by
    the name of the alert, which is appended otherwise. Empty: alerts do not have the annotation."""
    keep_firing_for: OptionalInterval = ""
    """Default of `keep_firing_for` of alerts."""
    disabled: dict[str, bool] = {}
    """Alerts to leave out: `{ALERT: true}`."""
    custom_rules: dict[str, CustomRule] = {}
    """Changes of alerts: `{ALERT: {for: 1h, severity: info}}`."""
    additional_rule_labels: Texts = {}
    """More labels of each alert."""
    additional_groups: Manifests = []
    """More groups of rules."""


class Dashboards(ChartModel):
    """Grafana dashboards as ConfigMaps, for the sidecar of Grafana's chart."""

    enabled: bool = False
    """Create one ConfigMap for each dashboard."""
    namespace: OptionalName = ""
    """Namespace of the ConfigMaps; empty for the namespace of the release."""
    labels: Labels = {"grafana_dashboard": "1"}
    """Labels by which the sidecar finds them."""
    annotations: Texts = {"grafana_folder": "llmtrain"}
    """Annotations; `grafana_folder` is the folder of the dashboards."""
