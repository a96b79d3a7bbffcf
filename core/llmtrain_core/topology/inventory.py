"""Nodes and pods as used by the placement, read from Kubernetes objects.

A domain's identity is its whole path, so a leaf named `l1` under two spines is two leaves. A node
without the label of a level is alone in a separate domain there, and the gap is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.job import Toleration
from llmtrain_core.node_health import CORDON_ROW, DEFAULT_TABLE, HealthFinding, HealthTable
from llmtrain_core.topology.levels import NODE, Levels
from llmtrain_core.topology.links import Links
from llmtrain_core.topology.resources import (
    CPU,
    MEMORY,
    PODS,
    amounts,
    foreign_requests,
    pod_requests,
)

_UNLIMITED = 2**63
_ALWAYS_REPORTED = frozenset({CPU, MEMORY, PODS})
_ALONE, _ESCAPE = "unlabelled:", "\\"
_NOT_TOLERABLE_EFFECTS = frozenset({"NoSchedule", "NoExecute"})


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str

    def tolerated_by(self, toleration: Toleration) -> bool:
        """Return True if a toleration matches this taint (the rules of kube-scheduler)."""
        if toleration.effect is not None and toleration.effect != self.effect:
            return False
        if toleration.key is not None and toleration.key != self.key:
            return False
        if toleration.operator == "Exists":
            return True
        return toleration.key is not None and (toleration.value or "") == self.value


@dataclass(frozen=True, slots=True)
class Node:
    """A node: labels, allocatable resources, and whether it accepts pods."""

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    ready: bool = True
    cordoned: bool = False
    taints: tuple[Taint, ...] = ()
    health: tuple[HealthFinding, ...] = ()
    """What the node health table finds."""
    drivers: frozenset[str] = frozenset()
    """Drivers of dynamic resource allocation that publish devices of the node."""

    def avoided_for(self) -> Iterator[HealthFinding]:
        """Yield the findings that keep jobs from the node, besides a cordon."""
        return (f for f in self.health if f.in_force and f.row != CORDON_ROW)

    @property
    def avoided(self) -> bool:
        """Whether a finding keeps jobs from the node, besides a cordon."""
        return any(True for _ in self.avoided_for())

    @property
    def leaving(self) -> HealthFinding | None:
        """Why jobs that run on the node relocate; None if they stay."""
        return next((f for f in self.health if f.leave and f.in_force), None)

    def total(self, resource: str) -> int:
        """Return the allocatable amount of a resource.

        Every kubelet reports CPU, memory and pods. In a shortened file they may be missing: then
        they do not limit the node.
        """
        return self.allocatable.get(resource, _UNLIMITED if resource in _ALWAYS_REPORTED else 0)


@dataclass(frozen=True, slots=True)
class Usage:
    """The amount of a resource that one pod, or one stored placement, holds on a node.

    `owner` is the job's UID for pods and placements of ours, so that neither counts twice.
    """

    node: str
    resource: str
    amount: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the cluster at one instant: the input of a placement decision."""

    levels: Levels
    nodes: tuple[Node, ...]
    used: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Amount in use by (node, resource)."""
    links: Links = field(default_factory=Links)
    """Rates of NICs and NVLink."""
    uplinks: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    """Share of the uplinks of a domain that other jobs use, by its path from far to near."""
    withheld: frozenset[str] = frozenset()
    """Nodes that are reserved for an earlier job: part of the fabric, but not available now."""

    def free(self, node: Node, resource: str) -> int:
        """Amount of a resource that is still free on a node; never negative."""
        return max(0, node.total(resource) - self.used.get((node.name, resource), 0))

    def path(self, node: Node) -> tuple[str, ...]:
        """Domains of a node from far to near, the node last."""
        found = (level.domain(node.labels) for level in self.levels[:-1])
        return (*(alone(node) if name is None else _named(name) for name in found), node.name)

    def missing_labels(self) -> dict[str, list[str]]:
        """Nodes without the label of a level, by label; empty when all is well.

        A node without the label of an NVLink domain is no gap: its NVLink ends at the node.
        """
        gaps: dict[str, list[str]] = {}
        for level in self.levels:
            if level == NODE or level.nvlink:
                continue
            without = [n.name for n in self.nodes if level.domain(n.labels) is None]
            if without:
                gaps[level.node_label] = without
        return gaps


def alone(node: Node) -> str:
    """Name the domain of a node that lacks a level's label; no label value can be equal to it."""
    return f"{_ALONE}{node.name}"


def _named(value: str) -> str:
    """Name the domain of a label's value, which in a file may be anything, also a name as above."""
    return f"{_ESCAPE}{value}" if value.startswith((_ALONE, _ESCAPE)) else value


def snapshot(levels: Levels, nodes: Iterable[Node], usage: Iterable[Usage]) -> Snapshot:
    """Add up what is in use. The order of nodes and usage does not matter."""
    used: dict[tuple[str, str], int] = {}
    for item in usage:
        key = (item.node, item.resource)
        used[key] = used.get(key, 0) + item.amount
    return Snapshot(levels, tuple(sorted(nodes, key=lambda n: n.name)), used)


def node_from_raw(raw: Mapping[str, Any], table: HealthTable = DEFAULT_TABLE) -> Node:
    """Read a Node object as the API server prints it, with what the table finds on it."""
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    allocatable = amounts(status.get("allocatable") or {})
    return Node(
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        allocatable=allocatable,
        ready=conditions.get("Ready") == "True",
        cordoned=bool(spec.get("unschedulable")),
        taints=tuple(
            Taint(taint["key"], taint.get("value", ""), taint["effect"])
            for taint in spec.get("taints") or []
            if taint["effect"] in _NOT_TOLERABLE_EFFECTS
        ),
        health=table.findings(raw, amounts(status.get("capacity") or {}), allocatable),
    )


def usage_from_pods(pods: Iterable[Mapping[str, Any]], owner_label: str = "") -> list[Usage]:
    """Read what bound, unfinished pods hold; `owner_label` names the label with the job's UID."""
    usage: list[Usage] = []
    for pod in pods:
        owner = (pod["metadata"].get("labels") or {}).get(owner_label, "")
        held = held_by_pod(pod)
        usage += [
            Usage(pod["spec"]["nodeName"], name, amount, owner) for name, amount in held.items()
        ]
    return usage


def held_by_pod(pod: Mapping[str, Any]) -> dict[str, int]:
    """Return what a pod holds of its node; nothing if it has none, or has ended."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in {"Succeeded", "Failed"}:
        return {}
    of_job = labels.JOB_UID in (pod["metadata"].get("labels") or {})
    return (pod_requests if of_job else foreign_requests)(spec, status)


def tolerates(node: Node, tolerations: Sequence[Toleration]) -> bool:
    """Whether every taint of the node is tolerated."""
    return all(any(taint.tolerated_by(t) for t in tolerations) for taint in node.taints)
