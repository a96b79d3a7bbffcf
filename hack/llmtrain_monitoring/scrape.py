"""Scrape configurations for the monitors of the chart, as the Prometheus operator makes them.

Only what the chart uses: one endpoint by the name of a port, selectors of the target's labels, and
relabelings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]
Relabelings = list[dict[str, Any]]

_NAMESPACE = "__meta_kubernetes_namespace"
_POD = "__meta_kubernetes_pod"
_SERVICE = "__meta_kubernetes_service"
_SLICE_PORT = "__meta_kubernetes_endpointslice_port_name"


def scrape_config(monitor: Object, discovery: Object | None = None) -> dict[str, Any]:
    """Return the scrape configuration of a PodMonitor or ServiceMonitor.

    `discovery` says how to reach the API server, by default as a pod does.
    """
    spec, metadata = monitor["spec"], monitor["metadata"]
    of_pods = monitor["kind"] == "PodMonitor"
    (endpoint,) = spec["podMetricsEndpoints" if of_pods else "endpoints"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    found = {**(discovery or {}), "role": "pod" if of_pods else "endpointslice"}
    if namespaces := spec["namespaceSelector"].get("matchNames"):
        found["namespaces"] = {"names": namespaces}
    own = _pod_labels(endpoint["port"], name) if of_pods else _service_labels(endpoint["port"])
    return {
        "job_name": f"{'pod' if of_pods else 'service'}Monitor/{name}/0",
        "honor_labels": endpoint.get("honorLabels", False),
        "metrics_path": endpoint.get("path", "/metrics"),
        **({"scrape_interval": endpoint["interval"]} if "interval" in endpoint else {}),
        "kubernetes_sd_configs": [found],
        "relabel_configs": [
            *_selected(_POD if of_pods else _SERVICE, spec["selector"]),
            *own,
            *map(_snake_case, endpoint.get("relabelings", ())),
        ],
        "metric_relabel_configs": [*map(_snake_case, endpoint.get("metricRelabelings", ()))],
    }


def static_scrape_config(
    monitor: Object, service: Object, pods: Mapping[str, str]
) -> dict[str, Any]:
    """Return the scrape configuration of a ServiceMonitor for pods at given addresses.

    The targets have the labels that the discovery of EndpointSlices would give them.
    """
    metadata = service["metadata"]
    discovered = {
        _NAMESPACE: metadata["namespace"],
        f"{_SERVICE}_name": metadata["name"],
        _SLICE_PORT: service["spec"]["ports"][0]["name"],
    }
    for key, value in metadata["labels"].items():
        discovered[f"{_SERVICE}_label_{_name(key)}"] = value
        discovered[f"{_SERVICE}_labelpresent_{_name(key)}"] = "true"
    config = scrape_config(monitor)
    del config["kubernetes_sd_configs"]
    targets = [
        {"targets": [address], "labels": {**discovered, f"{_POD}_name": pod}}
        for pod, address in pods.items()
    ]
    return config | {"static_configs": targets}


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


def _pod_labels(port: str, job: str) -> Relabelings:
    return [
        {"source_labels": [f"{_POD}_phase"], "regex": "(Failed|Succeeded)", "action": "drop"},
        _keep([f"{_POD}_container_port_name"], port),
        _copy(_NAMESPACE, "namespace"),
        _copy(f"{_POD}_container_name", "container"),
        _copy(f"{_POD}_name", "pod"),
        {"target_label": "job", "replacement": job},
        {"target_label": "endpoint", "replacement": port},
    ]


def _service_labels(port: str) -> Relabelings:
    return [
        _keep([_SLICE_PORT], port),
        _copy(_NAMESPACE, "namespace"),
        _copy(f"{_SERVICE}_name", "service"),
        _copy(f"{_POD}_name", "pod"),
        _copy(f"{_POD}_container_name", "container"),
        _copy(f"{_SERVICE}_name", "job"),
        {"target_label": "endpoint", "replacement": port},
    ]


def _selected(prefix: str, selector: Object) -> Relabelings:
    """Return relabelings that drop targets that a label selector does not match."""
    found = []
    for key, value in selector.get("matchLabels", {}).items():
        sources = [f"{prefix}_label_{_name(key)}", f"{prefix}_labelpresent_{_name(key)}"]
        found.append(_keep(sources, f"({re.escape(value)});true"))
    for expression in selector.get("matchExpressions", ()):
        if expression["operator"] != "Exists":
            raise ValueError(f"the operator {expression['operator']} is not supported")
        found.append(_keep([f"{prefix}_labelpresent_{_name(expression['key'])}"], "true"))
    return found


def _keep(sources: list[str], regex: str) -> dict[str, Any]:
    return {"source_labels": sources, "regex": regex, "action": "keep"}


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target}


def _name(key: str) -> str:
    """Return the key of a label as Prometheus writes it in the name of a label."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", key)


def _snake_case(relabeling: Object) -> dict[str, Any]:
    return {re.sub("([A-Z])", r"_\1", key).lower(): value for key, value in relabeling.items()}
