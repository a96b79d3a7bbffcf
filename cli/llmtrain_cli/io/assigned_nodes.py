"""Who sits where: ranks of jobs on nodes, from the labels and environment of their pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api import env, labels
from llmtrain_core.topology.inventory import Snapshot, extended_requests

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Seat:
    """One pod of a job on its node."""

    job: str
    """Namespace and name."""
    node: str
    ranks: tuple[int, ...]
    """Empty where the pod does not tell."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A node of a running job whose labels have changed since the job was placed."""

    node: str
    placed: str
    """Domains from far to near when it was placed."""
    now: str
    """The same today."""


def seats_of(pods: Iterable[Raw]) -> list[Seat]:
    """Return the seats of bound, unfinished pods that name a job of ours."""
    seats: list[Seat] = []
    for pod in pods:
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        name = (metadata.get("labels") or {}).get(labels.JOB_NAME)
        ended = (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
        if name and spec.get("nodeName") and not ended:
            job = f"{metadata.get('namespace', 'default')}/{name}"
            seats.append(Seat(job, spec["nodeName"], _ranks(metadata, spec)))
    return sorted(seats, key=lambda seat: (seat.job, seat.ranks, seat.node))


def _ranks(metadata: Raw, spec: Raw) -> tuple[int, ...]:
    """Read the ranks that the operator gave the pod, or derive them from the node index."""
    for container in spec.get("containers") or ():
        for variable in container.get("env") or ():
            if variable.get("name") == env.RANKS:
                return _numbers(str(variable.get("value", "")).split(","))
    index = _numbers([(metadata.get("labels") or {}).get(labels.NODE_INDEX, "")])
    gpus = sum(count for name, count in extended_requests(spec).items() if is_gpu(name))
    return tuple(range(index[0] * gpus, (index[0] + 1) * gpus)) if index else ()


def _numbers(texts: Sequence[str]) -> tuple[int, ...]:
    """Read whole numbers; anybody can label a pod, so what is none tells nothing."""
    plain = all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts)
    return tuple(int(text) for text in texts) if plain else ()


def is_gpu(resource: str) -> bool:
    """Whether an extended resource is whole GPUs, of any vendor."""
    return resource.endswith("/gpu")


def moved(job: Raw, snapshot: Snapshot) -> Iterator[Moved]:
    """Compare the domains that a job was placed into with those that its nodes' labels name now.

    A placement keeps the domains it was decided with; a Fabric with other levels is another map,
    against which nothing can be compared.
    """
    placement = (job.get("status") or {}).get("placement") or {}
    stored = [level["level"] for level in placement.get("levels", ())]
    if stored != [level.name for level in snapshot.levels]:
        return
    paths = {node.name: "/".join(snapshot.path(node)[:-1]) for node in snapshot.nodes}
    for block in placement.get("blocks", ()):
        for node in block["nodes"]:
            if node in paths and paths[node] != block["path"]:
                yield Moved(node, block["path"], paths[node])
