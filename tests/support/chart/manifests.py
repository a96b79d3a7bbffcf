"""Manifests of the chart: parse them, find one, and have an API server check them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import yaml

from llmtrain_devcluster.api import PATCH_TYPES, Api, ApiStatusError, resource_path

Object = dict[str, Any]

CLUSTER_SCOPED = {
    "ClusterRole": "rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1/clusterrolebindings",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1/customresourcedefinitions",
    "Fabric": "llmtrain.dev/v1alpha1/fabrics",
    "Namespace": "namespaces",
    "ValidatingAdmissionPolicy": ("admissionregistration.k8s.io/v1/validatingadmissionpolicies"),
    "ValidatingAdmissionPolicyBinding": (
        "admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    ),
    "PriorityClass": "scheduling.k8s.io/v1/priorityclasses",
}
NAMESPACED = {
    "ConfigMap": "configmaps",
    "Deployment": "apps/v1/deployments",
    "Lease": "coordination.k8s.io/v1/leases",
    "NetworkPolicy": "networking.k8s.io/v1/networkpolicies",
    "Pod": "pods",
    "PodDisruptionBudget": "policy/v1/poddisruptionbudgets",
    "PodMonitor": "monitoring.coreos.com/v1/podmonitors",
    "PrometheusRule": "monitoring.coreos.com/v1/prometheusrules",
    "Role": "rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "rbac.authorization.k8s.io/v1/rolebindings",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "ServiceMonitor": "monitoring.coreos.com/v1/servicemonitors",
}


def documents(text: str) -> list[Object]:
    """Return the objects of a manifest."""
    # The loader in C is ten times as fast, and the definitions are long.
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def find(objects: Iterable[Object], kind: str, name: str = "") -> Object:
    """Return the only object of a kind, or the one with this name."""
    found = [o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"])]
    assert len(found) == 1, [o["metadata"]["name"] for o in found]
    return found[0]


def kinds(objects: Iterable[Object]) -> set[str]:
    return {item["kind"] for item in objects}


def pod_of(deployment: Object) -> Object:
    """Return the pod that a Deployment would create."""
    template = deployment["spec"]["template"]
    metadata = {
        **template["metadata"],
        "name": deployment["metadata"]["name"][:60],
        "namespace": deployment["metadata"]["namespace"],
    }
    spec = {**template["spec"], "serviceAccountName": "default"}
    spec.pop("priorityClassName", None)
    spec.pop("runtimeClassName", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def dry_run(api: Api, manifest: Object) -> str:
    """Have the API server check an object strictly; return its complaint, or nothing."""
    kind, metadata = manifest["kind"], manifest["metadata"]
    resource = CLUSTER_SCOPED.get(kind) or NAMESPACED[kind]
    where = None if kind in CLUSTER_SCOPED else metadata["namespace"]
    if kind in CLUSTER_SCOPED and "namespace" in metadata:
        return "a namespace in a cluster-scoped object"
    query = {
        "fieldManager": "tests",
        "force": "true",
        "dryRun": "All",
        "fieldValidation": "Strict",
    }
    try:
        await api.request(
            "PATCH",
            resource_path(resource, where, metadata["name"]),
            query=query,
            body=manifest,
            content_type=PATCH_TYPES["apply"],
        )
    except ApiStatusError as error:
        return f"{kind} {metadata['name']}: {error}"
    return ""


async def dry_run_all(api: Api, sets: dict[str, list[Object]]) -> dict[str, list[str]]:
    """Check each different object of all sets once; return the complaints by set."""
    users: dict[str, list[str]] = {}
    for name, objects in sets.items():
        for item in objects:
            users.setdefault(json.dumps(item, sort_keys=True), []).append(name)
    limit = asyncio.Semaphore(16)

    async def check(text: str) -> str:
        async with limit:
            return await dry_run(api, json.loads(text))

    answers = await asyncio.gather(*map(check, users))
    found: dict[str, list[str]] = {}
    for answer, names in zip(answers, users.values(), strict=True):
        for name in names if answer else ():
            found.setdefault(name, []).append(answer)
    return found
