"""What is in use on which node: pods that live, placements that are promised, nothing twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmtrain_core.placement import extra_resources
from llmtrain_core.topology.inventory import Usage
from llmtrain_operator.records import ForeignPod, JobRecord, PodRecord
from llmtrain_operator.verdicts import Offer

DEFAULT_GPU = "nvidia.com/gpu"
_Amounts = dict[tuple[str, str, str], int]
"""By owner, node and resource."""


def finished(raw: Mapping[str, Any]) -> bool:
    """Whether a job has succeeded or failed."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return any(c["type"] in ("Succeeded", "Failed") and c["status"] == "True" for c in conditions)


def placed_nodes(placement: Mapping[str, Any]) -> list[str]:
    """Nodes of a stored placement, in order of rank block."""
    return [node for block in placement.get("blocks", ()) for node in block["nodes"]]


def resources_of(spec: Mapping[str, Any], gpus: int) -> dict[str, int]:
    """What a job takes on each of its nodes; read from the raw spec, which need not be valid."""
    workers, network = spec.get("workers") or {}, spec.get("network") or {}
    extra = extra_resources(workers.get("resources") or {}, network.get("rdma") or {})
    return {**extra, str(workers.get("gpuResource") or DEFAULT_GPU): gpus}


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
    no job owns counts for itself, and only where it is bound.
    """
    known = {job.uid: job for job in jobs}
    living: _Amounts = {}
    for pod in pods:
        job = known.get(pod.owner)
        owned = job is not None and pod.belongs_to(job)
        if pod.ended or not pod.node or not (owned or pod.bound):
            continue
        for resource, amount in pod.resources:
            key = (pod.owner if owned else pod.uid, pod.node, resource)
            living[key] = living.get(key, 0) + amount
    promised: _Amounts = {}
    for job in known.values():
        placement = (job.raw.get("status") or {}).get("placement")
        if placement and not finished(job.raw):
            taken = resources_of(job.raw["spec"], int(placement["gpusPerNode"]))
            _promise(promised, job.uid, placed_nodes(placement), taken)
    for uid, offer in offers.items():
        _promise(promised, uid, offer.nodes, offer.resources)
    items = [
        Usage(key[1], key[2], max(living.get(key, 0), promised.get(key, 0)), key[0])
        for key in living.keys() | promised.keys()
    ]
    for stranger in foreign:
        items += [Usage(stranger.node, resource, amount) for resource, amount in stranger.resources]
    return items


def _promise(promised: _Amounts, uid: str, nodes: Iterable[str], taken: Mapping[str, int]) -> None:
    for node in nodes:
        for resource, amount in taken.items():
            key = (uid, node, resource)
            promised[key] = max(promised.get(key, 0), amount)
