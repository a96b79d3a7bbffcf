"""Definitions of the three kinds of the Prometheus operator that the chart uses.

They have the fields that the chart writes and no others, so a strict request finds a wrong name.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

TEXT: Object = {"type": "string"}
TEXTS: Object = {"type": "object", "additionalProperties": TEXT}
DURATION: Object = {"type": "string", "pattern": r"^(0|(([0-9]+)(ms|s|m|h|d|w|y))+)$"}


def a_map(required: tuple[str, ...] = (), **fields: Object) -> Object:
    return {"type": "object", "properties": fields, "required": [*required]}


def a_list(items: Object) -> Object:
    return {"type": "array", "items": items}


ACTIONS = ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep", "hashmod"]
RELABELING = a_map(
    sourceLabels=a_list(TEXT),
    separator=TEXT,
    targetLabel=TEXT,
    regex=TEXT,
    replacement=TEXT,
    action={"type": "string", "enum": ACTIONS},
)
SELECTOR = a_map(
    matchLabels=TEXTS,
    matchExpressions=a_list(
        a_map(("key", "operator"), key=TEXT, operator=TEXT, values=a_list(TEXT))
    ),
)
ENDPOINT = a_map(
    port=TEXT,
    path=TEXT,
    scheme=TEXT,
    honorLabels={"type": "boolean"},
    interval=DURATION,
    scrapeTimeout=DURATION,
    relabelings=a_list(RELABELING),
    metricRelabelings=a_list(RELABELING),
)
NAMESPACES = a_map(any={"type": "boolean"}, matchNames=a_list(TEXT))
RULE = a_map(
    ("expr",),
    record=TEXT,
    alert=TEXT,
    expr={"x-kubernetes-int-or-string": True},
    **{"for": DURATION, "keep_firing_for": DURATION},
    labels=TEXTS,
    annotations=TEXTS,
)
GROUP = a_map(
    ("name",), name=TEXT, interval=DURATION, limit={"type": "integer"}, rules=a_list(RULE)
)


def _definition(kind: str, spec: Object) -> Object:
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": a_map(("spec",), spec=spec)},
                }
            ],
        },
    }


MONITORING_CRDS = [
    _definition(
        "ServiceMonitor",
        a_map(
            ("endpoints", "selector"),
            namespaceSelector=NAMESPACES,
            selector=SELECTOR,
            endpoints=a_list(ENDPOINT),
        ),
    ),
    _definition(
        "PodMonitor",
        a_map(
            ("podMetricsEndpoints", "selector"),
            namespaceSelector=NAMESPACES,
            selector=SELECTOR,
            podMetricsEndpoints=a_list(ENDPOINT),
        ),
    ),
    _definition("PrometheusRule", a_map(groups=a_list(GROUP))),
]
