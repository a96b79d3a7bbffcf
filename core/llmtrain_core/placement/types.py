"""The interface of the placement: what is asked, and the two possible answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api.check import Job
from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.job import Toleration
from llmtrain_core.layout import Layout
from llmtrain_core.topology.inventory import extended_amounts


def extra_resources(resources: Mapping[str, Any], rdma: Mapping[str, Any]) -> dict[str, int]:
    """Extended resources of a node besides its GPUs.

    The arguments are `workers.resources` and `network.rdma` as a manifest writes them.
    """
    devices = {str(rdma["resource"]): int(rdma.get("count", 1))} if rdma else {}
    return {**extended_amounts(resources), **devices}


@dataclass(frozen=True, slots=True)
class Request:
    """A gang: so many nodes with so many free GPUs each, and where they may be."""

    layout: Layout
    nodes: int
    gpus_per_node: int
    gpu_resource: str = "nvidia.com/gpu"
    extra: Mapping[str, int] = field(default_factory=dict)
    """Other extended resources that each node must have free, for example RDMA devices."""
    require: str | None = None
    prefer: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    excluded: frozenset[str] = frozenset()

    @classmethod
    def of(cls, job: Job) -> Request:
        """Build the request of a checked job."""
        workers, topology, network = job.spec.workers, job.spec.topology, job.spec.network
        rdma = network.rdma if network else None
        asked = workers.resources
        return cls(
            layout=job.layout,
            nodes=job.nodes,
            gpus_per_node=workers.gpus_per_node,
            gpu_resource=workers.gpu_resource,
            extra=extra_resources(asked.to_wire() if asked else {}, rdma.to_wire() if rdma else {}),
            require=topology.require if topology else None,
            prefer=topology.prefer if topology else None,
            node_selector=workers.node_selector or {},
            tolerations=tuple(workers.tolerations or ()),
            excluded=frozenset((topology.exclude_nodes if topology else None) or ()),
        )


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """One node of a placement: its ranks and its domains from far to near."""

    name: str
    ranks: tuple[int, ...]
    path: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Placement:
    """The answer to a request that fits. Node i holds block i of the ranks."""

    nodes: tuple[PlacedNode, ...]
    domains: Mapping[str, int]
    """Domains used, by level."""
    crossings: Mapping[str, Mapping[str, int]]
    """Groups that span more than one domain, by level and kind of group."""
    explanation: str

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {
            "fits": True,
            "nodes": [
                {"name": n.name, "ranks": list(n.ranks), "path": dict(n.path)} for n in self.nodes
            ],
            "spares": [],
            "domains": dict(self.domains),
            "crossings": {level: dict(groups) for level, groups in self.crossings.items()},
            "reasons": [self.explanation],
        }


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """The answer to a request that does not fit now: what is short, and where."""

    reason: Reason
    message: str
    free_nodes: Mapping[str, Mapping[str, int]]
    """Nodes with room for one block, by level and domain path."""
    refused: Mapping[str, int]
    """Nodes that do not count, by the reason they are left out."""

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {
            "fits": False,
            "nodes": [],
            "spares": [],
            "reason": str(self.reason),
            "reasons": [self.message],
            "freeNodes": {level: dict(domains) for level, domains in self.free_nodes.items()},
            "refused": dict(self.refused),
        }
