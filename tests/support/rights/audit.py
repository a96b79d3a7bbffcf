"""The rights that a manifest grants, and those that an audit log shows to be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

_REASON = re.compile(
    r'RBAC: allowed by (?:Cluster)?RoleBinding "[^"/]+(?:/[^"]+)?" of (ClusterRole|Role) "([^"]+)"'
)
_OURS = ("llmtrain-", "kopf/")
"""Starts of the user agents of the operator: tests send requests with its token, too."""


@dataclass(frozen=True, order=True, slots=True)
class Right:
    """A verb on a resource, and where: `cluster`, or the namespace `watched` or of the `lease`."""

    where: str
    verb: str
    resource: str

    def __str__(self) -> str:
        return f"{self.where}: {self.verb} {self.resource}"


def granted(objects: Iterable[Object], account: str) -> set[Right]:
    """Return the rights that manifests grant to a service account."""
    objects = list(objects)
    roles = {
        (role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"]): role
        for role in objects
        if role["kind"] in ("Role", "ClusterRole")
    }
    found = set()
    for binding in objects:
        if not binding["kind"].endswith("RoleBinding"):
            continue
        if not any(subject["name"] == account for subject in binding["subjects"]):
            continue
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        for rule in roles[kind, binding["metadata"].get("namespace"), name]["rules"]:
            found |= {
                Right(_where(kind, name), verb, _name(group, resource))
                for verb in rule["verbs"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            }
    return found


def used(events: Iterable[Object]) -> set[Right]:
    """Return the rights that allowed requests of an audit log."""
    found = set()
    for event in events:
        annotations, reference = event.get("annotations") or {}, event.get("objectRef") or {}
        match = _REASON.search(annotations.get("authorization.k8s.io/reason", ""))
        # The end of a watch may be the only event of it after the part of the log begins.
        is_end = event["verb"] == "watch" and event["stage"] == "ResponseComplete"
        if match and reference.get("resource") and not is_end:
            found.add(Right(_where(match[1], match[2]), event["verb"], _resource(reference)))
    return found


def refused(events: Iterable[Object]) -> list[str]:
    """Return the requests of an operator that it had no right to.

    New roles take effect after a moment, so a request that was allowed later does not count. Nor
    does one without a decision: a server that is overloaded refuses requests before it decides.
    """
    decisions: dict[str, set[str]] = {}
    for event in events:
        reference = event.get("objectRef") or {}
        if not event.get("userAgent", "").startswith(_OURS) or not reference.get("resource"):
            continue
        where = reference.get("namespace", "all namespaces")
        request = f"{event['verb']} {_resource(reference)} in {where}"
        decision = (event.get("annotations") or {}).get("authorization.k8s.io/decision")
        if decision:
            decisions.setdefault(request, set()).add(decision)
    return sorted(request for request, found in decisions.items() if found == {"forbid"})


def _where(kind: str, name: str) -> str:
    if kind == "ClusterRole":
        return "cluster"
    return "lease" if name.endswith("-lease") else "watched"


def _resource(reference: Mapping[str, str]) -> str:
    resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
    return _name(reference.get("apiGroup", ""), resource)


def _name(group: str, resource: str) -> str:
    return f"{resource}.{group}" if group else resource
