"""One cycle of the queue: decide about pending jobs in order, head first. Pure.

Each job that fits starts. The first job of each pool of nodes that does not fit gets a reservation.
No job behind it may delay its start; while the start is unknown, by one window at most. If the
preemption of jobs of lower priority frees nodes for the whole gang, they are preempted, and the
reservation is on their nodes. So the head cannot starve: it waits only for jobs that run already.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence

from llmtrain_core.api.conditions import Reason
from llmtrain_core.placement import Placement, Unplaceable, place, why_unplaceable
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.backfill import (
    Reservation,
    Reservations,
    earliest_reservation,
    open_reservation,
)
from llmtrain_core.queueing.capacity import FreeCapacity, RequestClass
from llmtrain_core.queueing.fabric_views import FabricViews
from llmtrain_core.queueing.messages import (
    ahead_message,
    preempting_message,
    quarantine_message,
    reserved_message,
)
from llmtrain_core.queueing.order import sort_queue, total_devices
from llmtrain_core.queueing.pending import BlockedJob, PendingQueue
from llmtrain_core.queueing.preemption import Victims, find_victims, may_take_nodes
from llmtrain_core.queueing.round import (
    MAX_WORK,
    NEW_ROUND,
    Answer,
    CycleResult,
    Round,
    largest,
    search_work,
)
from llmtrain_core.queueing.start_estimate import estimate_starts
from llmtrain_core.queueing.types import (
    Allocation,
    Assignment,
    ClusterState,
    PendingJob,
    QueueDecision,
    Unschedulable,
)
from llmtrain_core.queueing.uplink_usage import add_usage, oversubscribed, uplink_usage

TERMINATION_SECONDS = 30.0
"""Upper bound on the termination of a pod. No job is preempted for one that starts this soon."""
MAX_PREEMPTORS = 16
"""Jobs per cycle that search for victims. It bounds the time of a cycle."""


def decide(jobs: Iterable[PendingJob], cluster: ClusterState) -> dict[str, QueueDecision]:
    """Return a decision by UID for every pending job. The order of the input does not matter."""
    return dict(decide_within(jobs, cluster, max_work=math.inf).decisions)


def decide_within(
    jobs: Iterable[PendingJob],
    cluster: ClusterState,
    earlier: Round = NEW_ROUND,
    max_work: float = MAX_WORK,
) -> CycleResult:
    """Run a cycle of bounded work. It decides about at least one job without an answer."""
    jobs = list(jobs)
    cycle = _Cycle(cluster, earlier, max_work)
    allocations = sorted(cluster.allocations, key=lambda held: (held.uid, held.nodes))
    capacity = total_devices(cluster.fabrics[jobs[0].fabric].nodes if jobs else ())
    left: list[PendingJob] = []
    for job in sort_queue(jobs, allocations, capacity, cluster.nominated):
        answer = earlier.answer(job)
        if answer is not None:
            cycle.keep(answer)
        elif left or cycle.exhausted:
            left.append(job)
        else:
            cycle.decide(job)
    return CycleResult(cycle.finish(), cycle.next_round(left), complete=not left)


class _Cycle:
    """The state of one cycle: what is in use and reserved so far."""

    def __init__(self, cluster: ClusterState, earlier: Round, max_work: float):
        self.cluster = cluster
        self.allocations: dict[int, Allocation] = dict(enumerate(cluster.allocations))
        self.reservations = Reservations(largest(cluster.used, earlier.used))
        self.decisions: dict[str, QueueDecision] = {}
        self._shared_until = cluster.now + cluster.unknown_start_window
        self._earlier = earlier
        self._spare_nodes = cluster.spare_nodes
        self._kept: list[Answer] = []
        self._work_left = max_work
        self._views = FabricViews(cluster, self._count_work)
        self._decided: list[PendingJob] = []
        self._queue = PendingQueue()
        """Jobs that fit once others end."""
        self._queue_with_quarantined = PendingQueue()
        """Jobs that fit once others end and the quarantines are over."""
        self._blocked: list[BlockedJob] = []
        self._unplaceable: dict[Hashable, Unplaceable | None] = {}
        self._fits_empty: dict[Hashable, bool] = {}
        self._preemptors_left = MAX_PREEMPTORS
        self._uplinks: dict[str | None, dict[Path, float]] = {}
        self._explained: set[Hashable] = set()

    @property
    def exhausted(self) -> bool:
        """Whether the cycle has decided something and must not begin more work."""
        return self._work_left <= 0 and bool(self._decided)

    def keep(self, answer: Answer) -> None:
        """Keep the answer of an earlier cycle of the round, and its reservation."""
        self._kept.append(answer)
        job, reservation = answer.job, answer.copy_reservation()
        if reservation is not None:
            self.reservations.add(reservation)
        if answer.queued and self._work_left > 0:
            job = self._views.on_networks(job)[0]
            self._queue.append(job, self._views.requests(job))
            self._queue_with_quarantined.append(job, self._views.requests_on_all(job))

    def next_round(self, left: Sequence[PendingJob]) -> Round:
        """Return the input of the next cycle. `left` are the jobs without an answer."""
        undecided = self._earlier.next_undecided(job.uid for job in left)
        if not undecided:
            return NEW_ROUND
        reserved = {r.job.uid: r for r in self.reservations.entries}
        queued = {job.uid for job, _ in self._queue.jobs}
        answers = [
            *(Answer(answer.job, None, answer.queued) for answer in self._kept),
            *(Answer(job, None, job.uid in queued) for job in self._decided),
        ]
        waiting = {
            answer.job.uid: dataclasses.replace(answer, reservation=reserved.get(answer.job.uid))
            for answer in answers
            if not isinstance(self.decisions.get(answer.job.uid), Assignment)
        }
        return Round(waiting, undecided, self.reservations.unreserved.used, self._uplinks)

    def decide(self, job: PendingJob) -> None:
        """Start a job, or make a reservation for it if it is the first of its pool."""
        self._decided.append(job)
        end = None if job.max_duration is None else self.cluster.now + job.max_duration
        respected = self.reservations.blocking(end)
        capacity = self.reservations.capacity(respected)
        options = self._views.on_networks(job)
        for option in options:
            placement = self._place(option, capacity, avoid_suspects=True)
            if placement is not None:
                self._start(option, placement, end)
                return
        job = options[0]
        position, requests = len(self._queue_with_quarantined), self._views.requests(job)
        all_nodes = self._views.requests_on_all(job)
        if all_nodes.largest_domain >= job.node_count:
            self._queue_with_quarantined.append(job, all_nodes)
        if requests.largest_domain < job.node_count:
            self._reserve_until_quarantines_end(job)
            self._block(BlockedJob(job, position=position))
            return
        competing = self._queue.competing(requests)
        if self.cluster.quarantine.exists:  # jobs that wait for its end may get a reservation, too
            competing = self._queue_with_quarantined.competing(all_nodes, position)
        preempted, reservation = self._reserve(job, requests, capacity)
        uids = tuple(sorted(victim.uid for victim in preempted))
        if uids or (job.uid in self.cluster.nominated and self._starts_soon(reservation)):
            text = preempting_message(len(uids))
            self.decisions[job.uid] = Unschedulable(Reason.PREEMPTING, text, victims=uids)
            return
        reserved = [r for r in respected if not r.nodes.isdisjoint(requests.allocatable)]
        behind = sorted(r.job.key for r in reserved)
        ahead = tuple(key for key in competing if key not in behind)
        unknown = any(r.starts_at is None for r in reserved)
        window = self.cluster.unknown_start_window if unknown else None
        self._block(BlockedJob(job, tuple(behind), ahead, position, window))

    def _block(self, blocked: BlockedJob) -> None:
        """Explain later why a job waits. The work of that counts now."""
        self._blocked.append(blocked)
        kind = self._views.feasibility_key(blocked.job)
        if kind not in self._explained or self._views.quarantine(blocked.job).excluded:
            self._explained.add(kind)
            self._count_check(blocked.job)

    def _count_check(self, job: PendingJob) -> None:
        """Count a look at all nodes that searches no rank order."""
        self._count_work(len(self._views.fabric(job).nodes))

    def _count_work(self, work: int) -> None:
        self._work_left -= work

    def finish(self) -> dict[str, QueueDecision]:
        """Return the decisions, with the reason and the estimated start of each waiting job.

        Reasons are computed last, once per kind of job: they depend on all jobs that start.
        """
        for blocked in self._blocked:
            self.decisions[blocked.job.uid] = self._explain(blocked)
        entries = self.reservations.entries
        starts = estimate_starts(
            self._queue.jobs,
            tuple(self.allocations.values()),
            self.reservations.capacity(r for r in entries if r.starts_at is None),
            self.cluster.now,
        )
        starts |= {r.job.uid: r.starts_at for r in entries if r.starts_at is not None}
        for uid, starts_at in starts.items():
            decision = self.decisions.get(uid)
            if isinstance(decision, Unschedulable):
                self.decisions[uid] = dataclasses.replace(decision, starts_at=starts_at)
        return self.decisions

    def _explain(self, blocked: BlockedJob) -> Unschedulable:
        job = blocked.job
        why = self._refusal(job)
        if why is None:
            text = reserved_message(job.namespace, blocked.behind, blocked.ahead, blocked.window)
            return Unschedulable(
                Reason.WAITING_BEHIND, text, behind=blocked.behind, ahead=blocked.ahead
            )
        out = self._views.quarantine(job).excluded
        if out:
            used = self.reservations.unreserved.used
            found = place(job.request, dataclasses.replace(self._views.fabric(job), used=used))
            if isinstance(found, Placement):
                names = [n.name for n in (*found.nodes, *found.spares) if n.name in out]
                all_nodes = self._views.requests_on_all(job)
                ahead = tuple(self._queue_with_quarantined.competing(all_nodes, blocked.position))
                text = quarantine_message(job.namespace, out, names)
                text += ahead_message(job.namespace, ahead)
                return Unschedulable(Reason.NODES_QUARANTINED, text, ahead=ahead)
        ahead = (*blocked.behind, *blocked.ahead)
        text = why.message + ahead_message(job.namespace, ahead)
        return Unschedulable(why.reason, text, ahead=ahead, blockers=why.blockers)

    def _start(self, job: PendingJob, placement: Placement, end: float | None) -> None:
        fabric = self._views.fabric(job)
        assignment = Assignment(
            job.attempt,
            placement,
            job.resources,
            job.request.gpus_per_node,
            job.priority,
            self.reservations.overlap(self._views.requests(job)),
            network=job.request.chosen_network,
        )
        self.decisions[job.uid] = assignment
        names = assignment.nodes
        self.reservations.allocate(names, job.resources, end)
        self.allocations[len(self.allocations)] = Allocation(
            job.uid, job.namespace, job.priority, names, job.resources, end, preemptible=False
        )
        if oversubscribed(fabric):
            ranks = [node.name for node in placement.nodes]
            add_usage(self._uplink_usage(job), uplink_usage(job.request, ranks, fabric))

    def _uplink_usage(self, job: PendingJob) -> dict[Path, float]:
        """Return the usage of uplinks, with the jobs that start in this round."""
        if job.fabric not in self._uplinks:
            before = self._earlier.uplinks.get(job.fabric, {})
            self._uplinks[job.fabric] = largest(self._views.fabric(job).uplinks, before)
        return self._uplinks[job.fabric]

    def _reserve(
        self, job: PendingJob, requests: RequestClass, capacity: FreeCapacity
    ) -> tuple[Victims, Reservation | None]:
        """Return the jobs to preempt for a job, and its reservation.

        Only the first job of a pool, or one that preempts, gets a reservation. The job is added to
        the queue, unless it would not fit even if all jobs ended.
        """
        first = not self.reservations.overlap(requests)
        lower = [
            held
            for held in self.allocations.values()
            if may_take_nodes(job, held, self.cluster.now)
        ]
        preempts = job.uid in self.cluster.nominated or (lower and self._preemptors_left > 0)
        if job.deferred or not (first or preempts):
            self._queue.append(job, requests)
            return (), None
        preempted: Victims = ()
        found = self._earliest(job, requests, capacity)
        if lower and not self._starts_soon(found):
            self._preemptors_left -= 1
            preempted = self._preempt(job, requests, capacity, lower)
            if preempted:
                found = self._earliest(job, requests, capacity)
        if found.starts_at is None and not self._fits_empty_cluster(job):
            self._reserve_until_quarantines_end(job)
            return (), None
        self._queue.append(job, requests)
        if first or self._starts_soon(found):
            self.reservations.add(found)
        return preempted, found

    def _reserve_until_quarantines_end(self, job: PendingJob) -> None:
        """Reserve nodes for the first job of a pool that fits once the quarantines are over.

        Otherwise jobs without a known end would take its turn during each quarantine.
        """
        requests = self._views.requests_on_all(job)
        for_all = self._views.only_quarantined_for_all(job)
        if job.deferred or not for_all or self.reservations.overlap(requests):
            return
        if self._fits_empty_cluster(job, with_quarantined=True):
            self.reservations.add(open_reservation(job, requests, self._shared_until))

    def _starts_soon(self, reservation: Reservation | None) -> bool:
        starts_at = None if reservation is None else reservation.starts_at
        return starts_at is not None and starts_at <= self.cluster.now + TERMINATION_SECONDS

    def _earliest(
        self, job: PendingJob, requests: RequestClass, capacity: FreeCapacity
    ) -> Reservation:
        def place_in(trial: FreeCapacity) -> Placement | None:
            return self._place(job, trial, avoid_suspects=False)

        allocations = tuple(self.allocations.values())
        return earliest_reservation(
            job, requests, capacity, allocations, place_in, self._shared_until
        )

    def _preempt(
        self,
        job: PendingJob,
        requests: RequestClass,
        capacity: FreeCapacity,
        lower: Sequence[Allocation],
    ) -> Victims:
        def confirm(chosen: Victims) -> bool:
            trial = capacity.copy()
            for victim in chosen:
                trial.release(victim.nodes, victim.resources)
            self._count_check(job)
            nodes = self._views.available(job, trial, self._uplink_usage(job))
            return why_unplaceable(job.request, nodes) is None

        preempted = find_victims(requests, job.node_count, capacity, lower, confirm) or ()
        uids = {victim.uid for victim in preempted}
        for key, held in self.allocations.items():
            if held.uid in uids:
                self.allocations[key] = dataclasses.replace(
                    held, ends_at=self.cluster.now + TERMINATION_SECONDS, preemptible=False
                )
        return preempted

    def _place(
        self, job: PendingJob, capacity: FreeCapacity, avoid_suspects: bool
    ) -> Placement | None:
        """Place a job: as long as it fits without suspects, avoided and spare nodes.

        The spare of another job is better than a suspect, and a suspect than a node that failed
        for this job.
        """
        own, none = job.avoided_nodes, frozenset[str]()
        suspects = own | self._views.last_nodes(job)
        steps = (suspects | self._spare_nodes, suspects, own, none) if avoid_suspects else (none,)
        for last in dict.fromkeys(steps):
            excluded = job.request.excluded | last
            request = dataclasses.replace(job.request, excluded=excluded) if last else job.request
            usable = self._views.request_class(request, self._views.usable(job))
            if not capacity.fits(usable, job.node_count):
                continue
            self._count_work(search_work(job, len(self._views.fabric(job).nodes)))
            nodes = self._views.available(job, capacity, self._uplink_usage(job))
            found = place(request, nodes)
            if isinstance(found, Placement):
                return found
        return None

    def _refusal(self, job: PendingJob) -> Unplaceable | None:
        """Return why a job would not fit without reservations. Computed once per kind of job."""
        key = self._views.feasibility_key(job)
        if key not in self._unplaceable:
            used = self.reservations.unreserved.used
            nodes = dataclasses.replace(self._views.usable(job), used=used)
            self._unplaceable[key] = why_unplaceable(job.request, nodes)
        return self._unplaceable[key]

    def _fits_empty_cluster(self, job: PendingJob, with_quarantined: bool = False) -> bool:
        """Return True if the job fits when no other job runs. Otherwise nothing is reserved."""
        key = (self._views.feasibility_key(job), with_quarantined)
        if key not in self._fits_empty:
            self._count_check(job)
            nodes = self._views.fabric(job) if with_quarantined else self._views.usable(job)
            empty = dataclasses.replace(nodes, used={})
            self._fits_empty[key] = why_unplaceable(job.request, empty) is None
        return self._fits_empty[key]
