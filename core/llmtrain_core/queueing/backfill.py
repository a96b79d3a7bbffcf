"""EASY backfill: the head of the queue gets a reservation that no job behind it may delay.

The head's earliest start follows from the ends of running jobs (Lifka, "The ANL/IBM SP Scheduling
System", JSSPP 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001). A job behind it starts now only
if it ends by then, or uses nodes that the head does not need.

If the head's start depends on an unknown end (a pod of others, a job without a deadline, a
quarantine), all nodes that it could use are reserved. Until the end is known, jobs that end within
a window may use them. So the head is delayed by at most one window per unknown end, and the nodes
are not idle for ever.
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
    shared_until: float = 0.0
    """If the start is unknown: jobs that end by this time may use the nodes."""

    def blocks(self, end: float | None) -> bool:
        """Return True if a job that would end at this time must not use the reserved nodes."""
        latest = self.shared_until if self.starts_at is None else self.starts_at
        return end is None or end > latest

    def add_outlasting(self, nodes: Iterable[str], resources: Mapping[str, int]) -> None:
        """Account for a job that will still be running when this reservation starts."""
        for node in nodes:
            for resource, amount in resources.items():
                if (node, resource) in self.reserved:
                    self.reserved[node, resource] += amount


class Reservations:
    """Resources in use and all reservations.

    A job respects only the reservations that block it at the time at which it would end.
    """

    def __init__(self, used: Mapping[Slot, int]):
        self.entries: list[Reservation] = []
        self.unreserved = FreeCapacity(used)
        """Free capacity without the reservations."""
        self._capacities: dict[tuple[str, ...], FreeCapacity] = {}
        """Free capacity with the reservations of these jobs."""

    def blocking(self, end: float | None) -> list[Reservation]:
        """Return the reservations that a job which would end at this time must respect."""
        return [r for r in self.entries if r.blocks(end)]

    def overlap(self, requests: RequestClass) -> bool:
        """Return True if a job with a reservation could use one of the nodes of these requests."""
        return any(not r.pool.isdisjoint(requests.allocatable) for r in self.entries)

    def capacity(self, respected: Iterable[Reservation]) -> FreeCapacity:
        """Return the free capacity with these reservations."""
        respected = list(respected)
        if not respected:
            return self.unreserved
        key = tuple(r.job.uid for r in respected)
        if key not in self._capacities:
            capacity = self._capacities[key] = self.unreserved.copy()
            for reservation in respected:
                if reservation.starts_at is None:
                    capacity.exclude(reservation.nodes)
                else:
                    capacity.reserve(reservation.reserved)
        return self._capacities[key]

    def add(self, reservation: Reservation) -> None:
        """Add a reservation."""
        self.entries.append(reservation)

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
    shared_until: float,
) -> Reservation:
    """Return the earliest reservation for a job that does not fit now.

    `capacity` holds what is in use and what is reserved for others. `place` places the job.
    `shared_until` applies if its start is unknown.
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
    return open_reservation(job, requests, shared_until)


def open_reservation(job: PendingJob, requests: RequestClass, shared_until: float) -> Reservation:
    """Return a reservation of all nodes that a job could use, without a known start."""
    pool = frozenset(requests.allocatable)
    return Reservation(job, pool, None, pool, shared_until=shared_until)


def _end(allocation: Allocation) -> float:
    assert allocation.ends_at is not None
    return allocation.ends_at
