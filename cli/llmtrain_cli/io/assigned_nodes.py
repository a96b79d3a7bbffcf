"""Ranks of jobs by node, from the labels and environment variables of their pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import env, labels
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.resources import pod_requests

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AssignedPod:
    """A pod of a job that is assigned to a node."""

    job: str
    """Namespace and name."""
    node: str
    ranks: tuple[int, ...]
    """Empty if the pod does not have them."""


@dataclass(frozen=True, slots=True)
class MovedNode:
    """A node of a running job whose labels have changed since the job was placed."""

    node: str
    placed: str
    """Domain path when it was placed, from the top level down."""
    now: str
    """Domain path by its labels now."""


def assigned_pods(pods: Iterable[Raw]) -> list[AssignedPod]:
    """Return the bound, unfinished pods of LLMTrainingJobs."""
    found: list[AssignedPod] = []
    for pod in pods:
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        name = (metadata.get("labels") or {}).get(labels.JOB_NAME)
        ended = (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
        if name and spec.get("nodeName") and not ended:
            if not isinstance(spec["nodeName"], str):
                raise TypeError("spec.nodeName is not text")
            job = f"{metadata.get('namespace', 'default')}/{name}"
            found.append(AssignedPod(job, spec["nodeName"], _ranks(metadata, spec)))
    return sorted(found, key=lambda pod: (pod.job, pod.ranks, pod.node))


def _ranks(metadata: Raw, spec: Raw) -> tuple[int, ...]:
    """Read the ranks that the operator assigned, or derive them from the node index."""
    for container in spec.get("containers") or ():
        for variable in container.get("env") or ():
            if variable.get("name") == env.RANKS:
                return _numbers(str(variable.get("value", "")).split(","))
    index = _numbers([(metadata.get("labels") or {}).get(labels.NODE_INDEX, "")])
    gpus = sum(count for name, count in pod_requests(spec).items() if is_gpu(name))
    return tuple(range(index[0] * gpus, (index[0] + 1) * gpus)) if index else ()


def _numbers(texts: Sequence[str]) -> tuple[int, ...]:
    """Parse whole numbers. Return none if a text is no number: any user can label a pod."""
    plain = all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts)
    return tuple(int(text) for text in texts) if plain else ()


def is_gpu(resource: str) -> bool:
    """Return True if an extended resource counts whole GPUs, of any vendor."""
    return resource.endswith("/gpu")


def moved_nodes(job: Raw, snapshot: Snapshot) -> Iterator[MovedNode]:
    """Find nodes whose labels name other domains than when the job was placed.

    The status of a job stores the domains of its placement. A placement with other levels than the
    snapshot cannot be compared.
    """
    placement = (job.get("status") or {}).get("placement") or {}
    stored = [level["level"] for level in placement.get("levels", ())]
    if stored != [level.name for level in snapshot.levels]:
        return
    paths = {node.name: "/".join(snapshot.path(node)[:-1]) for node in snapshot.nodes}
    for block in placement.get("blocks", ()):
        for node in block["nodes"]:
            if node in paths and paths[node] != block["path"]:
                yield MovedNode(node, block["path"], paths[node])
