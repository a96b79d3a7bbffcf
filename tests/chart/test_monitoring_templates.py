"""Monitors, rules and dashboards: what the values below their names do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain_chart.helm import run_helm
from llmtrain_chart.paths import CHART
from llmtrain_core.api import labels
from tests.support.chart.manifests import Object, documents, find
from tests.support.chart.rendering import rendered, rendered_set
from tests.support.chart.value_sets import WATCHED

RULES = """
groups:
- name: jobs
  rules:
  - {record: "llmtrain:steps:rate5m", expr: "rate(llmtrain_step[5m])"}
  - alert: StepStalled
    expr: time() - llmtrain_last_step_timestamp_seconds > 600
    for: 5m
    labels: {severity: critical}
    annotations: {summary: "{{ $labels.llmtrain_job }} has stalled"}
  - alert: GpuIdle
    expr: llmtrain_gpu_utilization_ratio < 0.3
- name: operator
  rules:
  - {alert: OperatorDown, expr: absent(llmtrain_operator_leader), labels: {severity: critical}}
"""


def test_labels_of_pods_reach_the_series() -> None:
    (endpoint,) = find(rendered(podMonitor={"enabled": True}), "PodMonitor")["spec"][
        "podMetricsEndpoints"
    ]
    # What a pod exports is untrusted: it must not pass for another job or node.
    assert endpoint["honorLabels"] is False
    copied = {r.get("targetLabel"): r["sourceLabels"][0] for r in endpoint["relabelings"][:-1]}
    prefix = "__meta_kubernetes_pod_label_"

    def discovered(label: str) -> str:
        return prefix + label.translate(str.maketrans("./-", "___"))

    assert copied == {
        "llmtrain_job": discovered(labels.JOB_NAME),
        "attempt": discovered(labels.ATTEMPT),
        "node": "__meta_kubernetes_pod_node_name",
    }
    assert endpoint["relabelings"][-1] == {
        "action": "labelmap",
        "regex": discovered("llmtrain.dev/level-") + "(.+)",
        "replacement": "level_$1",
    }


def test_labels_of_the_operators_series_are_kept() -> None:
    monitor = find(rendered(serviceMonitor={"enabled": True}), "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"][0] == {
        "sourceLabels": ["__meta_kubernetes_pod_label_llmtrain_dev_watch_namespace"],
        "targetLabel": "watch_namespace",
    }
    service = find(rendered(), "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_pods_of_all_jobs_are_scraped() -> None:
    spec = find(rendered(podMonitor={"enabled": True}), "PodMonitor")["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    (expression,) = spec["selector"]["matchExpressions"]
    assert expression == {"key": labels.JOB_NAME, "operator": "Exists"}
    some = rendered(podMonitor={"enabled": True}, watchNamespaces=["team-a"])
    assert find(some, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart with three alerts and one dashboard."""
    copy = tmp_path_factory.mktemp("chart") / "llmtrain"
    shutil.copytree(CHART, copy)
    for folder, name, text in (
        ("rules", "jobs.yaml", RULES),
        ("dashboards", "job.json", '{"title": "Job <{{x}}>", "legend": "{{ job }}"}'),
    ):
        shutil.rmtree(copy / "files" / folder, ignore_errors=True)
        (copy / "files" / folder).mkdir()
        (copy / "files" / folder / name).write_text(text)
    return copy


def from_chart(chart: Path, values: dict[str, Any], folder: Path) -> list[Object]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return documents(run_helm(["template", "llmtrain", str(chart), "--values", str(file)]))


def alerts(objects: list[Object]) -> dict[str, Object]:
    groups = find(objects, "PrometheusRule")["spec"]["groups"]
    return {r["alert"]: r for group in groups for r in group["rules"] if "alert" in r}


def test_rules_are_those_of_the_files(chart: Path, tmp_path: Path) -> None:
    objects = from_chart(chart, {"prometheusRule": {"enabled": True}}, tmp_path)
    assert find(objects, "PrometheusRule")["spec"] == documents(RULES)[0]


def test_rules_are_disabled_and_changed_by_name(chart: Path, tmp_path: Path) -> None:
    values = {
        "enabled": True,
        "disabled": {"OperatorDown": True, "GpuIdle": False},
        "customRules": {"StepStalled": {"for": "1h", "severity": "info", "expr": "vector(1) > 0"}},
        "additionalRuleLabels": {"team": "platform"},
        "keepFiringFor": "10m",
        "runbookUrl": "https://example.com/runbooks/",
    }
    objects = from_chart(chart, {"prometheusRule": values}, tmp_path)
    found = alerts(objects)
    assert set(found) == {"StepStalled", "GpuIdle"}
    assert found["StepStalled"] == {
        "alert": "StepStalled",
        "expr": "vector(1) > 0",
        "for": "1h",
        "keep_firing_for": "10m",
        "labels": {"severity": "info", "team": "platform"},
        "annotations": {
            "summary": "{{ $labels.llmtrain_job }} has stalled",
            "runbook_url": "https://example.com/runbooks/StepStalled",
        },
    }
    assert found["GpuIdle"]["labels"] == {"team": "platform"}
    names = [group["name"] for group in find(objects, "PrometheusRule")["spec"]["groups"]]
    assert names == ["jobs"]


def test_the_address_of_a_runbook_has_the_name_anywhere() -> None:
    found = alerts(rendered_set("rules of one alert"))["LLMTrainStepStalled"]
    assert found["annotations"]["runbook_url"] == "https://example.com/LLMTrainStepStalled.md"
    assert found["for"] == "1d"


def test_alerts_name_no_runbook_that_nobody_serves() -> None:
    found = alerts(rendered_set("all monitoring"))
    assert len(found) > 30
    assert not [name for name, rule in found.items() if "runbook_url" in rule["annotations"]]


def test_each_watched_namespace_has_a_check_of_its_operator() -> None:
    name, checks = "LLMTrainOperatorDown", "absent(llmtrain_operator_leader{})"
    one = alerts(rendered_set("all monitoring"))[name]["expr"]
    some = alerts(rendered_set("monitors of namespaces"))[name]["expr"]
    of_namespaces = [
        checks.replace("{}", f'{{watch_namespace="{namespace}"}}') for namespace in WATCHED
    ]
    assert some == one.replace(checks.replace("{}", ""), " or ".join(of_namespaces)) != one


def test_dashboards_are_the_files(chart: Path, tmp_path: Path) -> None:
    objects = from_chart(chart, {"dashboards": {"enabled": True}}, tmp_path)
    found = find(objects, "ConfigMap")
    assert found["metadata"]["name"] == "llmtrain-dashboard-job"
    assert found["metadata"]["annotations"] == {"grafana_folder": "llmtrain"}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    text = (chart / "files" / "dashboards" / "job.json").read_text()
    assert found["data"] == {"job.json": text}
