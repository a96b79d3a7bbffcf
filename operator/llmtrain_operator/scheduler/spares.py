"""Spare nodes: kept for a job until another one needs them. Pure.

A spare replaces a failed node at once, but it is idle until then. So it is not in use: a waiting
job gets it if there is no other node, and the owner goes on with fewer spares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from llmtrain_core.queueing import Allocation, Assignment
from llmtrain_core.topology.inventory import Node, Usage
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.scheduler.held_nodes import HeldNodes
from llmtrain_operator.scheduler.usage import placed_resources


def spare_allocations(jobs: Iterable[JobRecord], held: HeldNodes) -> Iterator[Allocation]:
    """Yield the spare nodes of the jobs that hold nodes."""
    for job in jobs:
        nodes = job.view.spare_nodes
        if nodes and held.get(job.uid):
            yield Allocation(job.uid, job.namespace, 0, tuple(nodes), placed_resources(job.view))


def spare_usage(spares: Iterable[Allocation]) -> Iterator[Usage]:
    """Yield what spare nodes would use."""
    for spare in spares:
        for node in spare.nodes:
            for resource, amount in spare.resources.items():
                yield Usage(node, resource, amount, spare.uid)


def taken_spares(
    job: JobRecord,
    others: Iterable[JobRecord],
    assignments: Mapping[str, Assignment],
    find_node: Callable[[str], Node | None],
) -> frozenset[str]:
    """Return the spare nodes of a job that other jobs have got for their ranks.

    On a node that several jobs share, the others may leave enough for the spare.
    """
    nodes = {name: find_node(name) for name in job.view.spare_nodes}
    needed = placed_resources(job.view)
    left = {
        name: {resource: node.total(resource) for resource in needed}
        for name, node in nodes.items()
        if node is not None
    }
    for other in others:
        if other.uid == job.uid:
            continue
        for name in {*_rank_nodes(other, assignments)} & left.keys():
            for resource, amount in _resources(other, assignments).items():
                left[name][resource] = left[name].get(resource, 0) - amount
    return frozenset(
        name
        for name, free in left.items()
        if any(free.get(resource, 0) < amount for resource, amount in needed.items())
    )


def _rank_nodes(job: JobRecord, assignments: Mapping[str, Assignment]) -> Sequence[str]:
    found = assignments.get(job.uid)
    if found is not None:
        return [node.name for node in found.placement.nodes]
    return () if job.view.is_finished or job.view.is_deleting else job.view.placed_nodes


def _resources(job: JobRecord, assignments: Mapping[str, Assignment]) -> Mapping[str, int]:
    found = assignments.get(job.uid)
    return placed_resources(job.view) if found is None else found.resources
