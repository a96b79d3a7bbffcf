"""Nodes, jobs and queues for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from llmtrain_core.network import NetworkRequest
from llmtrain_core.placement import Request
from llmtrain_core.queueing import (
    Allocation,
    Assignment,
    ClusterState,
    PendingJob,
    RunningJob,
    Unschedulable,
)
from llmtrain_core.queueing.quarantine import Quarantine, quarantine
from llmtrain_core.topology.inventory import Node, Usage
from llmtrain_core.topology.resources import is_device
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.records import (
    FabricRecord,
    JobRecord,
    PodRecord,
    PriorityRecord,
    fabric_record,
)
from llmtrain_operator.scheduler.cycle import decide as decided
from llmtrain_operator.scheduler.decisions import JobDecision
from llmtrain_operator.scheduler.fabric_snapshots import FabricSnapshots
from llmtrain_operator.scheduler.held_nodes import held_by_jobs
from llmtrain_operator.scheduler.jobs import node_failures, pending_job
from llmtrain_operator.scheduler.usage import usage
from tests.support.operator_harness.harness import job_object

GPU = "nvidia.com/gpu"
HOSTNAME = "kubernetes.io/hostname"
SPINE, LEAF = "network.topology.nvidia.com/spine", "network.topology.nvidia.com/leaf"


def nodes(count: int, gpus: int = 8, per_leaf: int = 4) -> tuple[Node, ...]:
    return tuple(
        Node(
            f"n{index}",
            {SPINE: f"s{index // (2 * per_leaf)}", LEAF: f"l{index // per_leaf}", "pool": "all"},
            {GPU: gpus},
        )
        for index in range(count)
    )


def job(name: str, count: int, gpus: int = 8, **spec: Any) -> Job:
    workers = {"nodes": count, "gpusPerNode": gpus, "command": ["x"], **spec.pop("workers", {})}
    degrees = {"tensor": gpus, "data": count}
    raw = job_object(name, "ns", workers=workers, parallelism=degrees, **spec)
    found = check(name, raw["spec"])
    assert isinstance(found, Job), found
    return found


def waiting_job(
    name: str,
    count: int,
    gpus: int = 8,
    *,
    priority: int = 0,
    fabric: str | None = None,
    **spec: Any,
) -> PendingJob:
    """A job that came in the second that its name ends with."""
    found = job(name, count, gpus, **spec)
    request = Request.of(found)
    network = NetworkRequest.of(found)
    return PendingJob(name, "ns", name, priority, float(name[-1]), request, fabric, network=network)


def cluster(
    nodes: Iterable[Node],
    taken: tuple[Usage, ...] = (),
    fabrics: Mapping[str, FabricRecord] | None = None,
    allocations: tuple[Allocation, ...] = (),
    running: tuple[RunningJob, ...] = (),
    expired: tuple[Allocation, ...] = (),
) -> ClusterState:
    return ClusterState(
        fabrics=FabricSnapshots(nodes, fabrics or {}, running),
        usage=taken,
        allocations=allocations,
        expired=expired,
        running=running,
    )


def rack_nodes(*numbers: int) -> tuple[Node, ...]:
    """Return nodes of the racks a, b and c; the names are a rack and a number, as in a1."""
    return tuple(
        Node(name := f"{rack}{number}", {"rack": rack, HOSTNAME: name}, {GPU: 8})
        for rack in "abc"
        for number in numbers
    )


def decide(queue: Iterable[PendingJob], state: ClusterState) -> Mapping[str, JobDecision]:
    return decided({job.uid: job for job in queue}, state).pending


def placed(pending: PendingJob, state: ClusterState) -> tuple[str, ...]:
    """Return the nodes that a cycle gives to the only job of its queue."""
    decision = decide([pending], state)[pending.uid]
    assert isinstance(decision, Assignment), decision
    return decision.nodes


def refusal(decision: object) -> Unschedulable:
    assert isinstance(decision, Unschedulable), decision
    return decision


def fabric(spec: Mapping[str, Any], name: str = "default") -> dict[str, FabricRecord]:
    return {name: fabric_record({"metadata": {"name": name}, "spec": spec})}


def thin_uplinks(level: str, label: str) -> dict[str, FabricRecord]:
    """Return a Fabric of one level above the node, whose uplinks are oversubscribed."""
    far = {"name": level, "nodeLabel": label, "oversubscription": 4}
    return fabric({"levels": [far, {"name": "node", "nodeLabel": HOSTNAME}]})


def record(
    name: str, status: dict[str, Any] | None = None, namespace: str = "ns", **spec: Any
) -> JobRecord:
    raw = job_object(name, namespace, **spec)
    raw["metadata"] |= {"uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    if status is not None:
        raw["status"] = status
    return JobRecord(name, namespace, name, 1, raw)


def quarantine_after(jobs: Iterable[JobRecord], now: float, count: int = 8) -> Quarantine:
    """The quarantine after the failures of jobs, in a cluster of the nodes n0, n1, ..."""
    return quarantine(node_failures(jobs), now, {f"n{index}": "" for index in range(count)})


def as_pending(
    found: JobRecord,
    fabrics: Mapping[str, FabricRecord] | None = None,
    **priorities: PriorityRecord,
) -> PendingJob | Unschedulable | None:
    checked = check(found.name, found.raw["spec"])
    return pending_job(found, checked, priorities, fabrics or {})


def in_use(
    jobs: Iterable[JobRecord],
    pods: Iterable[PodRecord] = (),
    assignments: Mapping[str, Assignment] = MappingProxyType({}),
    now: float = 0.0,
) -> list[Usage]:
    """Everything that is in use, by default before any reservation has expired."""
    jobs, pods = list(jobs), list(pods)
    return usage(jobs, pods, assignments, held_by_jobs(jobs, pods, now))


def total(items: list[Usage]) -> dict[tuple[str, str], int]:
    """Devices in use by node and owner."""
    found: dict[tuple[str, str], int] = {}
    for item in items:
        if is_device(item.resource):
            found[item.node, item.owner] = found.get((item.node, item.owner), 0) + item.amount
    return found
