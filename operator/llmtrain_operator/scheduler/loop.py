"""The scheduler loop: snapshot, decide, assume. The reconcile loop of each job commits.

A gang needs a global decision, so one loop makes all of them. The scheduler writes nothing. It
keeps the nodes of an assignment reserved until the job's status shows the placement, the job does
not want it any more, or no status write takes it in time. A preempted job keeps its `Preemption`
until its status shows the new attempt, or until the preemptor no longer needs its nodes. Its nodes
count as in use until its pods have ended, and until then the preemptor goes first among jobs of its
priority. All of this is in memory only: a new process decides again from what it observes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence

from llmtrain_core.api.conditions import Reason
from llmtrain_core.queueing import (
    Assignment,
    ClusterState,
    PendingJob,
    RunningJob,
    Unschedulable,
)
from llmtrain_core.queueing.round import NEW_ROUND
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.scheduler.cycle import (
    Decisions,
    decide,
    displaced,
    find_better_placement,
    find_place_elsewhere,
)
from llmtrain_operator.scheduler.decisions import JobDecision, Preemption
from llmtrain_operator.scheduler.memory import JobStates, Queue

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 0.05
"""Delay of a cycle after a trigger. Changes arrive in bursts."""
RESYNC_SECONDS = 15.0
"""Period of cycles without a trigger: deadlines and quarantines end without an event."""
RELOCATION_PERIOD_SECONDS = 10.0
"""Period of the search for a better placement of a running job, while no job is pending."""
MAX_LEAVING = 4
"""Jobs per cycle for which a place is searched because their nodes are drained."""
RELOCATION_TIMEOUT_SECONDS = 30.0
"""A job that requested a relocation has this long to accept the assignment."""
MESSAGE_REFRESH_SECONDS = 0.2
"""Per pending job, the seconds for which a volatile reason keeps its message. Otherwise each start
and end of a job would rewrite the status of the whole queue."""
_VOLATILE_REASONS = frozenset(
    {Reason.INSUFFICIENT_GPUS, Reason.DOMAIN_TOO_SMALL, Reason.WAITING_BEHIND}
)
"""Reasons that change with every start and end of another job."""


class Scheduler:
    """Run cycles, and keep their decisions until jobs have acted on them."""

    def __init__(
        self,
        pending_jobs: Callable[[], Queue],
        cluster_state: Callable[[Mapping[str, Assignment]], ClusterState],
        job: Callable[[str], JobView | None],
        wake: Callable[[str], None],
        observe_seconds: Callable[[float], None] = lambda _seconds: None,
        on_accepted: Callable[[Assignment], None] = lambda _assignment: None,
        confirm: Callable[[Decisions, Queue], Decisions] = lambda decisions, _queue: decisions,
        leaving_jobs: Callable[[], Sequence[str]] = tuple,
        on_lapsed: Callable[[], None] = lambda: None,
    ):
        """Connect to the other parts.

        `wake` starts a reconcile of a job. `on_accepted` gets each accepted assignment. `confirm`
        drops the decisions that must not take effect. `leaving_jobs` returns the UIDs of running
        jobs that may leave nodes that are drained. `on_lapsed` is called for each assignment that
        no status write has taken in time.
        """
        self._leaving_jobs = leaving_jobs
        self._pending_jobs = pending_jobs
        self._cluster_state = cluster_state
        self._job = job
        self._wake = wake
        self._observe_seconds = observe_seconds
        self._confirm = confirm
        self._triggered = asyncio.Event()
        self._delayed: asyncio.TimerHandle | None = None
        self._round = NEW_ROUND
        self._states = JobStates(job, on_accepted, on_lapsed)
        self._jobs = self._states.jobs
        self._relocation_checked_at = -RELOCATION_PERIOD_SECONDS
        self.pending_count = 0

    def trigger(self) -> None:
        """Start a cycle soon: something changed that may affect a pending job."""
        self._triggered.set()

    def trigger_later(self, seconds: float) -> None:
        """Start a cycle after some seconds. Calls until then have no further effect."""
        if self._delayed is None:
            self._delayed = asyncio.get_running_loop().call_later(seconds, self._trigger_delayed)

    def _trigger_delayed(self) -> None:
        self._delayed = None
        self.trigger()

    def decision(self, uid: str) -> JobDecision | None:
        """Return the newest decision about a job."""
        state = self._jobs.get(uid)
        return state.decision if state else None

    def reserve(self, uid: str, assignment: Assignment) -> bool:
        """Keep the assignment of a job: its status is about to be written.

        Return False if the assignment is withdrawn. Then the status must not be written.
        """
        state = self._jobs.get(uid)
        if state is None or state.assignment is not assignment:
            return False
        state.reserved, state.assigned_at = True, min(state.assigned_at, time.monotonic())
        return True

    def wait_for_turn(self, uid: str) -> None:
        """Let no assignment of a job lapse before its turn to start has come."""
        state = self._jobs.get(uid)
        if state is not None and state.assignment is not None:
            state.assigned_at = math.inf

    def claim(self, uid: str, spares: frozenset[str]) -> None:
        """Keep the spare nodes of a job that its status, which is about to be written, uses."""
        if spares:
            job = self._job(uid)
            self._jobs[uid].claim = spares, job.attempt if job else 0

    def release(self, uid: str) -> None:
        """Allow the assignment to be withdrawn: the write has certainly failed."""
        self._jobs[uid].reserved, self._jobs[uid].claim = False, None
        self.trigger()

    async def run(self) -> None:
        """Run a cycle after each trigger, and periodically."""
        while True:
            try:
                async with asyncio.timeout(RESYNC_SECONDS):
                    await self._triggered.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(DEBOUNCE_SECONDS)
            self._triggered.clear()
            try:
                started = time.perf_counter()
                await self.cycle()
                self._observe_seconds(time.perf_counter() - started)
            except Exception:
                # One malformed object must not stop the queue for good.
                log.exception("scheduler cycle failed")
                await asyncio.sleep(1.0)
                self.trigger()

    async def cycle(self) -> None:
        """Decide about pending jobs, as the informers show them now.

        The work of a cycle is bounded, and the next one continues at once. The decision runs in a
        thread, because other loops must answer meanwhile. The next cycle sees what changes. Only
        this loop assigns nodes.
        """
        queue = self._pending_jobs()
        self._states.drop_outdated(queue)
        await self._relocate_from_drained_nodes()
        self.pending_count = len(queue)
        assignments = self.assignments()
        now = time.monotonic()
        undecided = {
            uid: self._jobs[uid].lapses.apply_to(job, now)
            for uid, job in queue.items()
            if uid not in assignments
        }
        if not undecided:
            for state in self._jobs.values():
                state.clear_unschedulable()
            self._round = NEW_ROUND
            await self._check_relocation()
            return
        cluster = self._states.with_decisions(self._cluster_state(assignments), queue)
        earlier, self._round = self._round, NEW_ROUND
        found = await asyncio.to_thread(decide, undecided, cluster, earlier)
        confirmed = self._confirm(found, undecided)
        self._store(confirmed, undecided)
        if confirmed is found:
            self._round = found.round
        if not found.complete:
            self.trigger()

    def assignments(self) -> dict[str, Assignment]:
        """Return the assignments that the status of no job shows yet, by UID."""
        return self._states.assignments()

    def _store(self, decisions: Decisions, undecided: Queue) -> None:
        """Store new decisions, and wake the jobs whose decision changed."""
        for uid, state in self._jobs.items():
            if uid not in undecided:
                state.clear_unschedulable()
        refresh = MESSAGE_REFRESH_SECONDS * len(undecided)
        claimed = self._states.claimed()
        for uid, decision in decisions.pending.items():
            state = self._jobs[uid]
            if isinstance(decision, Assignment):
                if claimed & set(decision.nodes):
                    self.trigger()
                    continue
                job = undecided[uid]
                state.assignment, state.assigned_at = decision, time.monotonic()
                state.pending = job if isinstance(job, PendingJob) else None
                state.clear_unschedulable()
                self._wake(uid)
            else:
                self._store_unschedulable(uid, decision, refresh)
        self._spare_victims(decisions)
        self._preempt(decisions.preemptions)

    def _preempt(self, preemptions: Mapping[str, Preemption]) -> None:
        for uid, preemption in preemptions.items():
            self._jobs[uid].preemption = preemption
            self._jobs[preemption.preemptor].nominated = not preemption.expired
            self._wake(uid)

    def _store_unschedulable(self, uid: str, decision: Unschedulable, refresh: float) -> None:
        """Store why a job waits, unless a volatile reason changed too recently."""
        state, now = self._jobs[uid], time.monotonic()
        old = state.unschedulable
        if old is not None:
            same = old.reason == decision.reason
            volatile = {old.reason, decision.reason} <= _VOLATILE_REASONS
            if (same or volatile) and now - state.message_set_at < refresh:
                return
        state.unschedulable, state.message_set_at = decision, now
        if decision != old:
            self._wake(uid)

    def _spare_victims(self, decisions: Decisions) -> None:
        """Drop the preemptions for a job whose nodes were assigned to another job.

        If no job got an assignment, only the head of the queue may have changed: it needs the
        nodes of the victims.
        """
        if not any(isinstance(found, Assignment) for found in decisions.pending.values()):
            return
        preempting = {
            uid
            for uid, state in self._jobs.items()
            if state.unschedulable and state.unschedulable.reason == Reason.PREEMPTING
        }
        for state, preemption in self._states.preempted():
            if preemption.preemptor not in preempting:
                state.preemption = None
                self.trigger()  # jobs that counted on those nodes may need other victims

    async def _relocate_from_drained_nodes(self) -> None:
        """Search a place for jobs whose nodes are drained, before pending jobs get it.

        They have been given nodes already, and would otherwise be stopped.
        """
        assigned = self.assignments()
        leaving = [uid for uid in self._leaving_jobs() if uid not in assigned]
        leaving.sort(key=lambda uid: self._jobs[uid].relocation_checked_at)
        cluster: ClusterState | None = None
        for uid in leaving[:MAX_LEAVING]:
            cluster = cluster or self._cluster_state(self.assignments())
            state = self._jobs[uid]
            state.relocation_checked_at = time.monotonic()  # of a job that cannot move, too
            job = next((job for job in cluster.running if job.next.uid == uid), None)
            if job is None or not job.leaving:
                continue
            found = await asyncio.to_thread(find_place_elsewhere, job, cluster)
            if found is not None and self._states.claimed().isdisjoint(found.nodes):
                state.assignment, state.assigned_at = found, time.monotonic()
                state.relocates_until = time.monotonic() + RELOCATION_TIMEOUT_SECONDS
                self._preempt(displaced([(job.next, found)], cluster))
                cluster = None
                self._wake(uid)

    async def _check_relocation(self) -> None:
        """Search a better placement for one running job: on request first, else in turn."""
        if time.monotonic() - self._relocation_checked_at < RELOCATION_PERIOD_SECONDS:
            return
        self._relocation_checked_at = time.monotonic()
        assignments = self.assignments()
        cluster = self._cluster_state(assignments)
        settled = {job.next.uid: job for job in cluster.running if job.settled}
        for uid, state in self._jobs.items():
            if uid not in settled:
                state.hint = None
        candidates = [job for uid, job in settled.items() if uid not in assignments]
        if not candidates:
            return
        for uid, state in self._jobs.items():
            if uid not in settled:
                state.relocation_checked_at = 0.0
        job = min(candidates, key=self._relocation_turn)
        state = self._jobs[job.next.uid]
        state.relocation_checked_at = time.monotonic()
        hint, assignment = await asyncio.to_thread(find_better_placement, job, cluster)
        if assignment is not None and job.relocation_requested:
            state.assignment, state.assigned_at = assignment, time.monotonic()
            state.relocates_until = time.monotonic() + RELOCATION_TIMEOUT_SECONDS
        changed, state.hint = state.hint != hint, hint
        if changed or job.relocation_requested:
            self._wake(job.next.uid)

    def _relocation_turn(self, job: RunningJob) -> tuple[bool, float]:
        return not job.relocation_requested, self._jobs[job.next.uid].relocation_checked_at
