"""Scrape configurations of the chart's monitors: selection, labels and relabelling."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmtrain_monitoring.scrape import pod_scrape, service_scrape
from tests.support.chart.manifests import find
from tests.support.chart.rendering import rendered_set

pytestmark = pytest.mark.unit


def kept(scrape: dict[str, Any]) -> dict[str, str]:
    """Return the values that labels of a target must have."""
    return {
        each["source_labels"][0]: each["regex"]
        for each in scrape["relabel_configs"]
        if each.get("action") == "keep"
    }


def test_pods_of_jobs_are_selected_by_label_and_port() -> None:
    monitor = find(rendered_set("pod monitor"), "PodMonitor")
    scrape = pod_scrape(monitor, {"api_server": "https://10.0.0.1"})
    assert kept(scrape) == {
        "__meta_kubernetes_pod_labelpresent_llmtrain_dev_job_name": "true",
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }
    assert scrape["kubernetes_sd_configs"] == [{"api_server": "https://10.0.0.1", "role": "pod"}]
    own = {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "worker"}
    assert scrape["relabel_configs"][-1] == own, "relabelings of the values come last"
    drop = {"source_labels": ["__name__"], "regex": "llmtrain_gpu_.*", "action": "drop"}
    assert scrape["metric_relabel_configs"] == [drop]


def test_the_service_of_the_operator_is_selected_by_its_labels() -> None:
    objects = rendered_set("service monitor")
    addresses = {"operator-0": "10.0.0.2:9090"}
    service = find(objects, "Service")
    scrape = service_scrape(find(objects, "ServiceMonitor"), service, addresses)
    (target,) = scrape["static_configs"]
    assert target["targets"] == ["10.0.0.2:9090"]
    assert target["labels"]["__meta_kubernetes_pod_name"] == "operator-0"
    assert scrape["honor_labels"] is True
    selected = kept(scrape)
    assert len(selected) > 1
    for name, pattern in selected.items():
        assert re.fullmatch(pattern, target["labels"][name]), name


def test_an_unknown_selector_is_refused() -> None:
    monitor = find(rendered_set("pod monitor"), "PodMonitor")
    monitor["spec"]["selector"]["matchExpressions"][0]["operator"] = "NotIn"
    with pytest.raises(ValueError, match="NotIn"):
        pod_scrape(monitor, {})
