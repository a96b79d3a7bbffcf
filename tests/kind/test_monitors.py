"""The chart's monitors as scrape configurations."""

from __future__ import annotations

import pytest

from llmtrain_chart.helm import render
from tests.support.chart.manifests import documents, find
from tests.support.kind.monitors import scrape_config

pytestmark = pytest.mark.unit

MONITORS = {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}


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
