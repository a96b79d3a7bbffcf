"""The reconcile loop of one job: observe, decide, apply. Serial, coalescing and level-triggered.

No decision depends on state that only this process holds: after a kill at any instant, a new
process observes the same cluster and continues.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.records import JobRecord, NodeRecord, PodRecord
from llmtrain_operator.errors import ApiError, ConflictError, LeaseLostError, NotFoundError
from llmtrain_operator.job_state.missing_objects import pods_without_object
from llmtrain_operator.job_state.observation import CreateError, Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.informer import Informer
from llmtrain_operator.kube.namespace_limits import FairTurns, StartTurns
from llmtrain_operator.kube.resources import JOBS
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.planning.assessment import Assessment
from llmtrain_operator.planning.assessment_cache import AssessmentCache
from llmtrain_operator.progress.link_monitor import LinkMonitor
from llmtrain_operator.progress.pod_events import PodEvents
from llmtrain_operator.progress.poller import ProgressPoller
from llmtrain_operator.reconcile.attempt_objects import JobAttemptObjects
from llmtrain_operator.reconcile.backoff import RESYNC_SECONDS, Backoff
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.reconcile.disruption_budget import JobBudget
from llmtrain_operator.reconcile.expectations import Expectations
from llmtrain_operator.reconcile.first_seen import FirstSeen
from llmtrain_operator.reconcile.restoration import Restorer
from llmtrain_operator.reconcile.slow_deletion import SlowDeletion
from llmtrain_operator.reconcile.transitions import added_nodes, record_transitions
from llmtrain_operator.reconcile.writer import JobWriter
from llmtrain_operator.scheduler.fabric_levels import FabricLevels
from llmtrain_operator.scheduler.loop import Scheduler

log = logging.getLogger(__name__)

COALESCE_SECONDS = 0.02
MAX_COALESCE_SECONDS = 1.0
EVENT_LOOP_SHARE = 0.1
"""Part of the event loop that the decisions about one job take while its pods change. A decision
about a gang of 10,000 pods takes 40 ms, and each pod has several events until it is ready."""
DENIED_EVENT_SECONDS = 600.0
"""Period of the Events while the API server refuses the status writes of a job."""
FINALIZER_RETRY_SECONDS = 5.0
"""First delay of another try to remove a finalizer; the job is reconciled meanwhile."""


@dataclass(frozen=True, slots=True)
class ReconcilerDeps:
    """Dependencies shared by the reconcilers of all jobs."""

    cluster: KubeApi
    jobs: Informer[JobRecord]
    pods: Informer[PodRecord]
    node: Callable[[str], NodeRecord | None]
    unready_seconds: Callable[[str], float]
    checked: Callable[[JobRecord], Job | list[Problem]]
    taken_spares: Callable[[JobRecord], frozenset[str]]
    start_obstacles: Callable[[JobRecord, Node], tuple[str, ...]]
    assessments: AssessmentCache
    fabric_levels: FabricLevels
    scheduler: Scheduler
    poller: ProgressPoller
    pod_events: PodEvents
    links: LinkMonitor
    writer: JobWriter
    restorer: Callable[[], Restorer]
    budget: Callable[[], JobBudget]
    attempt_objects: Callable[[], JobAttemptObjects]
    turns: FairTurns
    start_turns: StartTurns
    metrics: Metrics
    node_lost_seconds: float
    start_reservation: float
    shares_nodes: bool
    drain_timeout: float


@dataclass(slots=True)
class Reconciler:
    """The reconcile loop of one job and its state between iterations."""

    uid: str
    deps: ReconcilerDeps
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    expectations: Expectations = field(default_factory=Expectations)
    create_error: CreateError | None = None
    write_outcome_unknown: bool = False
    """The last status write got no response and may or may not have been applied."""
    first_seen: float = field(default_factory=time.monotonic)
    last_write: float = -1e9
    decision_seconds: float = 0.0
    """CPU time of the last decision."""
    failure_seen: tuple[int, float] | None = None
    """Attempt in which a failed pod was seen, and when first; monotonic time."""
    refused_seen: FirstSeen[tuple[str, str]] = field(default_factory=FirstSeen)
    """UID of each refused pod with the time of the refusal, and when it was seen first."""
    missing_seen: FirstSeen[str] = field(default_factory=FirstSeen)
    """UID of each pod that lacks an object, and when it was seen first."""
    denied_event_at: float = -1e9
    """When an Event about a refused status write was created; monotonic time."""
    restorer: Restorer = field(init=False)
    budget: JobBudget = field(init=False)
    attempt_objects: JobAttemptObjects = field(init=False)
    deletion: SlowDeletion = field(init=False)
    create_backoff: Backoff = field(default_factory=Backoff)
    error_backoff: Backoff = field(default_factory=Backoff)
    finalizer_backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        self.restorer = self.deps.restorer()
        self.budget = self.deps.budget()
        self.attempt_objects = self.deps.attempt_objects()
        self.deletion = SlowDeletion(self.uid, self.deps.writer)

    async def run(self) -> None:
        """Reconcile until the job is gone or `stopping` is set."""
        while not self.stopping:
            self.wake.clear()
            try:
                delay = await self._timed_reconcile()
                self.error_backoff.reset()
            except LeaseLostError:
                # The process ends. But if the renewal was only late, it leads again.
                delay = 1.0
            except ConflictError:
                # Another client has written the job; the cache will receive the change soon.
                delay = 0.1
            except ApiError as error:
                self.error_backoff.extend(error.retry_after)
                delay = self.error_backoff.left
                log.warning(
                    "job=%s reconcile failed, next attempt in %.1f s: %s", self.uid, delay, error
                )
            except Exception:
                self.error_backoff.extend(5.0)
                delay = self.error_backoff.left
                log.exception("job=%s reconcile failed", self.uid)
            if delay is None:
                return
            await self._sleep(delay)

    async def _sleep(self, seconds: float) -> None:
        if self.error_backoff.left > 0:
            # Events must not shorten the back-off; only stopping may.
            deadline = time.monotonic() + self.error_backoff.left
            while not self.stopping and time.monotonic() < deadline:
                await asyncio.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
            return
        try:
            async with asyncio.timeout(min(seconds, RESYNC_SECONDS)):
                await self.wake.wait()
            pause = max(COALESCE_SECONDS, self.decision_seconds / EVENT_LOOP_SHARE)
            await asyncio.sleep(min(pause, MAX_COALESCE_SECONDS))
        except TimeoutError:
            pass

    async def _timed_reconcile(self) -> float | None:
        started = time.perf_counter()
        try:
            return await self._reconcile()
        finally:
            self.deps.metrics.reconcile.observe(time.perf_counter() - started)

    async def _reconcile(self) -> float | None:
        """Reconcile once. Return the seconds until the next time, or None at the end."""
        job = self.deps.jobs.get(self.uid)
        if self.write_outcome_unknown and job is not None:
            await self._resolve_unknown_write(job)
        if job is None:
            deps = self.deps
            for part in (deps.poller, deps.pod_events, deps.assessments, deps.links):
                part.forget(self.uid)
            self.deps.start_turns.end(self.uid)
            known = self.deps.jobs.last_version >= self.expectations.job_version
            pods = self.deps.pods.by_index("job", self.uid)
            return await self.deletion.follow_last_pods(pods) if known else 1.0
        self.deletion.gone_since = None
        async with self.deps.turns.take(job.namespace):
            decided = await self._decide()
        if isinstance(decided, float):
            return decided
        observed, actions = decided
        await self.budget.apply(observed, actions)  # no drain waits for a write, or for a turn
        if not self._is_its_turn(observed, actions):
            return RESYNC_SECONDS
        await self._apply(observed, actions)
        delay = self._seconds_to_next(actions)
        if observed.view.is_deleting:
            delay = min(delay, self.deletion.follow(observed))
        else:
            delay = min(delay, await self.restorer.restore(observed, actions, self.expectations))
            if not actions.changed:
                delay = min(delay, await self.attempt_objects.clean_up(observed))
        return min(delay, self.finalizer_backoff.left or delay)

    def _is_its_turn(self, observed: Observed, actions: Actions) -> bool:
        """Return whether the job may do this now: those that start need a turn, and are woken."""
        creates = actions.create_pods and self.create_backoff.left <= 0
        places = actions.assignment is not None and observed.view.placement is None  # or it moves
        if places or creates:
            taken = self.deps.start_turns.take(self.uid, observed.view.metadata["namespace"])
            if not taken and actions.assignment is not None:
                self.deps.scheduler.wait_for_turn(self.uid)
            return taken
        self.deps.start_turns.end(self.uid)
        return True

    async def _decide(self) -> tuple[Observed, Actions] | float:
        """Return the observation and what to do, or the seconds until the caches are current."""
        job = self.deps.jobs.get(self.uid)
        if job is None:  # it was deleted while its loop waited for a turn
            return 0.0
        assessment = await self.deps.assessments.assess(job, self.deps.checked(job))
        # The assessment may have taken a while: observe the current caches, all at one instant.
        current = self.deps.jobs.get(self.uid)
        if current is None:
            return 0.0
        pods = [pod for pod in self.deps.pods.by_index("job", self.uid) if pod.belongs_to(current)]
        if not self._cache_is_current(current, pods):
            return 0.5
        started = time.thread_time()
        observed = self._observe(current, pods, assessment)
        actions = decide(observed)
        self.decision_seconds = time.thread_time() - started
        return observed, actions

    def _cache_is_current(self, job: JobRecord, pods: list[PodRecord]) -> bool:
        alive = {pod.uid for pod in pods if not pod.deleting}
        if self.expectations.satisfied(job.version, self.deps.pods.last_version, alive):
            return True
        if self.expectations.timed_out:
            log.warning("job=%s caches do not show the last writes, listing again", self.uid)
            self.deps.jobs.relist()
            self.deps.pods.relist()
            self.expectations.clear()
        return False

    def _observe(
        self, job: JobRecord, pods: list[PodRecord], assessment: Assessment | None
    ) -> Observed:
        view, events = job.view, self.deps.pod_events.findings(self.uid)
        names = {*view.held_nodes, *(pod.node for pod in pods if pod.node)}
        nodes = {name: found for name in names if (found := self.deps.node(name)) is not None}
        checked, report = self.deps.checked(job), self.deps.poller.take_report(self.uid)
        levels = self.deps.fabric_levels.levels(view.fabric) if view.stored_placement else ()
        return Observed(
            now=datetime.now(UTC),
            raw=job.raw,
            checked=checked,
            pods=tuple(pods),
            nodes=nodes,
            children=self.restorer.children(job, self.expectations),
            gang_key=self.restorer.observe_key(job, pods),
            unready_seconds={name: self.deps.unready_seconds(name) for name in nodes},
            refused_seconds=self._refused_seconds(pods),
            missing_seconds=self.missing_seen.seconds(pods_without_object(pods, events)),
            seconds_since_failure=self._seconds_since_failure(view.attempt, pods),
            levels=levels,
            assessment=assessment,
            taken_spares=self.deps.taken_spares(job),
            start_obstacles=partial(self.deps.start_obstacles, job),
            budget=self.budget.own(job),
            covering_budget=self.budget.covering(job),
            decision=self.deps.scheduler.decision(self.uid),
            pod_events=events,
            create_error=self.create_error,
            attempt_objects=self.attempt_objects.own(job),
            report=report,
            links=self.deps.links.observe(job, checked, levels, report),
            seconds_known=time.monotonic() - self.first_seen,
            seconds_since_write=time.monotonic() - self.last_write,
            node_lost_seconds=self.deps.node_lost_seconds,
            start_reservation=self.deps.start_reservation,
            shares_nodes=self.deps.shares_nodes,
            drain_timeout=self.deps.drain_timeout,
        )

    def _refused_seconds(self, pods: Sequence[PodRecord]) -> dict[str, float]:
        refused = ((pod.uid, pod.refused_since) for pod in pods if pod.refused_since)
        return {uid: passed for (uid, _), passed in self.refused_seen.seconds(refused).items()}

    def _seconds_since_failure(self, attempt: int, pods: Sequence[PodRecord]) -> float:
        if not any(pod.attempt == attempt and pod.phase == "Failed" for pod in pods):
            return 0.0
        if self.failure_seen is None or self.failure_seen[0] != attempt:
            self.failure_seen = attempt, time.monotonic()
        return time.monotonic() - self.failure_seen[1]

    async def _apply(self, observed: Observed, actions: Actions) -> None:
        if actions.remove_finalizer and self.finalizer_backoff.left <= 0:
            if not await self.deps.writer.remove_finalizer(observed):
                self.finalizer_backoff.extend(FINALIZER_RETRY_SECONDS)
                self.wake.set()
            return  # the observation is older than the request
        if actions.changed:
            await self._write(observed, actions)
            return
        if actions.delete_pods:
            await self.deps.writer.delete_pods(actions.delete_pods, self.expectations)
        if actions.create_pods and self.create_backoff.left <= 0:
            error = await self.deps.writer.create_pods(
                observed, actions, self.expectations, self._job_remains
            )
            if error is None:
                self.create_error = None
                self.create_backoff.reset()
            else:
                since = getattr(observed.current_create_error, "since", None) or observed.now
                self.create_error = replace(error, since=since, attempt=observed.view.attempt)
                self.create_backoff.extend()
                self.wake.set()
        if actions.delete_job:
            await self.deps.writer.delete_job(observed)

    def _job_remains(self) -> bool:
        job = self.deps.jobs.get(self.uid)
        return job is not None and not job.view.is_deleting

    async def _write(self, observed: Observed, actions: Actions) -> None:
        if actions.assignment is not None:
            if not self.deps.scheduler.reserve(self.uid, actions.assignment):
                self.wake.set()  # it was withdrawn meanwhile
                return
        else:
            self.deps.scheduler.claim(self.uid, added_nodes(observed, actions.status))
        try:
            await self.deps.writer.write_status(observed, actions, self.expectations)
        except BaseException as error:
            # Without a definite rejection the write may have been applied: read the job first.
            self.write_outcome_unknown = not (isinstance(error, ApiError) and error.not_applied)
            if not self.write_outcome_unknown:
                self.deps.scheduler.release(self.uid)
            if isinstance(error, ApiError) and error.denied:
                await self._report_denied_write(observed, error)
            raise
        self.last_write = time.monotonic()
        record_transitions(observed, actions.status, self.deps.metrics)

    async def _report_denied_write(self, observed: Observed, error: ApiError) -> None:
        """Count a status write that was refused, and create an Event now and then."""
        self.deps.metrics.denied_writes.inc()
        if time.monotonic() >= self.denied_event_at + DENIED_EVENT_SECONDS:
            self.denied_event_at = time.monotonic()
            await self.deps.writer.report_denied_write(observed, error)

    async def _resolve_unknown_write(self, job: JobRecord) -> None:
        """Read the job after a write without response, before the next decision."""
        try:
            found = await self.deps.cluster.get(JOBS, job.name, job.namespace)
            self.expectations.expect_job_version(found["metadata"]["resourceVersion"])
        except NotFoundError:
            pass
        self.write_outcome_unknown = False
        self.deps.scheduler.release(self.uid)

    def _seconds_to_next(self, actions: Actions) -> float:
        delays = [RESYNC_SECONDS * random.uniform(0.8, 1.0)]
        if actions.reconcile_after is not None:
            delays.append(actions.reconcile_after)
        if actions.create_pods and self.create_backoff.left > 0:
            delays.append(self.create_backoff.left)
        if actions.create_budget or actions.delete_budget is not None:
            delays.append(self.budget.seconds_to_retry)
        if actions.explain_pods:
            delays.append(self.deps.pod_events.look_up(self.uid, actions.explain_pods))
        if actions.poll_pod is not None:
            delays.append(self.deps.poller.poll(actions.poll_pod))
        return min(delays)
