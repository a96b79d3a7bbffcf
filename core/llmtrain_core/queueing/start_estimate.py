"""When each waiting job will start, if the queue goes on in order and all ends are as foreseen.

A simulation: whoever runs leaves at its end, the jobs start in order, each as soon as it fits after
those before it that compete for the same nodes. Backfill can only make a job start earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from llmtrain_core.queueing.capacity import Room, Shape
from llmtrain_core.queueing.types import Running, Waiting


def forecast(
    queue: Sequence[tuple[Waiting, Shape]],
    running: Sequence[Running],
    room: Room,
    now: float,
) -> dict[str, float]:
    """Return the foreseen start of jobs that have one, by UID, in seconds since the epoch.

    `queue` is in order. A job whose start depends on one without a known end has none.
    """
    starts: dict[str, float] = {}
    for pool in pools(queue):
        nodes = frozenset[str]().union(*(shape.seats for _, shape in pool))
        tenants = [tenant for tenant in running if not nodes.isdisjoint(tenant.nodes)]
        starts |= _in_turn(pool, tenants, room.copy(), now)
    return starts


def pools(queue: Sequence[tuple[Waiting, Shape]]) -> list[list[tuple[Waiting, Shape]]]:
    """Part the queue into jobs that compete for nodes, directly or through others."""
    parts: list[tuple[set[str], list[tuple[Waiting, Shape]]]] = []
    rank = {job.uid: place for place, (job, _) in enumerate(queue)}
    by_shape: dict[object, list[tuple[Waiting, Shape]]] = {}
    for entry in queue:
        by_shape.setdefault(entry[1].key, []).append(entry)
    for entries in by_shape.values():
        nodes, merged = set(entries[0][1].seats), list(entries)
        apart = []
        for other in parts:
            if nodes.isdisjoint(other[0]):
                apart.append(other)
            else:
                nodes |= other[0]
                merged += other[1]
        parts = [*apart, (nodes, merged)]
    return [sorted(members, key=lambda entry: rank[entry[0].uid]) for _, members in parts]


def _in_turn(
    pool: Sequence[tuple[Waiting, Shape]], running: Sequence[Running], room: Room, now: float
) -> dict[str, float]:
    ends = [
        (max(now, tenant.ends_at), rank, tenant.nodes, tenant.takes)
        for rank, tenant in enumerate(running)
        if tenant.ends_at is not None
    ]
    heapq.heapify(ends)
    starts: dict[str, float] = {}
    at, rank = now, len(running)
    for job, shape in pool:
        while not room.fits(shape, job.size):
            if not ends:
                return starts
            at, _, nodes, takes = heapq.heappop(ends)
            room.give(nodes, takes)
        starts[job.uid] = at
        nodes = room.pick(shape, job.size)
        room.take(nodes, job.takes)
        length = job.duration if job.expected is None else job.expected
        if length is not None:
            rank += 1
            heapq.heappush(ends, (at + length, rank, nodes, job.takes))
    return starts
