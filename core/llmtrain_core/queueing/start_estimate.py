"""Estimate when each pending job starts, if the queue advances in order and all ends are correct.

A simulation: allocations end as estimated, and the jobs start in order, each as soon as it fits
after the jobs before it that compete for the same nodes. Backfill can only start a job earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from llmtrain_core.queueing.capacity import FreeCapacity, RequestClass
from llmtrain_core.queueing.types import Allocation, PendingJob

Entry = tuple[PendingJob, RequestClass]


def estimate_starts(
    queue: Sequence[Entry],
    allocations: Sequence[Allocation],
    capacity: FreeCapacity,
    now: float,
) -> dict[str, float]:
    """Return the estimated start by UID, in seconds since the epoch, of the jobs that have one.

    `queue` is in order. A job whose start depends on one without a known end has none.
    """
    starts: dict[str, float] = {}
    for entries in competing_entries(queue):
        nodes = frozenset[str]().union(*(requests.allocatable for _, requests in entries))
        relevant = [a for a in allocations if not nodes.isdisjoint(a.nodes)]
        starts |= _simulate(entries, relevant, capacity.copy(), now)
    return starts


def competing_entries(queue: Sequence[Entry]) -> list[list[Entry]]:
    """Group the queue into jobs that compete for nodes, directly or through others."""
    groups: list[tuple[set[str], list[Entry]]] = []
    position = {job.uid: index for index, (job, _) in enumerate(queue)}
    by_class: dict[object, list[Entry]] = {}
    for entry in queue:
        by_class.setdefault(entry[1].key, []).append(entry)
    for entries in by_class.values():
        nodes, merged = set(entries[0][1].allocatable), list(entries)
        disjoint = []
        for other in groups:
            if nodes.isdisjoint(other[0]):
                disjoint.append(other)
            else:
                nodes |= other[0]
                merged += other[1]
        groups = [*disjoint, (nodes, merged)]
    return [sorted(members, key=lambda entry: position[entry[0].uid]) for _, members in groups]


def _simulate(
    queue: Sequence[Entry], allocations: Sequence[Allocation], capacity: FreeCapacity, now: float
) -> dict[str, float]:
    ends = [
        (max(now, allocation.ends_at), index, allocation.nodes, allocation.resources)
        for index, allocation in enumerate(allocations)
        if allocation.ends_at is not None
    ]
    heapq.heapify(ends)
    starts: dict[str, float] = {}
    time, index = now, len(allocations)
    for job, requests in queue:
        while not capacity.fits(requests, job.node_count):
            if not ends:
                return starts
            time, _, nodes, resources = heapq.heappop(ends)
            capacity.release(nodes, resources)
        starts[job.uid] = time
        nodes = capacity.pick_nodes(requests, job.node_count)
        capacity.allocate(nodes, job.resources)
        length = job.max_duration if job.expected_duration is None else job.expected_duration
        if length is not None:
            index += 1
            heapq.heappush(ends, (time + length, index, nodes, job.resources))
    return starts
