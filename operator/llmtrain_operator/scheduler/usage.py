"""Resources in use by node: of pods and of placements, each counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from llmtrain_core.api.defaults import GPU_RESOURCE
from llmtrain_core.devices.demand import gpu_resource_of
from llmtrain_core.placement import (
    Request,
    extra_resources,
    node_needs,
    sidecar_resources,
    with_added,
)
from llmtrain_core.queueing import Allocation, Assignment, PendingJob
from llmtrain_core.topology.inventory import Usage
from llmtrain_core.topology.resources import PODS
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.manifests.pod_network import PodNetwork
from llmtrain_operator.scheduler.held_nodes import HeldNodes

UNEXPECTED_SECONDS = 90.0
"""A pod whose grace period ends this much earlier or later than expected has no known end."""

_Amounts = dict[tuple[str, str, str], int]
"""Amount by owner, node and resource."""


def node_resources(view: JobView) -> dict[str, int]:
    """Return what a job uses on each node of its stored placement. The spec may be invalid."""
    workers, network = view.spec.get("workers") or {}, view.spec.get("network") or {}
    gpus = int((view.stored_placement or {}).get("gpusPerNode", 0))
    added = PodNetwork.of_status(view.stored_network).needs
    extra = extra_resources(workers, network.get("rdma") or {})
    extra = with_added(extra, added, sidecar_resources(workers))
    return node_needs(gpu_resource_of(workers, GPU_RESOURCE), gpus, extra)


def placed_resources(view: JobView) -> dict[str, int]:
    """Return what a placed job uses on each of its nodes.

    The placement has what the API server adds to its pods, unless an earlier version wrote it.
    """
    placement = view.stored_placement or {}
    found = node_resources(view)
    for name, amount in (placement.get("resources") or {}).items():
        found[name] = max(found.get(name, 0), int(amount))
    return found


def with_pod_requests(job: PendingJob, requests: Mapping[str, int]) -> PendingJob:
    """Return the job with what its pod requests once the API server has added to it.

    A LimitRange sets defaults, a RuntimeClass an overhead, and a webhook adds containers.
    """
    request = request_of_pods(job.request, requests)
    return job if request is job.request else replace(job, request=request)


def request_of_pods(request: Request, requests: Mapping[str, int]) -> Request:
    """Return the request of a job with what one of its pods requests."""
    extra = dict(request.extra)
    for name, amount in requests.items():
        if name not in (PODS, request.gpu_resource):
            extra[name] = max(extra.get(name, 0), amount)
    return request if extra == request.extra else replace(request, extra=extra)


def usage(
    jobs: Iterable[JobRecord],
    pods: Iterable[PodRecord],
    assignments: Mapping[str, Assignment],
    held: HeldNodes,
) -> list[Usage]:
    """Return everything that is in use, without foreign pods.

    The pods of a job and its placement (or the assignment that is not in its status yet) are the
    same GPUs: on each node the larger of the two counts. Only bound pods count: any user can create
    pods with our labels and owner references that are pinned to all nodes and never start. Pods
    that do not belong to the job's placement any more count until they end.
    """
    known = {job.uid: job for job in jobs}
    by_pods = _used_by_pods(known, pods)
    reserved: _Amounts = {}
    for uid, nodes in held.items():
        _reserve(reserved, uid, nodes, placed_resources(known[uid].view))
    for uid, assignment in assignments.items():
        _reserve(reserved, uid, assignment.nodes, assignment.resources)
    return [
        Usage(key[1], key[2], max(by_pods.get(key, 0), reserved.get(key, 0)), key[0])
        for key in by_pods.keys() | reserved.keys()
    ]


def used_by_others(
    job: JobRecord,
    node: str,
    resources: Iterable[str],
    pods: Iterable[PodRecord],
    foreign: Mapping[tuple[str, str], int],
) -> dict[tuple[str, str], int]:
    """Return what all but a job use of these resources on a node; `pods` are those on the node.

    Other jobs have no placement there that counts: the job holds the node.
    """
    used = {(node, resource): foreign.get((node, resource), 0) for resource in resources}
    for pod in pods:
        if pod.bound and not pod.ended and not pod.belongs_to(job):
            for resource, amount in pod.resources:
                used[node, resource] = used.get((node, resource), 0) + amount
    return used


def terminating_allocations(
    jobs: Iterable[JobRecord], pods: Sequence[PodRecord], ends_at: float, held: HeldNodes
) -> list[Allocation]:
    """Return what pods still hold on nodes that their job has released.

    The job was suspended, preempted, deleted, or placed on other nodes. Pods that do not end in
    time are left out: if they counted, a job that waits for their nodes would never preempt others.
    """
    known = {job.uid: job for job in jobs}
    pods = [pod for pod in pods if _ends_in_time(pod, ends_at)]
    return [
        Allocation("", namespace, 0, (node,), resources, ends_at, preemptible=False)
        for namespace, node, resources in (
            *_released_by_jobs(known, pods, held),
            *_left_by_deleted_jobs(known, pods),
        )
    ]


def _ends_in_time(pod: PodRecord, ends_at: float) -> bool:
    """Return False for a pod that is overdue, or whose user gave it a long grace period."""
    return not pod.ends_by or abs(ends_at - pod.ends_by) <= UNEXPECTED_SECONDS


def _released_by_jobs(
    known: Mapping[str, JobRecord], pods: Iterable[PodRecord], held: HeldNodes
) -> Iterator[tuple[str, str, Mapping[str, int]]]:
    """Yield namespace, node and resources of what jobs that exist have released."""
    released: dict[tuple[str, str], dict[str, int]] = {}
    kept: dict[str, frozenset[str]] = {}
    for (owner, node, resource), amount in _used_by_pods(known, pods).items():
        if owner not in known:
            continue
        if owner not in kept:
            kept[owner] = frozenset(_kept_nodes(known[owner].view, held.get(owner, ())))
        if node not in kept[owner]:
            released.setdefault((owner, node), {})[resource] = amount
    for (owner, node), resources in sorted(released.items()):
        yield known[owner].namespace, node, resources


def _left_by_deleted_jobs(
    known: Mapping[str, JobRecord], pods: Iterable[PodRecord]
) -> Iterator[tuple[str, str, Mapping[str, int]]]:
    """Yield the same of pods that are being deleted and whose job is gone.

    Others without a job were orphaned, and have no end.
    """
    for pod in sorted(pods, key=lambda pod: pod.uid):
        if pod.deleting and pod.bound and not pod.ended and pod.owner not in known:
            yield pod.namespace, pod.node, dict(pod.resources)


def _kept_nodes(view: JobView, held: Sequence[str]) -> Sequence[str]:
    """Return the nodes on which the pods of a job may stay."""
    if view.is_finished and view.run_policy.get("cleanPodPolicy") == "None":
        return view.held_nodes
    return held


def _used_by_pods(known: Mapping[str, JobRecord], pods: Iterable[PodRecord]) -> _Amounts:
    """Return what bound pods that have not ended hold, for their job or for themselves."""
    used: _Amounts = {}
    for pod in pods:
        job = known.get(pod.owner)
        owned = job is not None and pod.belongs_to(job)
        if pod.ended or not pod.bound:
            continue
        for resource, amount in pod.resources:
            key = (pod.owner if owned else pod.uid, pod.node, resource)
            used[key] = used.get(key, 0) + amount
    return used


def _reserve(
    reserved: _Amounts, uid: str, nodes: Iterable[str], resources: Mapping[str, int]
) -> None:
    for node in nodes:
        for resource, amount in resources.items():
            key = (uid, node, resource)
            reserved[key] = max(reserved.get(key, 0), amount)
