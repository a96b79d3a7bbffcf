"""Order of the queue: priority, then the namespace with the smallest share, then age.

Between namespaces of equal priority the dominant share decides (Ghodsi et al., "Dominant Resource
Fairness", NSDI 2011): the largest fraction that a namespace holds of any one kind of device, jobs
ahead in the queue included. Waiting time counts as well: one day weighs as much as the whole
cluster. So no namespace waits forever, whatever it holds: only jobs created less than a day later
can pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby

from llmtrain_core.queueing.types import Allocation, PendingJob
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.resources import is_device

FULL_SHARE_SECONDS = 86400.0
"""Waiting this long outweighs a share of the whole cluster."""


def dominant_share(held: Mapping[str, int], capacity: Mapping[str, int]) -> float:
    """Return the largest fraction of any resource, from 0 to 1. Without capacity it is 0."""
    shares = (held[name] / total for name, total in capacity.items() if total and held.get(name))
    return max(shares, default=0.0)


def total_devices(nodes: Iterable[Node]) -> dict[str, int]:
    """Return the allocatable devices of nodes, by resource."""
    total: dict[str, int] = {}
    for node in nodes:
        for resource, amount in node.allocatable.items():
            if is_device(resource):
                total[resource] = total.get(resource, 0) + amount
    return total


def sort_queue(
    jobs: Iterable[PendingJob],
    allocations: Iterable[Allocation] = (),
    capacity: Mapping[str, int] | None = None,
    nominated: Collection[str] = (),
) -> list[PendingJob]:
    """Return the queue, head first. `capacity` is the allocatable total of all nodes.

    Deferred jobs come last, whatever their priority is.
    """
    held: dict[str, dict[str, int]] = {}
    for allocation in allocations:
        _add(held.setdefault(allocation.namespace, {}), allocation.total_devices)
    ranked = sorted(
        jobs,
        key=lambda job: (
            job.deferred,
            -job.priority,
            job.uid not in nominated,
            job.created_at,
            job.key,
        ),
    )
    order: list[PendingJob] = []
    for _, equals in groupby(
        ranked, key=lambda job: (job.deferred, job.priority, job.uid in nominated)
    ):
        order += _fair_order(list(equals), held, capacity or {})
    return order


def _fair_order(
    equals: list[PendingJob], held: dict[str, dict[str, int]], capacity: Mapping[str, int]
) -> Iterator[PendingJob]:
    """Yield jobs of one priority, oldest first within a namespace. Yielded jobs count as held."""
    queues: dict[str, list[PendingJob]] = {}
    for job in reversed(equals):
        queues.setdefault(job.namespace, []).append(job)
    keys = {name: _fair_key(queue[-1], held, capacity) for name, queue in queues.items()}
    while queues:
        name = min(keys, key=lambda name: keys[name])
        job = queues[name].pop()
        yield job
        _add(held.setdefault(name, {}), job.total_devices)
        if queues[name]:
            keys[name] = _fair_key(queues[name][-1], held, capacity)
        else:
            del queues[name], keys[name]


def _fair_key(
    job: PendingJob, held: Mapping[str, Mapping[str, int]], capacity: Mapping[str, int]
) -> tuple[float, float, str]:
    share = dominant_share(held.get(job.namespace, {}), capacity)
    return share + job.created_at / FULL_SHARE_SECONDS, job.created_at, job.key


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for resource, amount in more.items():
        total[resource] = total.get(resource, 0) + amount
