"""EASY backfill: the head of the queue gets a reservation that no job behind it may delay.

The head's earliest start follows from the ends of running jobs (Lifka, "The ANL/IBM SP Scheduling
System", JSSPP 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001). A job behind it starts now only
if it ends by then, or uses nodes that the head does not need. If the head's start depends on a job
without a known end, all nodes that the head could use are reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from llmtrain_core.placement import Placement
from llmtrain_core.queueing.capacity import FreeCapacity, RequestClass
from llmtrain_core.queueing.types import Allocation, PendingJob, Slot


@dataclass(slots=True)
class Reservation:
    """Nodes that are reserved for a pending job."""

    job: PendingJob
    pool: frozenset[str]
    """Nodes that it could use. Jobs with a disjoint pool do not compete with it."""
    starts_at: float | None
    """Its latest start; None: unknown."""
    nodes: frozenset[str]
    """Nodes that it will use, or all that it could use if the start is unknown."""
    reserved: dict[Slot, int] = field(default_factory=dict)
    """Amount in use on its nodes once it runs there, with the jobs that still run then."""

    def blocks(self, end: float | None) -> bool:
        """Return True if a job that would end at this time must not use the reserved nodes."""
        return self.starts_at is None or end is None or end > self.starts_at

    def add_outlasting(self, nodes: Iterable[str], resources: Mapping[str, int]) -> None:
        """Account for a job that will still be running when this reservation starts."""
        for node in nodes:
            for resource, amount in resources.items():
                if (node, resource) in self.reserved:
                    self.reserved[node, resource] += amount


class Reservations:
    """Resources in use and all reservations.

    A job respects only the reservations that start before the job would end.
    """

    def __init__(self, used: Mapping[Slot, int]):
        self.entries: list[Reservation] = []
        self.unreserved = FreeCapacity(used)
        """Free capacity without the reservations that have a start."""
        self._capacities: dict[tuple[str, ...], FreeCapacity] = {}
        """Free capacity with the reservations of these jobs."""

    def blocking(self, end: float | None) -> list[Reservation]:
        """Return the reservations that a job which would end at this time must respect."""
        return [r for r in self.entries if r.blocks(end)]

    def capacity(self, respected: Iterable[Reservation]) -> FreeCapacity:
        """Return the free capacity with these reservations."""
        due = [r for r in respected if r.starts_at is not None]
        if not due:
            return self.unreserved
        key = tuple(r.job.uid for r in due)
        if key not in self._capacities:
            capacity = self._capacities[key] = self.unreserved.copy()
            for reservation in due:
                capacity.reserve(reservation.reserved)
        return self._capacities[key]

    def add(self, reservation: Reservation) -> None:
        """Add a reservation."""
        self.entries.append(reservation)
        if reservation.starts_at is None:
            for capacity in (self.unreserved, *self._capacities.values()):
                capacity.exclude(reservation.nodes)

    def allocate(
        self, nodes: Sequence[str], resources: Mapping[str, int], end: float | None
    ) -> None:
        """Mark resources as used until a time."""
        for capacity in (self.unreserved, *self._capacities.values()):
            capacity.allocate(nodes, resources)
        for reservation in self.blocking(end):
            if reservation.starts_at is None:
                continue
            reservation.add_outlasting(nodes, resources)
            for key, capacity in self._capacities.items():
                if reservation.job.uid in key:
                    capacity.reserve(reservation.reserved)


def earliest_reservation(
    job: PendingJob,
    requests: RequestClass,
    capacity: FreeCapacity,
    allocations: Sequence[Allocation],
    place: Callable[[FreeCapacity], Placement | None],
) -> Reservation:
    """Return the earliest reservation for a job that does not fit now.

    `capacity` holds what is in use and what is reserved for others. `place` places the job.
    """
    trial, pool = capacity.copy(), frozenset(requests.allocatable)
    ending = sorted((a for a in allocations if a.ends_at is not None), key=_end)
    for starts_at, released in groupby(ending, key=_end):
        for allocation in released:
            trial.release(allocation.nodes, allocation.resources)
        if not trial.fits(requests, job.node_count):
            continue
        placement = place(trial)
        if placement is not None:
            names = [node.name for node in (*placement.nodes, *placement.spares)]
            reserved = {
                (name, resource): trial.in_use((name, resource)) + amount
                for name in names
                for resource, amount in job.resources.items()
            }
            return Reservation(job, pool, starts_at, frozenset(names), reserved)
    return Reservation(job, pool, None, pool)


def _end(allocation: Allocation) -> float:
    assert allocation.ends_at is not None
    return allocation.ends_at
