"""The input and output of the queue: pending jobs, the state of the cluster, and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtrain_core.api.conditions import Reason
from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.devices.demand import NO_SHARED_CLAIMS, SharedClaims
from llmtrain_core.network import FactsCache, NetworkRequest, NodeNetwork
from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.slow_links import SlowLinks
from llmtrain_core.placement import Placement, Request
from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_core.topology.inventory import Snapshot, Usage
from llmtrain_core.topology.resources import is_device

Slot = tuple[str, str]
"""Node and resource."""
UNKNOWN_START_SECONDS = 3600.0
"""Default of `ClusterState.unknown_start_window`."""


def _devices(resources: Mapping[str, int], nodes: int) -> dict[str, int]:
    return {name: amount * nodes for name, amount in resources.items() if is_device(name)}


@dataclass(frozen=True, slots=True)
class PendingJob:
    """A job that waits for its placement."""

    uid: str
    namespace: str
    name: str
    priority: int
    created_at: float
    """Seconds since the epoch."""
    request: Request
    """As the spec has it; once the network is decided, with what that adds."""
    fabric: str | None = None
    """Name of its Fabric; None: the default."""
    attempt: int = 0
    """The attempt that the placement starts."""
    max_duration: float | None = None
    """Upper bound on the seconds that it holds its nodes; None: unbounded."""
    expected_duration: float | None = None
    """Planned or measured seconds that it holds its nodes. Only start estimates use it."""
    can_preempt: bool = True
    """Whether it may preempt jobs of lower priority (`preemptionPolicy` of its class)."""
    awaits_admission: bool = False
    """Whether another queue, such as Kueue, must admit the job after its placement."""
    avoided_nodes: frozenset[str] = frozenset()
    """Nodes that failed while it ran there. Other nodes are tried first."""
    deferred: bool = False
    """Whether it did not take nodes that it was assigned: all others go first, it preempts no job
    and no node is reserved for it."""
    network: NetworkRequest | None = None
    """What it says about its network; None: any nodes, without a network of the table."""
    shared: SharedClaims = NO_SHARED_CLAIMS
    """What its pods claim together."""

    @property
    def key(self) -> str:
        """`namespace/name`, as shown to users."""
        return f"{self.namespace}/{self.name}"

    @property
    def node_count(self) -> int:
        """Number of nodes it needs, spare ones included unless they are optional."""
        return self.request.nodes + (0 if self.request.spares_optional else self.request.spares)

    @property
    def resources(self) -> dict[str, int]:
        """Amount of each resource that it uses on each of its nodes."""
        return self.request.needs

    @property
    def total_devices(self) -> dict[str, int]:
        """Amount of each kind of device that it uses on all of its nodes."""
        return _devices(self.resources, self.node_count)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Nodes and resources that a job, or a terminating pod, holds."""

    uid: str
    namespace: str
    priority: int
    nodes: tuple[str, ...]
    resources: Mapping[str, int]
    """Amount of each resource on each of the nodes."""
    ends_at: float | None = None
    """When the nodes become free, by a deadline or an estimate; None: unknown."""
    lost_seconds: float = 0.0
    """Seconds of training since the last checkpoint, which a preemption would lose."""
    preemptible: bool = True
    unadmitted_since: float | None = None
    """Since when it waits for another queue and does not use the nodes; None: it is admitted."""
    attempt: int = 0
    """The attempt that holds them."""

    @property
    def total_devices(self) -> dict[str, int]:
        """Amount of each kind of device on all nodes."""
        return _devices(self.resources, len(self.nodes))

    @property
    def lost_work(self) -> float:
        """Device-seconds that a preemption would lose."""
        if self.unadmitted_since is not None:
            return 0.0
        return self.lost_seconds * sum(self.total_devices.values())


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that keeps its placement: the nodes of its ranks, and what they communicate."""

    next: PendingJob
    """The job as it would wait for its next attempt."""
    nodes: tuple[str, ...]
    """In order of rank block."""
    step_seconds: float | None
    settled: bool = True
    """Whether all of its pods run, so that a relocation is worth a search."""
    relocation_requested: bool = False
    """Whether its user requested a relocation, and a checkpoint exists to resume from."""
    leaving: frozenset[str] = frozenset()
    """Nodes that are drained, once the job may move to others."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster at one instant."""

    now: float = 0.0
    """Seconds since the epoch."""
    fabrics: Mapping[str | None, Snapshot] = field(default_factory=dict)
    """By name of the Fabric: all nodes, levels and busy uplinks. Their `used` is not read."""
    usage: tuple[Usage, ...] = ()
    """Everything that is in use, by any owner, without `foreign`."""
    allocations: tuple[Allocation, ...] = ()
    """The part of `usage` that will be released, or that a preemption can release."""
    spares: tuple[Allocation, ...] = ()
    """Spare nodes that jobs keep. They are not in `usage`: another job gets them as the last ones.
    """
    expired: tuple[Allocation, ...] = ()
    """Nodes of placements that hold them no longer. A job that gets one displaces the other."""
    running: tuple[RunningJob, ...] = ()
    """Jobs that keep their placement."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    slow_links: Mapping[str, SlowLinks] = field(default_factory=dict)
    """By name of the Fabric."""
    nominated: frozenset[str] = frozenset()
    """UIDs of jobs for which others were preempted. Among jobs of one priority they go first."""
    foreign: Mapping[Slot, int] = field(default_factory=dict)
    """Amount that foreign pods use by node and resource."""
    unknown_start_window: float = UNKNOWN_START_SECONDS
    """Jobs that end within these seconds may use nodes that are reserved without a known start."""
    facts: FactsCache = field(default_factory=FactsCache)
    """Facts of the nodes by which networks are decided."""

    @property
    def spare_nodes(self) -> frozenset[str]:
        """Nodes that some job keeps as a spare."""
        return frozenset(node for spare in self.spares for node in spare.nodes)

    def slow_links_for(self, job: PendingJob) -> Mapping[LinkPath, float]:
        """Return the factors of the slow links that count for a job."""
        found = self.slow_links.get(job.fabric or FABRIC_NAME)
        return {} if found is None else found.of(job.namespace)

    @property
    def used(self) -> dict[Slot, int]:
        """Amount in use by node and resource."""
        used = dict(self.foreign)
        for item in self.usage:
            slot = (item.node, item.resource)
            used[slot] = used.get(slot, 0) + item.amount
        return used


@dataclass(frozen=True, slots=True)
class Assignment:
    """Nodes for a whole gang, which starts now."""

    attempt: int
    placement: Placement
    resources: Mapping[str, int]
    """Amount of each resource on each node."""
    gpus_per_node: int
    priority: int = 0
    """Priority of the job, which it keeps while it has the nodes."""
    backfilled: bool = False
    """Whether the job starts before a job ahead of it that cannot start yet."""
    note: str = ""
    """Appended to the explanation of the placement."""
    network: NodeNetwork | None = None
    """Network of all of its nodes; None if none was decided."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes: those with ranks in order of rank block, then the spare ones."""
        return tuple(node.name for node in (*self.placement.nodes, *self.placement.spares))


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """The job cannot start now."""

    reason: Reason
    message: str
    """What blocks it. Without that, it starts."""
    starts_at: float | None = None
    """Estimated start in seconds since the epoch; None: it depends on jobs without a known end."""
    victims: tuple[str, ...] = ()
    """UIDs of the jobs to preempt for it, all of them."""
    behind: tuple[str, ...] = ()
    """Keys of the jobs ahead for which nodes are reserved."""
    ahead: tuple[str, ...] = ()
    """Keys of the other jobs ahead that could use the same nodes, and start before it."""
    blockers: tuple[str, ...] = ()
    """The fewest nodes that would be enough if they were free and eligible."""


QueueDecision = Assignment | Unschedulable
