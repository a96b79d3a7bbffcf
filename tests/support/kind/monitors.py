"""Scrape configurations of the chart's monitors, as the Prometheus operator makes them.

Only what the chart uses: one endpoint by the name of a port, selectors of the target's labels, and
relabelings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]
Rule = dict[str, Any]


def scrape_config(monitor: Mapping[str, Any]) -> Object:
    """Return the scrape configuration of a ServiceMonitor or PodMonitor."""
    spec, metadata = monitor["spec"], monitor["metadata"]
    of_pods = monitor["kind"] == "PodMonitor"
    (endpoint,) = spec["podMetricsEndpoints" if of_pods else "endpoints"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    namespaces = spec["namespaceSelector"].get("matchNames")
    discovery: Object = {"role": "pod" if of_pods else "endpointslice"}
    if namespaces:
        discovery["namespaces"] = {"names": namespaces}
    target = _pod_rules if of_pods else _service_rules
    return {
        "job_name": f"{'pod' if of_pods else 'service'}Monitor/{name}/0",
        "honor_labels": endpoint.get("honorLabels", False),
        "metrics_path": endpoint.get("path", "/metrics"),
        **({"scrape_interval": endpoint["interval"]} if "interval" in endpoint else {}),
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": [
            *_selection("pod" if of_pods else "service", spec["selector"]),
            *target(endpoint["port"], name),
            *(_relabeling(rule) for rule in endpoint.get("relabelings", ())),
        ],
        "metric_relabel_configs": [
            _relabeling(rule) for rule in endpoint.get("metricRelabelings", ())
        ],
    }


def _selection(role: str, selector: Mapping[str, Any]) -> Iterable[Rule]:
    """Keep targets whose labels match."""
    prefix = f"__meta_kubernetes_{role}_label"
    for key, value in selector.get("matchLabels", {}).items():
        names = [f"{prefix}_{_name(key)}", f"{prefix}present_{_name(key)}"]
        yield _keep(names, f"({re.escape(value)});true")
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "Exists", expression
        yield _keep([f"{prefix}present_{_name(expression['key'])}"], "true")


def _pod_rules(port: str, name: str) -> Iterable[Rule]:
    yield {
        "action": "drop",
        "source_labels": ["__meta_kubernetes_pod_phase"],
        "regex": "(Failed|Succeeded)",
    }
    yield _keep(["__meta_kubernetes_pod_container_port_name"], port)
    for source in ("namespace", "pod_container_name", "pod_name"):
        yield _copy(f"__meta_kubernetes_{source}", source.removeprefix("pod_").split("_")[0])
    yield {"target_label": "job", "replacement": name}
    yield {"target_label": "endpoint", "replacement": port}


def _service_rules(port: str, _name: str) -> Iterable[Rule]:
    yield _keep(["__meta_kubernetes_endpointslice_port_name"], port)
    for source, target in (
        ("namespace", "namespace"),
        ("service_name", "service"),
        ("pod_name", "pod"),
        ("pod_container_name", "container"),
        ("service_name", "job"),
    ):
        yield _copy(f"__meta_kubernetes_{source}", target)
    yield {"target_label": "endpoint", "replacement": port}


def _relabeling(rule: Mapping[str, Any]) -> Rule:
    """Return a relabeling with the names of Prometheus instead of those of its operator."""
    return {
        re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): value for key, value in rule.items()
    }


def _keep(sources: list[str], regex: str) -> Rule:
    return {"action": "keep", "source_labels": sources, "regex": regex}


def _copy(source: str, target: str) -> Rule:
    return {"source_labels": [source], "target_label": target}


def _name(key: str) -> str:
    return re.sub("[^a-zA-Z0-9_]", "_", key)
