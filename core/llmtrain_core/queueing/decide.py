"""One round of the queue: a decision for every waiting job, in order, head first. Pure.

Whoever fits starts. The first of each pool of nodes that does not fit gets a reservation, which
nobody behind it may touch; where stopping jobs of lower priority makes room for the whole gang, it
stops them and its reservation is their room. So the head cannot starve: it only waits for those
who run already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

from llmtrain_core.api.conditions import Reason
from llmtrain_core.placement import Placement, Request, Unplaceable, place
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.backfill import Reservation, reserve
from llmtrain_core.queueing.forecast import forecast
from llmtrain_core.queueing.order import in_order
from llmtrain_core.queueing.preemption import Victims, victims
from llmtrain_core.queueing.room import Room, Shape, shape_key, shape_of
from llmtrain_core.queueing.types import Decision, Running, Scene, Start, Wait, Waiting
from llmtrain_core.queueing.uplinks import add, oversubscribed, uplink_shares
from llmtrain_core.queueing.words import kept_message, preempting_message, quarantine_message
from llmtrain_core.topology.inventory import Snapshot

SOON_SECONDS = 30.0
"""Pods that were told to leave are gone by then; nobody is stopped for a job that starts so soon
anyway."""
MOST_PREEMPTORS = 16
"""Jobs per round for which victims are looked for: the search must not hold the queue up."""


def decide(waiting: Iterable[Waiting], scene: Scene) -> dict[str, Decision]:
    """Return a decision for every waiting job. Deterministic, whatever the order of the input."""
    jobs = list(waiting)
    round_ = _Round(scene)
    running = sorted(scene.running, key=lambda tenant: (tenant.uid, tenant.nodes))
    capacity = _capacity(jobs)
    for job in in_order(jobs, running, capacity, scene.promised):
        round_.decide(job)
    return round_.with_starts()


def _capacity(jobs: Sequence[Waiting]) -> dict[str, int]:
    """What all nodes hand out; every fabric shows the same nodes."""
    total: dict[str, int] = {}
    for node in jobs[0].fabric.nodes if jobs else ():
        for resource, amount in node.allocatable.items():
            total[resource] = total.get(resource, 0) + amount
    return total


class _Round:
    """The state of one round: what is in use and promised so far."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.running: dict[int, Running] = dict(enumerate(scene.running))
        self.now = Room(scene.used)
        """Everything in use, promises left out: for jobs that end before those are due."""
        self.later = self.now.copy()
        """The same with what is promised."""
        self.reservations: list[Reservation] = []
        self.decisions: dict[str, Decision] = {}
        self._queue: list[tuple[Waiting, Shape]] = []
        self._shapes: dict[Hashable, Shape] = {}
        self._fabrics: dict[int, Snapshot] = {}
        self._refusals: dict[Hashable, Placement | Unplaceable] = {}
        self._fit_empty: dict[Hashable, bool] = {}
        self._preemptors = MOST_PREEMPTORS
        self._uplinks: dict[int, dict[Path, float]] = {}

    def decide(self, job: Waiting) -> None:
        """Start a job, or find out why it waits."""
        end = None if job.duration is None else self.scene.now + job.duration
        ahead = [r for r in self.reservations if r.stands_in_the_way_of(end)]
        room = self.later if ahead else self.now
        answer = self._place(job, room, careful=True)
        if answer is not None:
            self._start(job, answer, end)
            return
        shape = self._shape(job.request, job.fabric)
        alone = self._alone(job)
        if shape.largest < job.request.nodes:
            self.decisions[job.uid] = self._refused(job, alone)
            return
        self._queue.append((job, shape))
        stopped, reservation = self._reserve(job, shape, room)
        uids = tuple(sorted(tenant.uid for tenant in stopped))
        cleared = job.uid in self.scene.promised and self._soon(reservation)
        if uids or cleared:
            wait = Wait(Reason.PREEMPTING, preempting_message(len(uids)), victims=uids)
        elif isinstance(alone, Placement):
            behind = (r for r in ahead if not r.kept.isdisjoint(shape.seats))
            keys = tuple(sorted({r.job.key for r in behind}))
            wait = Wait(Reason.WAITING_BEHIND, kept_message(job.namespace, keys), behind=keys)
        else:
            wait = self._refused(job, alone)
        self.decisions[job.uid] = wait

    def with_starts(self) -> dict[str, Decision]:
        """Return the decisions, those who wait with the start that is foreseen."""
        starts = forecast(
            self._queue, tuple(self.running.values()), self.now, self.scene.now
        ) | {r.job.uid: r.at for r in self.reservations if r.at is not None}  # fmt: skip
        for uid, at in starts.items():
            decision = self.decisions[uid]
            if isinstance(decision, Wait):
                self.decisions[uid] = dataclasses.replace(decision, starts_at=at)
        return self.decisions

    def _start(self, job: Waiting, answer: Placement, end: float | None) -> None:
        names = tuple(node.name for node in (*answer.nodes, *answer.spares))
        shape = self._shape(job.request, job.fabric)
        passed = any(not r.pool.isdisjoint(shape.seats) for r in self.reservations)
        self.decisions[job.uid] = Start(answer, job.takes, backfilled=passed)
        for room in (self.now, self.later):
            room.take(names, job.takes)
        for reservation in self.reservations:
            if reservation.at is not None and reservation.stands_in_the_way_of(end):
                reservation.outlasted_by(names, job.takes)
                self.later.promise(reservation.floor)
        self.running[len(self.running)] = Running(
            job.uid, job.namespace, job.priority, names, job.takes, end, preemptible=False
        )
        self._refusals.clear()
        if oversubscribed(job.fabric):
            nodes = [node.name for node in answer.nodes]
            add(self._ledger(job.fabric), uplink_shares(job.request, nodes, job.fabric))

    def _ledger(self, fabric: Snapshot) -> dict[Path, float]:
        """What is sent over uplinks, those who start in this round included."""
        return self._uplinks.setdefault(id(fabric), dict(fabric.uplinks))

    def _reserve(
        self, job: Waiting, shape: Shape, room: Room
    ) -> tuple[Victims, Reservation | None]:
        """Keep room for a job whose turn it is, or for which others stop: who, and what room."""
        first = all(r.pool.isdisjoint(shape.seats) for r in self.reservations)
        lower = [
            tenant for tenant in self.running.values()
            if job.preempts and tenant.preemptible and tenant.priority < job.priority
        ]  # fmt: skip
        claims = job.uid in self.scene.promised or (lower and self._preemptors > 0)
        if not first and not claims:
            return (), None
        stopped: Victims = ()
        found = self._earliest(job, shape, room)
        if lower and not self._soon(found):
            self._preemptors -= 1
            stopped = self._stop(job, shape, room, lower)
            if stopped:
                found = self._earliest(job, shape, room)
        if found.at is None and not self._ever(job, shape):
            self._queue.pop()
            return (), None
        if first or self._soon(found):
            self._keep(found)
        return stopped, found

    def _soon(self, reservation: Reservation | None) -> bool:
        at = None if reservation is None else reservation.at
        return at is not None and at <= self.scene.now + SOON_SECONDS

    def _earliest(self, job: Waiting, shape: Shape, room: Room) -> Reservation:
        def there(trial: Room) -> Placement | None:
            return self._place(job, trial, careful=False)

        return reserve(job, shape, room, tuple(self.running.values()), there)

    def _keep(self, reservation: Reservation) -> None:
        self.reservations.append(reservation)
        if reservation.at is None:
            for room in (self.now, self.later):
                room.block(reservation.kept)
        else:
            self.later.promise(reservation.floor)
        self._refusals.clear()

    def _stop(self, job: Waiting, shape: Shape, room: Room, lower: Sequence[Running]) -> Victims:
        def accept(chosen: Victims) -> bool:
            trial = room.copy()
            for tenant in chosen:
                trial.give(tenant.nodes, tenant.takes)
            return self._place(job, trial, careful=False) is not None

        stopped = victims(shape, job.request.nodes, room, lower, accept) or ()
        gone = {tenant.uid for tenant in stopped}
        for key, tenant in self.running.items():
            if tenant.uid in gone:
                self.running[key] = dataclasses.replace(
                    tenant, ends_at=self.scene.now + SOON_SECONDS, preemptible=False
                )
        return stopped

    def _place(self, job: Waiting, room: Room, careful: bool) -> Placement | None:
        """Place a job: on nodes without a blot first, if there are enough."""
        last = job.avoided | self.scene.suspects if careful else frozenset()
        requests = [job.request]
        if last:
            excluded = job.request.excluded | last
            requests.insert(0, dataclasses.replace(job.request, excluded=excluded))
        for request in requests:
            shape = self._shape(request, job.fabric)
            if not room.fits(shape, request.nodes):
                continue
            withheld = room.blocked | self.scene.quarantined.keys()
            view = dataclasses.replace(
                job.fabric, used=room.used, withheld=withheld, uplinks=self._ledger(job.fabric)
            )
            answer = place(request, view)
            if isinstance(answer, Placement):
                return answer
        return None

    def _alone(self, job: Waiting) -> Placement | Unplaceable:
        """What the job would get if nothing were kept for anybody; asked once per kind."""
        request = job.request
        key = (shape_key(request, job.fabric), request.nodes, request.layout, request.prefer)
        found = self._refusals.get(key)
        if found is None:
            view = dataclasses.replace(self._fabric(job.fabric), used=self.now.used)
            found = self._refusals[key] = place(request, view)
        return found

    def _ever(self, job: Waiting, shape: Shape) -> bool:
        """Whether the job would fit if nothing ran: room is kept for no other."""
        key = (shape.key, job.request.nodes, job.request.layout)
        if key not in self._fit_empty:
            self._fit_empty[key] = self._place(job, Room({}), careful=False) is not None
        return self._fit_empty[key]

    def _refused(self, job: Waiting, answer: Placement | Unplaceable) -> Wait:
        assert isinstance(answer, Unplaceable)
        if self.scene.quarantined:
            view = dataclasses.replace(job.fabric, used=self.now.used)
            whole = place(job.request, view)
            if isinstance(whole, Placement):
                away = self.scene.quarantined
                names = [node.name for node in whole.nodes if node.name in away]
                return Wait(Reason.NODES_QUARANTINED, quarantine_message(away, names))
        return Wait(answer.reason, answer.message)

    def _fabric(self, fabric: Snapshot) -> Snapshot:
        """The fabric without the nodes that are out."""
        if not self.scene.quarantined:
            return fabric
        found = self._fabrics.get(id(fabric))
        if found is None:
            nodes = tuple(n for n in fabric.nodes if n.name not in self.scene.quarantined)
            found = self._fabrics[id(fabric)] = dataclasses.replace(fabric, nodes=nodes)
        return found

    def _shape(self, request: Request, fabric: Snapshot) -> Shape:
        fabric = self._fabric(fabric)
        key = shape_key(request, fabric)
        if key not in self._shapes:
            self._shapes[key] = shape_of(request, fabric)
        return self._shapes[key]
