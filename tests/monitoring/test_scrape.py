"""Scrape configurations of the chart's monitors: selection, labels and relabelling."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmtrain_chart.helm import render
from llmtrain_monitoring.scrape import scrape_config, static_scrape_config
from tests.support.chart.manifests import documents, find
from tests.support.chart.rendering import rendered_set

pytestmark = pytest.mark.unit

MONITORS = {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}


def kept(scrape: dict[str, Any]) -> dict[str, str]:
    """Return the values that labels of a target must have; several are joined by `;`."""
    return {
        ";".join(each["source_labels"]): each["regex"]
        for each in scrape["relabel_configs"]
        if each.get("action") == "keep"
    }


def test_pods_of_jobs_are_selected_by_label_and_port() -> None:
    monitor = find(rendered_set("pod monitor"), "PodMonitor")
    scrape = scrape_config(monitor, {"api_server": "https://10.0.0.1"})
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
    scrape = static_scrape_config(find(objects, "ServiceMonitor"), service, addresses)
    (target,) = scrape["static_configs"]
    assert target["targets"] == ["10.0.0.2:9090"]
    assert target["labels"]["__meta_kubernetes_pod_name"] == "operator-0"
    assert scrape["honor_labels"] is True
    selected = kept(scrape)
    assert len(selected) > 1
    for names, pattern in selected.items():
        values = ";".join(target["labels"][name] for name in names.split(";"))
        assert re.fullmatch(pattern, values), names


def test_pods_of_jobs_are_kept_and_get_the_labels_of_the_chart() -> None:
    config = scrape_config(find(documents(render(MONITORS)), "PodMonitor"))
    assert config["kubernetes_sd_configs"] == [{"role": "pod"}]
    rules = config["relabel_configs"]
    present = "__meta_kubernetes_pod_labelpresent_llmtrain_dev_job_name"
    assert {"action": "keep", "source_labels": [present], "regex": "true"} in rules
    label = "__meta_kubernetes_pod_label_llmtrain_dev"
    assert {"source_labels": [f"{label}_job_name"], "target_label": "llmtrain_job"} in rules
    assert rules[-1] == {
        "action": "labelmap",
        "regex": f"{label}_level_(.+)",
        "replacement": "level_$1",
    }


def test_the_operator_is_found_by_its_service() -> None:
    config = scrape_config(find(documents(render(MONITORS)), "ServiceMonitor"))
    assert config["honor_labels"] is True
    discovery = {"role": "endpointslice", "namespaces": {"names": ["llmtrain-system"]}}
    assert config["kubernetes_sd_configs"] == [discovery]
    label = "app_kubernetes_io_instance"
    kept = [
        f"__meta_kubernetes_service_label_{label}",
        f"__meta_kubernetes_service_labelpresent_{label}",
    ]
    rule = {"action": "keep", "source_labels": kept, "regex": "(llmtrain);true"}
    assert rule in config["relabel_configs"]


def test_an_unknown_selector_is_refused() -> None:
    monitor = find(rendered_set("pod monitor"), "PodMonitor")
    monitor["spec"]["selector"]["matchExpressions"][0]["operator"] = "NotIn"
    with pytest.raises(ValueError, match="NotIn"):
        scrape_config(monitor)
