"""EASY backfill: the head of the queue gets a date, and whoever goes before it must not touch that.

The head's earliest start comes from the ends of those who run (Lifka, "The ANL/IBM SP Scheduling
System", JSSPP 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001). A job behind it starts now only
if it ends by then, or sits where the head does not need the room. Where the head's start depends on
a job without a known end, every node that the head could use is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from llmtrain_core.placement import Placement
from llmtrain_core.queueing.capacity import Room, Shape
from llmtrain_core.queueing.types import Running, Slot, Waiting


@dataclass(slots=True)
class Reservation:
    """Room that is kept for a waiting job."""

    job: Waiting
    pool: frozenset[str]
    """Nodes that it could use: jobs with another pool do not compete with it."""
    at: float | None
    """When it starts at the latest; None: nobody knows."""
    kept: frozenset[str]
    """Nodes that it will sit on, or all that it could use where nobody knows when."""
    floor: dict[Slot, int] = field(default_factory=dict)
    """What will be in use on its nodes once it sits there, with those who are still there then."""

    def stands_in_the_way_of(self, end: float | None) -> bool:
        """Whether a job that would end then must leave this room alone."""
        return self.at is None or end is None or end > self.at

    def outlasted_by(self, nodes: Iterable[str], takes: Mapping[str, int]) -> None:
        """A job sits down that will still be there: its room is none of the reservation's."""
        for node in nodes:
            for resource, amount in takes.items():
                if (node, resource) in self.floor:
                    self.floor[node, resource] += amount


class Promises:
    """What is in use, and room that is kept: everybody sees the promises that are in its way."""

    def __init__(self, used: Mapping[Slot, int]):
        self.reservations: list[Reservation] = []
        self.now = Room(used)
        """What is in use, without what is promised for later."""
        self._rooms: dict[tuple[str, ...], Room] = {}
        """The same with the promises to these jobs."""

    def in_the_way_of(self, end: float | None) -> list[Reservation]:
        """Return the reservations that a job which would end then must leave alone."""
        return [r for r in self.reservations if r.stands_in_the_way_of(end)]

    def room(self, ahead: Iterable[Reservation]) -> Room:
        """Return what is left beside these reservations."""
        due = [r for r in ahead if r.at is not None]
        if not due:
            return self.now
        key = tuple(r.job.uid for r in due)
        if key not in self._rooms:
            room = self._rooms[key] = self.now.copy()
            for reservation in due:
                room.promise(reservation.floor)
        return self._rooms[key]

    def keep(self, reservation: Reservation) -> None:
        """Set room aside."""
        self.reservations.append(reservation)
        if reservation.at is None:
            for room in (self.now, *self._rooms.values()):
                room.block(reservation.kept)

    def take(self, nodes: Sequence[str], takes: Mapping[str, int], end: float | None) -> None:
        """Somebody sits down until then."""
        for room in (self.now, *self._rooms.values()):
            room.take(nodes, takes)
        for reservation in self.in_the_way_of(end):
            if reservation.at is None:
                continue
            reservation.outlasted_by(nodes, takes)
            for key, room in self._rooms.items():
                if reservation.job.uid in key:
                    room.promise(reservation.floor)


def reserve(
    job: Waiting,
    shape: Shape,
    room: Room,
    running: Sequence[Running],
    place: Callable[[Room], Placement | None],
) -> Reservation:
    """Return the earliest room for a job that does not fit now.

    `room` holds what is in use and what is promised to others; `place` asks the placement.
    """
    trial, pool = room.copy(), frozenset(shape.seats)
    ending = sorted((r for r in running if r.ends_at is not None), key=_end)
    for at, leaving in groupby(ending, key=_end):
        for tenant in leaving:
            trial.give(tenant.nodes, tenant.takes)
        if not trial.fits(shape, job.size):
            continue
        answer = place(trial)
        if answer is not None:
            names = [node.name for node in (*answer.nodes, *answer.spares)]
            floor = {
                (name, resource): trial.in_use((name, resource)) + amount
                for name in names
                for resource, amount in job.takes.items()
            }
            return Reservation(job, pool, at, frozenset(names), floor)
    return Reservation(job, pool, None, pool)


def _end(tenant: Running) -> float:
    assert tenant.ends_at is not None
    return tenant.ends_at
