"""Scrape configurations of Prometheus for the monitors of the chart, without Prometheus' operator.

The relabelling is that of the chart's PodMonitor and ServiceMonitor, after the labels that
Prometheus' operator gives to every target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]
Relabelings = list[dict[str, Any]]

_POD = "__meta_kubernetes_pod"
_SERVICE = "__meta_kubernetes_service"


def pod_scrape(monitor: Object, discovery: Object) -> dict[str, Any]:
    """Return the scrape configuration of a PodMonitor; `discovery` says how to reach the API."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    namespaces = monitor["spec"]["namespaceSelector"].get("matchNames")
    found = {**discovery, "role": "pod"}
    if namespaces:
        found["namespaces"] = {"names": namespaces}
    name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    relabelings: Relabelings = [
        {"source_labels": [f"{_POD}_phase"], "regex": "Failed|Succeeded", "action": "drop"},
        *_selected(_POD, monitor["spec"]["selector"]),
        _keep(f"{_POD}_container_port_name", endpoint["port"]),
        _copy("__meta_kubernetes_namespace", "namespace"),
        _copy(f"{_POD}_container_name", "container"),
        _copy(f"{_POD}_name", "pod"),
        {"target_label": "job", "replacement": name},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]
    return _scrape(name, endpoint, relabelings) | {"kubernetes_sd_configs": [found]}


def service_scrape(monitor: Object, service: Object, pods: Mapping[str, str]) -> dict[str, Any]:
    """Return the scrape configuration of a ServiceMonitor for pods at given addresses.

    The targets have the labels that the discovery of EndpointSlices would give them.
    """
    (endpoint,) = monitor["spec"]["endpoints"]
    metadata = service["metadata"]
    discovered = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        f"{_SERVICE}_name": metadata["name"],
        "__meta_kubernetes_endpointslice_port_name": service["spec"]["ports"][0]["name"],
    }
    for key, value in metadata["labels"].items():
        discovered[f"{_SERVICE}_label_{_name(key)}"] = value
    relabelings: Relabelings = [
        *_selected(_SERVICE, monitor["spec"]["selector"]),
        _keep("__meta_kubernetes_endpointslice_port_name", endpoint["port"]),
        _copy("__meta_kubernetes_namespace", "namespace"),
        _copy(f"{_SERVICE}_name", "service"),
        _copy(f"{_POD}_name", "pod"),
        _copy(f"{_SERVICE}_name", "job"),
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]
    targets = [
        {"targets": [address], "labels": {**discovered, f"{_POD}_name": pod}}
        for pod, address in pods.items()
    ]
    name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    return _scrape(name, endpoint, relabelings) | {"static_configs": targets}


def _scrape(name: str, endpoint: Object, relabelings: Relabelings) -> dict[str, Any]:
    own = endpoint.get("relabelings", ())
    return {
        "job_name": name,
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint["honorLabels"],
        "relabel_configs": [*relabelings, *map(_snake_case, own)],
        "metric_relabel_configs": [*map(_snake_case, endpoint.get("metricRelabelings", ()))],
    }


def _selected(prefix: str, selector: Object) -> Relabelings:
    """Return relabelings that drop targets that a label selector does not match."""
    found = [
        _keep(f"{prefix}_label_{_name(key)}", re.escape(value))
        for key, value in selector.get("matchLabels", {}).items()
    ]
    for expression in selector.get("matchExpressions", ()):
        if expression["operator"] != "Exists":
            raise ValueError(f"the operator {expression['operator']} is not supported")
        found.append(_keep(f"{prefix}_labelpresent_{_name(expression['key'])}", "true"))
    return found


def _keep(label: str, regex: str) -> dict[str, Any]:
    return {"source_labels": [label], "regex": regex, "action": "keep"}


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target}


def _name(key: str) -> str:
    """Return the key of a label as Prometheus writes it in the name of a label."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", key)


def _snake_case(relabeling: Object) -> dict[str, Any]:
    return {re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in relabeling.items()}


def server_config(
    scrapes: Sequence[Object], rule_files: Sequence[str], interval: str
) -> dict[str, Any]:
    """Return the configuration of a server that scrapes and evaluates at one interval."""
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [*rule_files],
        "scrape_configs": [*scrapes],
    }
