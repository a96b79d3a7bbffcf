"""What a node shows of its network: labels, allocatable resources, drivers of devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.topology.inventory import Node

INSTANCE_TYPE = "node.kubernetes.io/instance-type"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node shows of its network."""

    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    """Amounts by resource; bytes for huge pages."""
    drivers: frozenset[str] = frozenset()
    """Drivers that publish devices of the node in ResourceSlices."""

    @classmethod
    def of(cls, node: Node, drivers: frozenset[str] = frozenset()) -> NodeFacts:
        """Return the facts of a node."""
        return cls(node.labels, node.allocatable, drivers)

    def amount(self, resource: str) -> int:
        """Return the allocatable amount of a resource."""
        return self.allocatable.get(resource, 0)

    def resources(self, prefix: str) -> list[str]:
        """Return the names of the resources with a prefix that the node has, sorted."""
        return sorted(
            n for n, amount in self.allocatable.items() if n.startswith(prefix) and amount
        )

    def has_label(self, prefix: str) -> bool:
        """Return True if the key of a label has this prefix."""
        return any(key.startswith(prefix) for key in self.labels)

    def allocatable_fact(self, resource: str) -> str:
        """Return the fact that the node has a resource."""
        return f"allocatable {resource}: {self.amount(resource)}"

    def label_fact(self, label: str) -> str:
        """Return the fact that the node has a label."""
        return f"label {label}={self.labels[label]}"


def drivers_by_node(slices: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Return the drivers that publish devices of each node, from ResourceSlice objects."""
    found: dict[str, set[str]] = {}
    for item in slices:
        spec = item["spec"]
        if spec.get("nodeName"):
            found.setdefault(spec["nodeName"], set()).add(spec["driver"])
    return {node: frozenset(drivers) for node, drivers in found.items()}
