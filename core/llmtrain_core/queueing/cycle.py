"""One round of the queue: a decision for every waiting job, in order, head first. Pure.

Whoever fits starts. The first of each pool of nodes that does not fit gets a reservation, which
nobody behind it may touch; where stopping jobs of lower priority makes room for the whole gang, it
stops them and its reservation is their room. So the head cannot starve: it only waits for those
who run already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence

from llmtrain_core.api.conditions import Reason
from llmtrain_core.placement import Placement, Request, Unplaceable, place, refusal
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.backfill import Promises, Reservation, reserve
from llmtrain_core.queueing.capacity import Room, Shape, shape_key, shape_of
from llmtrain_core.queueing.messages import (
    ahead_message,
    kept_message,
    preempting_message,
    quarantine_message,
)
from llmtrain_core.queueing.order import in_order
from llmtrain_core.queueing.pending import Line
from llmtrain_core.queueing.preemption import Victims, victims
from llmtrain_core.queueing.start_estimate import forecast
from llmtrain_core.queueing.types import Decision, Running, Scene, Slot, Start, Wait, Waiting
from llmtrain_core.queueing.uplink_usage import add, oversubscribed, uplink_shares
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
    return round_.outcome()


def _capacity(jobs: Sequence[Waiting]) -> dict[str, int]:
    """What all nodes hand out; every fabric shows the same nodes."""
    total: dict[str, int] = {}
    for node in jobs[0].fabric.nodes if jobs else ():
        for resource, amount in node.allocatable.items():
            total[resource] = total.get(resource, 0) + amount
    return total


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """A job that does not start in this round."""

    job: Waiting
    behind: tuple[str, ...] = ()
    """Keys of the jobs ahead for which room is kept."""
    ahead: tuple[str, ...] = ()
    """Keys of the other jobs ahead that could use the same nodes."""
    place: int = 0
    """How many of the line are ahead of it."""


class _Round:
    """The state of one round: what is in use and promised so far."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.running: dict[int, Running] = dict(enumerate(scene.running))
        self.promises = Promises(scene.used)
        self.decisions: dict[str, Decision] = {}
        self._queue = Line()
        """Those who would fit once others leave."""
        self._line = Line()
        """Those who would fit once others leave and no node is out any more."""
        self._waits: list[_Held] = []
        self._shapes: dict[Hashable, Shape] = {}
        self._fabrics: dict[int, Snapshot] = {}
        self._refusals: dict[Hashable, Unplaceable | None] = {}
        self._fit_empty: dict[Hashable, bool] = {}
        self._preemptors = MOST_PREEMPTORS
        self._uplinks: dict[int, dict[Path, float]] = {}

    def decide(self, job: Waiting) -> None:
        """Start a job, or keep room for it if its turn has come."""
        end = None if job.duration is None else self.scene.now + job.duration
        ahead = self.promises.in_the_way_of(end)
        room = self.promises.room(ahead)
        answer = self._place(job, room, careful=True)
        if answer is not None:
            self._start(job, answer, end)
            return
        place, shape = len(self._line), self._shape(job.request, job.fabric)
        whole = self._shape_in(job.request, job.fabric)
        if whole.largest >= job.size:
            self._line.append(job, whole)
        if shape.largest < job.size:
            self._waits.append(_Held(job, place=place))
            return
        rivals = self._queue.rivals(shape)
        stopped, reservation = self._reserve(job, shape, room)
        uids = tuple(sorted(tenant.uid for tenant in stopped))
        if uids or (job.uid in self.scene.promised and self._soon(reservation)):
            text = preempting_message(len(uids))
            self.decisions[job.uid] = Wait(Reason.PREEMPTING, text, victims=uids)
            return
        behind = sorted(r.job.key for r in ahead if not r.kept.isdisjoint(shape.seats))
        for key in behind:
            rivals.remove(key)
        self._waits.append(_Held(job, tuple(behind), tuple(rivals), place))

    def outcome(self) -> dict[str, Decision]:
        """Return the decisions; those who wait are told why, and when they start if all goes well.

        Why is asked last: of what is in use once all have sat down who can, and once per kind.
        """
        for held in self._waits:
            self.decisions[held.job.uid] = self._wait(held)
        starts = forecast(
            self._queue.jobs, tuple(self.running.values()), self.promises.now, self.scene.now
        ) | {r.job.uid: r.at for r in self.promises.reservations if r.at is not None}
        for uid, at in starts.items():
            decision = self.decisions[uid]
            if isinstance(decision, Wait):
                self.decisions[uid] = dataclasses.replace(decision, starts_at=at)
        return self.decisions

    def _wait(self, held: _Held) -> Wait:
        job = held.job
        why = self._alone(job)
        if why is None:
            text = kept_message(job.namespace, held.behind, held.ahead)
            return Wait(Reason.WAITING_BEHIND, text, behind=held.behind, ahead=held.ahead)
        away = self.scene.quarantined
        if away:
            whole = place(job.request, dataclasses.replace(job.fabric, used=self.promises.now.used))
            if isinstance(whole, Placement):
                names = [n.name for n in (*whole.nodes, *whole.spares) if n.name in away]
                shape = self._shape_in(job.request, job.fabric)
                rivals = tuple(self._line.rivals(shape, held.place))
                text = quarantine_message(away, names) + ahead_message(job.namespace, rivals)
                return Wait(Reason.NODES_QUARANTINED, text, ahead=rivals)
        rivals = (*held.behind, *held.ahead)
        text = why.message + ahead_message(job.namespace, rivals)
        return Wait(why.reason, text, ahead=rivals, blockers=why.blockers)

    def _start(self, job: Waiting, answer: Placement, end: float | None) -> None:
        names = tuple(node.name for node in (*answer.nodes, *answer.spares))
        shape = self._shape(job.request, job.fabric)
        passed = any(not r.pool.isdisjoint(shape.seats) for r in self.promises.reservations)
        self.decisions[job.uid] = Start(answer, job.takes, backfilled=passed)
        self.promises.take(names, job.takes, end)
        self.running[len(self.running)] = Running(
            job.uid, job.namespace, job.priority, names, job.takes, end, preemptible=False
        )
        if oversubscribed(job.fabric):
            nodes = [node.name for node in answer.nodes]
            add(self._ledger(job.fabric), uplink_shares(job.request, nodes, job.fabric))

    def _ledger(self, fabric: Snapshot) -> dict[Path, float]:
        """What is sent over uplinks, those who start in this round included."""
        return self._uplinks.setdefault(id(fabric), dict(fabric.uplinks))

    def _reserve(
        self, job: Waiting, shape: Shape, room: Room
    ) -> tuple[Victims, Reservation | None]:
        """Keep room for a job whose turn it is, or for which others stop: who, and what room.

        It then stands in the queue, unless nobody who leaves could make room for it.
        """
        first = all(r.pool.isdisjoint(shape.seats) for r in self.promises.reservations)
        lower = [
            tenant
            for tenant in self.running.values()
            if job.preempts and tenant.preemptible and tenant.priority < job.priority
        ]
        claims = job.uid in self.scene.promised or (lower and self._preemptors > 0)
        if not first and not claims:
            self._queue.append(job, shape)
            return (), None
        stopped: Victims = ()
        found = self._earliest(job, shape, room)
        if lower and not self._soon(found):
            self._preemptors -= 1
            stopped = self._stop(job, shape, room, lower)
            if stopped:
                found = self._earliest(job, shape, room)
        if found.at is None and not self._ever(job, shape):
            return (), None
        self._queue.append(job, shape)
        if first or self._soon(found):
            self.promises.keep(found)
        return stopped, found

    def _soon(self, reservation: Reservation | None) -> bool:
        at = None if reservation is None else reservation.at
        return at is not None and at <= self.scene.now + SOON_SECONDS

    def _earliest(self, job: Waiting, shape: Shape, room: Room) -> Reservation:
        def there(trial: Room) -> Placement | None:
            return self._place(job, trial, careful=False)

        return reserve(job, shape, room, tuple(self.running.values()), there)

    def _stop(self, job: Waiting, shape: Shape, room: Room, lower: Sequence[Running]) -> Victims:
        def accept(chosen: Victims) -> bool:
            trial = room.copy()
            for tenant in chosen:
                trial.give(tenant.nodes, tenant.takes)
            return refusal(job.request, self._withheld(job, trial)) is None

        stopped = victims(shape, job.size, room, lower, accept) or ()
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
            if not room.fits(shape, job.size):
                continue
            answer = place(request, self._withheld(job, room))
            if isinstance(answer, Placement):
                return answer
        return None

    def _withheld(self, job: Waiting, room: Room) -> Snapshot:
        """The nodes as they may be given out now."""
        withheld = room.blocked | self.scene.quarantined.keys()
        return dataclasses.replace(
            job.fabric, used=room.used, withheld=withheld, uplinks=self._ledger(job.fabric)
        )

    def _alone(self, job: Waiting) -> Unplaceable | None:
        """Why the job would not fit even if nothing were kept for anybody; asked once per kind."""
        key = self._kind(job)
        if key not in self._refusals:
            self._refusals[key] = refusal(job.request, self._view(job, self.promises.now.used))
        return self._refusals[key]

    def _kind(self, job: Waiting) -> Hashable:
        """Return what makes two jobs fit, or not fit, on the same nodes."""
        request = job.request
        return (
            shape_key(request, job.fabric),
            request.nodes,
            request.spares,
            request.layout,
            request.prefer,
            request.tensor_within,
        )

    def _view(self, job: Waiting, used: Mapping[Slot, int]) -> Snapshot:
        """The nodes that are not out, as somebody sees them who may have all that is not in use."""
        return dataclasses.replace(self._fabric(job.fabric), used=used)

    def _ever(self, job: Waiting, shape: Shape) -> bool:
        """Whether the job would fit if nothing ran: room is kept for no other."""
        key = self._kind(job)
        if key not in self._fit_empty:
            self._fit_empty[key] = refusal(job.request, self._view(job, {})) is None
        return self._fit_empty[key]

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
        return self._shape_in(request, self._fabric(fabric))

    def _shape_in(self, request: Request, fabric: Snapshot) -> Shape:
        key = shape_key(request, fabric)
        if key not in self._shapes:
            self._shapes[key] = shape_of(request, fabric)
        return self._shapes[key]
