"""What a node shows of its network: labels, allocatable resources, drivers of devices."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.resources import is_device, is_huge_pages

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
ACCELERATOR = "cloud.google.com/gke-accelerator"
_READ = frozenset({INSTANCE_TYPE, ACCELERATOR})
"""Labels whose values the table reads. Of the others only the keys count."""
_MAX_KINDS = 4096
"""Different facts that a FactsCache keeps. Nodes of one kind have the same."""


def is_of_network(resource: str) -> bool:
    """Return True for a resource that a network may add to pods: devices and huge pages."""
    return is_device(resource) or is_huge_pages(resource)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node shows of its network."""

    labels: Mapping[str, str]
    """Values are empty for the labels of which only the key counts."""
    allocatable: Mapping[str, int]
    """Amounts by device; bytes for huge pages."""
    drivers: frozenset[str] = frozenset()
    """Drivers that publish devices of the node in ResourceSlices."""

    @classmethod
    def of(cls, node: Node) -> NodeFacts:
        """Return the facts of a node. Nodes of one kind have equal facts."""
        labels = {key: value if key in _READ else "" for key, value in node.labels.items()}
        amounts = {name: amount for name, amount in node.allocatable.items() if is_of_network(name)}
        return cls(labels, amounts, node.drivers)

    @property
    def key(self) -> Hashable:
        """Equal for equal facts."""
        labels, amounts = sorted(self.labels.items()), sorted(self.allocatable.items())
        return tuple(labels), tuple(amounts), self.drivers

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


class FactsCache:
    """The facts of the nodes of a cluster, computed once per change of a node.

    Nodes with equal facts share one object, so that their network is decided once.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, tuple[Node, NodeFacts]] = {}
        self._kinds: dict[Hashable, NodeFacts] = {}

    def of(self, nodes: Iterable[Node]) -> dict[str, NodeFacts]:
        """Return the facts of all nodes by name. Nodes that are not among them are forgotten."""
        before, self._by_name = self._by_name, {}
        for node in nodes:
            known = before.get(node.name)
            if known is None or known[0] is not node:
                known = (node, self._shared(NodeFacts.of(node)))
            self._by_name[node.name] = known
        return {name: facts for name, (_, facts) in self._by_name.items()}

    def _shared(self, facts: NodeFacts) -> NodeFacts:
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        return self._kinds.setdefault(facts.key, facts)
