"""What the scheduler remembers of jobs. It is in memory only."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.queueing import (
    Allocation,
    Assignment,
    ClusterState,
    PendingJob,
    Unschedulable,
)
from llmtrain_core.queueing.cycle import TERMINATION_SECONDS
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.scheduler.decisions import JobDecision, Preemption, RelocationHint
from llmtrain_operator.scheduler.jobs import assumed_allocation
from llmtrain_operator.scheduler.lapses import ASSIGNMENT_SECONDS, NO_LAPSE, Lapses

log = logging.getLogger(__name__)

Queue = Mapping[str, PendingJob | Unschedulable]
"""The pending jobs by UID, in no order."""


@dataclass(slots=True)
class JobState:
    """What the scheduler remembers of one job."""

    assignment: Assignment | None = None
    """Nodes that are reserved for the job until its status shows them."""
    pending: PendingJob | None = None
    """The job as it was when a cycle assigned nodes to it; None for a relocation."""
    assigned_at: float = 0.0
    """When the assignment was made; monotonic time."""
    lapses: Lapses = NO_LAPSE
    reserved: bool = False
    """Whether the job's status is being written with the assignment: it cannot be withdrawn."""
    relocates_until: float = 0.0
    """Until then a running job may accept the assignment; monotonic time."""
    claim: tuple[frozenset[str], int] | None = None
    """Spare nodes that replace failed ones in the attempt after this one."""
    preemption: Preemption | None = None
    nominated: bool = False
    """Whether others were preempted for the job."""
    unschedulable: Unschedulable | None = None
    message_set_at: float = 0.0
    """When `unschedulable` was set; monotonic time."""
    hint: RelocationHint | None = None
    relocation_checked_at: float = 0.0
    """When a better placement was last searched for; monotonic time."""

    @property
    def decision(self) -> JobDecision | None:
        """The newest decision about the job."""
        return self.assignment or self.preemption or self.unschedulable or self.hint

    def clear_unschedulable(self) -> None:
        """Forget why the job waits."""
        self.unschedulable, self.message_set_at = None, 0.0


class JobStates:
    """What the scheduler remembers of all jobs: decisions that their statuses do not show yet."""

    def __init__(
        self,
        job: Callable[[str], JobView | None],
        on_accepted: Callable[[Assignment], None],
        on_lapsed: Callable[[], None],
    ):
        """`job` returns a stored job by its UID.

        `on_accepted` gets each accepted assignment. `on_lapsed` is called for each assignment that
        no status write has taken in time.
        """
        self.jobs: defaultdict[str, JobState] = defaultdict(JobState)
        self._job = job
        self._on_accepted = on_accepted
        self._on_lapsed = on_lapsed

    def assignments(self) -> dict[str, Assignment]:
        """Return the assignments that the status of no job shows yet, by UID."""
        return {uid: state.assignment for uid, state in self.jobs.items() if state.assignment}

    def claimed(self) -> set[str]:
        """Return the spare nodes that are in use although no status shows it yet."""
        claimed: set[str] = set()
        for uid, state in self.jobs.items():
            if state.claim is not None:
                job = self._job(uid)
                if job is None or job.attempt > state.claim[1]:
                    state.claim = None
                else:
                    claimed |= state.claim[0]
        return claimed

    def preempted(self) -> Iterator[tuple[JobState, Preemption]]:
        """Yield the preemptions that still hold."""
        for state in self.jobs.values():
            if state.preemption is not None and not state.preemption.expired:
                yield state, state.preemption

    def with_decisions(self, cluster: ClusterState, queue: Queue) -> ClusterState:
        """Add the decisions that the informers do not show yet: assignments and preemptions."""
        allocations: list[Allocation] = []
        for held in cluster.allocations:
            state = self.jobs.get(held.uid)
            if state is not None and state.preemption is not None:
                end = cluster.now + TERMINATION_SECONDS
                held = replace(held, ends_at=end, preemptible=False)
            allocations.append(held)
        for uid, assignment in self.assignments().items():
            job = self.jobs[uid].pending
            if job is not None and uid in queue:
                allocations.append(assumed_allocation(job, assignment, cluster.now))
        nominated = frozenset(uid for uid, state in self.jobs.items() if state.nominated)
        return replace(cluster, allocations=tuple(allocations), nominated=nominated)

    def drop_outdated(self, queue: Queue) -> None:
        """Drop assignments that were accepted or that no job wants, and finished preemptions."""
        for uid, assignment in self.assignments().items():
            self._drop_assignment(uid, assignment, queued=uid in queue)
        for uid, state in self.jobs.items():
            state.nominated = state.nominated and uid in queue and state.assignment is None
            job = self._job(uid)
            if job is None or job.placement:
                state.lapses = NO_LAPSE
            if state.preemption is not None:
                preemptor = self.jobs.get(state.preemption.preemptor)
                stopped = job is None or job.attempt > state.preemption.attempt
                needless = preemptor is None or not preemptor.nominated
                if stopped or (needless and not state.preemption.expired):
                    state.preemption = None
        for uid in [uid for uid, state in self.jobs.items() if state == JobState()]:
            del self.jobs[uid]

    def _drop_assignment(self, uid: str, assignment: Assignment, queued: bool) -> None:
        state, job = self.jobs[uid], self._job(uid)
        placement = (job.stored_placement if job else None) or {}
        accepted = bool(placement) and placement.get("attempt", 0) >= assignment.attempt
        if accepted:
            self._on_accepted(assignment)
        superseded = job is not None and job.attempt > assignment.attempt
        relocating = time.monotonic() < state.relocates_until
        unwanted = not queued and not state.reserved and not relocating
        outdated = queued and job is not None and job.attempt != assignment.attempt
        drop = (
            job is None or accepted or superseded or unwanted or (outdated and not state.reserved)
        )
        late = time.monotonic() >= state.assigned_at + ASSIGNMENT_SECONDS
        if not drop and late and queued and not state.reserved:
            drop = True
            if state.pending is not None:  # else a relocation, which the job did not queue for
                state.lapses = state.lapses.next(time.monotonic())
                self._on_lapsed()
                log.warning("job=%s its status was not written in time, its nodes are free", uid)
        if drop:
            state.assignment, state.pending, state.assigned_at = None, None, 0.0
            state.reserved, state.relocates_until = False, 0.0
