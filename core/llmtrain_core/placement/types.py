"""The interface of the placement: the request and the two possible results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.defaults import GPU_RESOURCE, SHM_SIZE
from llmtrain_core.api.job import Toleration
from llmtrain_core.devices.demand import claim_amounts, counted_gpus, is_claimed
from llmtrain_core.layout import Layout
from llmtrain_core.network.gang import GangNetwork
from llmtrain_core.network.profile import NodeNetwork
from llmtrain_core.placement.traffic.job_traffic import planned_step_seconds, volumes_of_job
from llmtrain_core.placement.traffic.volumes import (
    NOMINAL_STEP_SECONDS,
    TrafficVolumes,
    nominal_volumes,
)
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.topology.resources import (
    MEMORY,
    PODS,
    amounts,
    container_requests,
    is_device,
)
from llmtrain_core.validation.check import Job

DOMAIN_TOLERANCE = 0.01
"""Default share of the planned step below which a gain does not justify the use of more domains."""


def extra_resources(workers: Mapping[str, Any], rdma: Mapping[str, Any]) -> dict[str, int]:
    """Return what a job needs per node besides GPUs: CPU, memory, RDMA devices.

    The arguments are `workers` and `network.rdma` as a manifest writes them. Shared memory is part
    of the memory, as in `Workers.memory_request`. Init containers run before the trainer, so a pod
    requests the larger amount of the two. The sidecars of a patch run beside both.
    """
    devices = {str(rdma["resource"]): int(rdma.get("count", 1))} if rdma else {}
    shared = amounts({MEMORY: workers.get("shmSize", SHM_SIZE)})
    needs = container_requests(workers.get("resources") or {})
    needs[MEMORY] = max(needs.get(MEMORY, 0), shared.get(MEMORY, 0))
    for container in workers.get("initContainers") or ():
        for name, amount in container_requests(container.get("resources") or {}).items():
            needs[name] = max(needs.get(name, 0), amount)
    for name, amount in sidecar_resources(workers).items():
        needs[name] = needs.get(name, 0) + amount
    return {**needs, **devices}


def sidecar_resources(workers: Mapping[str, Any]) -> dict[str, int]:
    """Return what the sidecars of `podPatch` request together, as `workers` has them."""
    patch, needs = (workers.get("podPatch") or {}).get("spec") or {}, dict[str, int]()
    for sidecar in patch.get("initContainers") or ():
        for name, amount in container_requests(sidecar.get("resources") or {}).items():
            needs[name] = needs.get(name, 0) + amount
    return needs


def with_added(
    extra: Mapping[str, int], added: Mapping[str, int], sidecars: Mapping[str, int]
) -> dict[str, int]:
    """Return what a job needs per node once its network adds amounts to the trainer.

    Sidecars run beside the trainer, so that the pod requests both.
    """
    found = dict(extra)
    for name, amount in added.items():
        found[name] = max(amount + sidecars.get(name, 0), extra.get(name, 0))
    return found


def node_needs(gpu_resource: str, gpus: int, extra: Mapping[str, int]) -> dict[str, int]:
    """Return the amount of each resource that the pod of a job takes on its node."""
    return {gpu_resource: gpus, **extra, PODS: 1}


def device_tolerations(resources: Iterable[str]) -> list[Toleration]:
    """Return the tolerations of a pod for the taints of the devices that it requests.

    Nodes with devices are often tainted with the name of the resource, to keep other pods off. The
    admission plugin ExtendedResourceToleration adds the same tolerations, where it is enabled.
    """
    return [
        Toleration(key=name, operator="Exists", effect="NoSchedule")
        for name in sorted(resources)
        if is_device(name)
    ]


@dataclass(frozen=True, slots=True)
class Request:
    """A gang: the number of nodes and of GPUs per node, and its topology constraints."""

    layout: Layout
    nodes: int
    gpus_per_node: int
    gpu_resource: str = GPU_RESOURCE
    extra: Mapping[str, int] = field(default_factory=dict)
    """Other resources that each node must have free: CPU, memory, RDMA devices."""
    sidecars: Mapping[str, int] = field(default_factory=dict)
    """The part of them that sidecars of a patch request."""
    require: str | None = None
    prefer: str | None = None
    tensor_within: str | None = None
    """Level of which every tensor group must be in one domain; None: the node."""
    spares: int = 0
    """Free nodes near the gang that replace failed nodes."""
    spares_optional: bool = False
    """Whether the job starts with fewer spares rather than not at all."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    excluded: frozenset[str] = frozenset()
    too_small: frozenset[str] = frozenset()
    """Nodes whose GPUs have too little memory for the job."""
    network: GangNetwork | None = None
    """Network of the gang, which excludes the nodes with other networks. None: any node."""
    volumes: TrafficVolumes | None = None
    """Traffic of the groups; None if the model is not known."""
    step_seconds: float | None = None
    """Planned time of a step; None if it is not known."""
    domain_tolerance: float = DOMAIN_TOLERANCE
    """Share of a step below which a gain does not justify the use of more domains."""

    @property
    def tolerated_seconds(self) -> float:
        """Seconds of a step below which a gain does not justify the use of more domains.

        With traffic of a known size and without the time of a step it is 0: any gain does.
        """
        step = NOMINAL_STEP_SECONDS if self.volumes is None else self.step_seconds
        return self.domain_tolerance * (step or 0.0)

    def with_network(self, network: GangNetwork) -> Request:
        """Return the request with what a network adds to the pods, on the nodes that have it."""
        added = network.network.resources if network.network else {}
        return replace(self.with_resources(added), network=network)

    def with_resources(self, added: Mapping[str, int]) -> Request:
        """Return the request with other resources of the trainer, and tolerations for taints."""
        if not added:
            return self
        more = [t for t in device_tolerations(added) if t not in self.tolerations]
        extra = with_added(self.extra, added, self.sidecars)
        return replace(self, extra=extra, tolerations=(*self.tolerations, *more))

    def with_extended(self, extended: Mapping[str, str]) -> Request:
        """Return the request with the extended resources that its claims take as well.

        `extended` are their names by the name of the amount of the devices. Pods that request them
        get the same devices.
        """
        more = {
            name: self.needs[resource]
            for resource, name in extended.items()
            if self.needs.get(resource) and name != self.gpu_resource
        }
        return replace(self, extra={**self.extra, **more}) if more else self

    @property
    def claims(self) -> list[str]:
        """Names of the amounts that pods take by claims."""
        return [name for name in self.needs if is_claimed(name)]

    @property
    def chosen_network(self) -> NodeNetwork | None:
        """Network of the pods; None if it is not decided, or no node has one for the job."""
        return None if self.network is None else self.network.network

    @property
    def needs(self) -> dict[str, int]:
        """Amount of each resource that a pod takes on its node."""
        return node_needs(self.gpu_resource, self.gpus_per_node, self.extra)

    @property
    def traffic(self) -> TrafficVolumes:
        """Traffic of the groups, or typical values if the model is not known."""
        return nominal_volumes(self.layout) if self.volumes is None else self.volumes

    @classmethod
    def of(
        cls,
        job: Job,
        hardware: Accelerator | None = None,
        domain_tolerance: float = DOMAIN_TOLERANCE,
    ) -> Request:
        """Build the request of a checked job, to run on `hardware` if that is known."""
        workers, topology, network = job.spec.workers, job.spec.topology, job.spec.network
        rdma = network.rdma if network else None
        wire = workers.to_wire()
        extra = extra_resources(wire, rdma.to_wire() if rdma else {})
        tolerated = device_tolerations({workers.gpu_resource, *extra})
        gpu_resource = counted_gpus(workers)
        claimed = claim_amounts(job.spec)
        if claimed.get(gpu_resource) == workers.gpus_per_node:
            del claimed[gpu_resource]
        return cls(
            layout=job.layout,
            nodes=job.nodes,
            gpus_per_node=workers.gpus_per_node,
            gpu_resource=gpu_resource,
            extra={**extra, **claimed},
            sidecars=sidecar_resources(wire),
            require=topology.require if topology else None,
            prefer=topology.prefer if topology else None,
            tensor_within=topology.tensor_within if topology else None,
            spares=topology.spares if topology else 0,
            node_selector=workers.node_selector or {},
            tolerations=(*(workers.tolerations or ()), *tolerated),
            excluded=frozenset((topology.exclude_nodes if topology else None) or ()),
            volumes=volumes_of_job(job, hardware),
            step_seconds=planned_step_seconds(job, hardware),
            domain_tolerance=domain_tolerance,
        )


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """One node of a placement: its ranks and its domains from far to near."""

    name: str
    ranks: tuple[int, ...]
    path: Mapping[str, str]

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {"name": self.name, "ranks": list(self.ranks), "path": dict(self.path)}


@dataclass(frozen=True, slots=True)
class PlacementCost:
    """Exposed communication time of one step."""

    seconds: float
    ideal_seconds: float
    """The same with all nodes in one leaf domain; never more than `seconds`. Where NVLink spans
    nodes: with unlimited uplinks, in the best of three ways to use it."""
    by_group: Mapping[str, float]
    """Seconds by kind of group."""

    @property
    def slowdown(self) -> float:
        """Cost over the ideal cost; 1 for a job without traffic."""
        return self.seconds / self.ideal_seconds if self.ideal_seconds else 1.0

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {
            "seconds": self.seconds,
            "idealSeconds": self.ideal_seconds,
            "byGroup": dict(self.by_group),
        }


NO_COST = PlacementCost(0.0, 0.0, {})


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best other placement, and why it was not chosen."""

    method: str
    seconds: float
    domains: Mapping[str, int]
    why: str

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {
            "method": self.method,
            "seconds": self.seconds,
            "domains": dict(self.domains),
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Placement:
    """The result for a request that fits. Node i has block i of the ranks."""

    nodes: tuple[PlacedNode, ...]
    domains: Mapping[str, int]
    """Domains used, by level."""
    crossings: Mapping[str, Mapping[str, int]]
    """Groups that span more than one domain, by level and kind of group."""
    explanation: str
    cost: PlacementCost = NO_COST
    spares: tuple[PlacedNode, ...] = ()
    """Free nodes that replace failed ones, nearest first; they have no ranks."""
    reasons: tuple[str, ...] = ()
    """What determined the placement, in sentences."""
    alternative: Alternative | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {
            "fits": True,
            "nodes": [node.to_wire() for node in self.nodes],
            "spares": [node.to_wire() for node in self.spares],
            "cost": self.cost.to_wire(),
            "domains": dict(self.domains),
            "crossings": {level: dict(groups) for level, groups in self.crossings.items()},
            "reasons": [self.explanation, *self.reasons],
            "alternative": self.alternative.to_wire() if self.alternative else None,
        }


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """The result for a request that does not fit now: what is short, and where."""

    reason: Reason
    message: str
    free_nodes: Mapping[str, Mapping[str, int]]
    """Nodes that can hold one block, by level and domain path."""
    refused: Mapping[str, int]
    """Number of nodes that cannot hold a block, by cause."""
    blockers: tuple[str, ...] = ()
    """The smallest set of nodes that must become available; empty if waiting is no use."""

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON that `llmtrain place` prints."""
        return {
            "fits": False,
            "nodes": [],
            "spares": [],
            "cost": None,
            "domains": {},
            "crossings": {},
            "alternative": None,
            "reason": str(self.reason),
            "reasons": [self.message],
            "blockers": list(self.blockers),
            "freeNodes": {level: dict(domains) for level, domains in self.free_nodes.items()},
            "refused": dict(self.refused),
        }
