"""What is in use on which node: pods that live, placements that are promised, nothing twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmtrain_core.api.defaults import GPU_RESOURCE
from llmtrain_core.placement import extra_resources
from llmtrain_core.queueing import Running
from llmtrain_core.topology.inventory import Usage
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import ForeignPod, JobRecord, PodRecord
from llmtrain_operator.scheduler.decisions import Offer

_Amounts = dict[tuple[str, str, str], int]
"""By owner, node and resource."""


def resources_of(spec: Mapping[str, Any], gpus: int) -> dict[str, int]:
    """What a job takes on each of its nodes; read from the raw spec, which need not be valid."""
    workers, network = spec.get("workers") or {}, spec.get("network") or {}
    extra = extra_resources(workers.get("resources") or {}, network.get("rdma") or {})
    return {**extra, str(workers.get("gpuResource") or GPU_RESOURCE): gpus}


def usage(
    jobs: Iterable[JobRecord],
    pods: Iterable[PodRecord],
    foreign: Iterable[ForeignPod],
    offers: Mapping[str, Offer],
) -> list[Usage]:
    """Add up what is in use.

    A job's pods and its placement (or the offer it has not taken up yet) are the same GPUs seen
    twice: of each node the larger of the two counts. Pods that their job no longer claims (it was
    suspended, or placed anew) count until they are gone. Labels are anybody's to write: a pod that
    no job owns counts for itself, and only where it is bound. A gang that has succeeded holds
    nothing any more, even while its status does not say so yet.
    """
    known, pods = {job.uid: job for job in jobs}, list(pods)
    living, done = _living(known, pods), succeeded(known, pods)
    promised: _Amounts = {}
    for job in known.values():
        placement = job.view.stored_placement
        if placement and not job.view.is_finished and job.uid not in done:
            taken = resources_of(job.view.spec, int(placement["gpusPerNode"]))
            _promise(promised, job.uid, job.view.held_nodes, taken)
    for uid, offer in offers.items():
        _promise(promised, uid, offer.nodes, offer.resources)
    items = [
        Usage(key[1], key[2], max(living.get(key, 0), promised.get(key, 0)), key[0])
        for key in living.keys() | promised.keys()
    ]
    for stranger in foreign:
        items += [Usage(stranger.node, resource, amount) for resource, amount in stranger.resources]
    return items


def succeeded(known: Mapping[str, JobRecord], pods: Iterable[PodRecord]) -> set[str]:
    """Jobs whose whole current gang has succeeded: all that is left is to write it down."""
    good: dict[str, set[int]] = {}
    for pod in pods:
        job = known.get(pod.owner)
        if job is None or pod.phase != "Succeeded" or not pod.belongs_to(job):
            continue
        if pod.attempt == job.view.attempt:
            good.setdefault(job.uid, set()).add(pod.index)
    return {
        uid for uid, indexes in good.items() if len(indexes) == len(known[uid].view.placed_nodes)
    }


def leaving(jobs: Iterable[JobRecord], pods: Iterable[PodRecord], until: float) -> list[Running]:
    """Return what pods hold that their job gave up: it is free when they have ended.

    The job was suspended, stopped for another, deleted, or placed anew elsewhere.
    """
    known = {job.uid: job for job in jobs}
    kept = {uid: _keeps(job.view) for uid, job in known.items()}
    gone: dict[tuple[str, str], dict[str, int]] = {}
    for (owner, node, resource), amount in _living(known, pods).items():
        if owner in kept and node not in kept[owner]:
            gone.setdefault((owner, node), {})[resource] = amount
    return [
        Running("", known[owner].namespace, 0, (node,), takes, until, preemptible=False)
        for (owner, node), takes in sorted(gone.items())
    ]


def _keeps(view: JobView) -> frozenset[str]:
    """Nodes on which a job's pods may stay."""
    if view.is_finished and view.run_policy.get("cleanPodPolicy") != "None":
        return frozenset()
    return frozenset(view.held_nodes)


def _living(known: Mapping[str, JobRecord], pods: Iterable[PodRecord]) -> _Amounts:
    """What pods hold that have not ended: for their job, or for themselves."""
    living: _Amounts = {}
    for pod in pods:
        job = known.get(pod.owner)
        owned = job is not None and pod.belongs_to(job)
        if pod.ended or not pod.node or not (owned or pod.bound):
            continue
        for resource, amount in pod.resources:
            key = (pod.owner if owned else pod.uid, pod.node, resource)
            living[key] = living.get(key, 0) + amount
    return living


def _promise(promised: _Amounts, uid: str, nodes: Iterable[str], taken: Mapping[str, int]) -> None:
    for node in nodes:
        for resource, amount in taken.items():
            key = (uid, node, resource)
            promised[key] = max(promised.get(key, 0), amount)
