"""Wire the parts together: informers, the scheduler, and one reconcile loop per job."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from llmtrain_core.node_health import HealthTable, changed_rows
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.queueing import Assignment, Unschedulable
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.attempt_record import AttemptRecord
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.child_record import ChildRecord
from llmtrain_operator.cache.disruption_budgets import BudgetRecord
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.job_feed import JobFeed
from llmtrain_operator.cache.node_devices import NodeDevices
from llmtrain_operator.cache.node_health import NodeHealth
from llmtrain_operator.cache.records import ForeignPod, JobRecord, NodeRecord, PodRecord
from llmtrain_operator.config import Config
from llmtrain_operator.kube.api import Object
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.namespace_limits import (
    STARTING_JOBS,
    FairTurns,
    StartTurns,
    WriteLimiter,
)
from llmtrain_operator.kube.paging import list_pages
from llmtrain_operator.kube.resources import RESOURCE_QUOTAS
from llmtrain_operator.manifests.gang_scheduling import GangScheduling
from llmtrain_operator.metrics.collector import ClusterCollector
from llmtrain_operator.metrics.gpu_seconds import gpu_uses
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.planning.assessment_cache import AssessmentCache
from llmtrain_operator.progress.link_monitor import LinkMonitor
from llmtrain_operator.progress.pod_events import PodEvents
from llmtrain_operator.progress.poller import ProgressPoller
from llmtrain_operator.reconcile.attempt_objects import JobAttemptObjects
from llmtrain_operator.reconcile.disruption_budget import JobBudget
from llmtrain_operator.reconcile.loops import ReconcileLoops
from llmtrain_operator.reconcile.reconciler import Reconciler, ReconcilerDeps
from llmtrain_operator.reconcile.restoration import Restorer
from llmtrain_operator.reconcile.writer import JobWriter
from llmtrain_operator.scheduler.admission import Admission
from llmtrain_operator.scheduler.fabric_levels import FabricLevels
from llmtrain_operator.scheduler.jobs import affects_scheduling
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.shared_devices import SharedDevices
from llmtrain_operator.scheduler.snapshot import ClusterReader

log = logging.getLogger(__name__)

FOREIGN_POD_SECONDS = 2.0
"""Delay of a cycle after a foreign pod without devices released its resources."""
CONCURRENT_DECISIONS = 4
"""Reconciles that compute at a time. Each may wait for a plan, which a thread computes."""


def tune_gc() -> None:
    """Make the garbage collector run less often.

    Parsed JSON is many short-lived objects without cycles. By default every few hundred of them
    start a collection that traverses everything the process keeps.
    """
    gc.set_threshold(50_000, 20, 50)


def watch_task(task: asyncio.Task[Any], on_end: Callable[[str], None]) -> None:
    """Call `on_end` with the name of a task that ends without being cancelled."""

    def ended(_: object) -> None:
        if not task.cancelled():
            error = task.exception()
            log.error("%s ended: %s", task.get_name(), error or "no reason", exc_info=error)
            on_end(task.get_name())

    task.add_done_callback(ended)


class Controller:
    """Everything that lives as long as this process leads."""

    def __init__(
        self, config: Config, cluster: KubeClient, metrics: Metrics, on_end: Callable[[str], None]
    ):
        """`on_end` gets the name of a task that ended unexpectedly. It should end the process."""
        self.config = config
        self.cluster = cluster
        self.metrics = metrics
        self._on_end = on_end
        self._loops = ReconcileLoops(lambda uid: Reconciler(uid, self._deps))
        self._tasks: list[asyncio.Task[None]] = []
        self._checked = _checked_jobs(config, lambda: self._assessments.only_gpu())
        self.informers = Informers(
            cluster,
            config.namespace,
            config.count_foreign_pods,
            self._change_handlers(),
            metrics,
            _node_health(config),
            NodeDevices(self._checked.demanded_devices),
            device_claims=config.device_claims,
            compute_domains=config.compute_domains,
            pod_groups=config.pod_groups,
        )
        self.feed = JobFeed(self.informers.jobs.values)
        self._assessments = AssessmentCache(
            self.informers.all_nodes, self.informers.node, self.informers.fabric, self.wake
        )
        too_small = self._assessments.too_small
        self._links = LinkMonitor(config.progress_seconds, self.wake)
        self._reader = ClusterReader(
            self.informers, self._checked, too_small, config, self._links.slow_links
        )
        self._limiter = WriteLimiter(config.writes_per_second)
        self._writer = JobWriter(
            cluster,
            self._limiter,
            GangScheduling(config.pod_groups, config.kueue),
            config.metrics_peers,
            fixed_user=config.fixed_user,
            has_priority_class=self.informers.has_priority_class,
        )
        self.scheduler = self._make_scheduler()
        self._poller = ProgressPoller(
            cluster if config.progress_proxy else None, config.progress_seconds, self.wake
        )
        self._deps = self._reconciler_deps()
        metrics.registry.register(self._make_collector())

    def _change_handlers(self) -> ChangeHandlers:
        return ChangeHandlers(
            self._job_changed,
            self._pod_changed,
            self._node_changed,
            self._foreign_pod_changed,
            self._child_changed,
            self._budget_changed,
            self._trigger,
            self._attempt_object_changed,
        )

    def _make_collector(self) -> ClusterCollector:
        return ClusterCollector(
            self.informers,
            self._deps.fabric_levels.levels,
            self._reader.quarantine,
            lambda: self.scheduler.pending_count,
            self.config.start_reservation,
            self._links.domain_ratios,
        )

    def _make_scheduler(self) -> Scheduler:
        admission = Admission(
            self._try_pod,
            self._list_quotas,
            lambda namespace: self._reader.promised(namespace, self.scheduler.assignments()),
            self._reader.generation,
            lambda: self.scheduler.trigger(),
        )
        shared = SharedDevices(
            self.informers,
            lambda: self._reader.shared_holders(self.scheduler.assignments()),
            lambda: self.scheduler.trigger(),
        )
        return Scheduler(
            lambda: admission.admit(shared.admit(self._reader.pending_jobs())),
            self._reader.cluster_state,
            self._reader.job,
            self.wake,
            self.metrics.placement.observe,
            self._count_accepted,
            lambda found, queue: shared.confirm(admission.confirm(found, queue), queue),
            self._reader.leaving_jobs,
            self.metrics.lapsed.inc,
        )

    def _reconciler_deps(self) -> ReconcilerDeps:
        config, informers = self.config, self.informers
        return ReconcilerDeps(
            cluster=self.cluster,
            jobs=informers.jobs,
            pods=informers.pods,
            node=informers.node,
            unready_seconds=informers.unready_nodes.seconds,
            checked=self._checked.get,
            taken_spares=lambda job: self._reader.taken_spares(job, self.scheduler.assignments()),
            start_obstacles=self._reader.start_obstacles,
            assessments=self._assessments,
            scheduler=self.scheduler,
            fabric_levels=FabricLevels(informers.all_nodes, informers.fabric),
            poller=self._poller,
            pod_events=PodEvents(self.cluster, self.wake),
            links=self._links,
            writer=self._writer,
            restorer=self._make_restorer,
            budget=lambda: JobBudget(self.cluster, self._limiter, informers.budgets),
            attempt_objects=lambda: JobAttemptObjects(
                self.cluster, self._limiter, informers.attempt_objects
            ),
            turns=FairTurns(CONCURRENT_DECISIONS),
            start_turns=StartTurns(STARTING_JOBS, self.wake),
            metrics=self.metrics,
            node_lost_seconds=config.node_lost_seconds,
            start_reservation=config.start_reservation,
            shares_nodes=config.namespace is not None,
            drain_timeout=config.drain_timeout,
        )

    def _make_restorer(self) -> Restorer:
        children, resources = self.informers.children, self._writer.resources
        return Restorer(self.cluster, self._limiter, children, resources)

    async def start(self) -> None:
        """Fill the copies of all informers, then start the scheduler."""
        for informer in self.informers:
            self._start_task(informer.run(), f"informer {informer.name}")
        for informer in self.informers:
            await informer.synced.wait()
        self._start_task(self.scheduler.run(), "scheduler")
        self.scheduler.trigger()
        jobs, pods, nodes = self.informers.jobs, self.informers.pods, self.informers.nodes
        left = sum(jobs.get(pod.job) is None for pod in pods.values())
        text = "synced jobs=%d pods=%d nodes=%d, pods without a job: %d"
        log.info(text, len(jobs), len(pods), len(nodes), left)

    async def stop(self) -> None:
        """End the reconcile loops, then cancel all tasks."""
        await self._loops.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._deps.pod_events.close()
        self._links.close()
        await self._poller.close()

    def _start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        watch_task(task, self._on_end)
        self._tasks.append(task)

    @property
    def ready(self) -> bool:
        """Whether all copies are complete, all tasks run, and changes of jobs are handled."""
        parts = self.informers.synced, self.feed.followed, self.alive
        return bool(self._tasks) and all(parts)

    @property
    def alive(self) -> bool:
        """Whether no task has ended."""
        return not any(task.done() for task in self._tasks)

    def reconcile(self, uid: str) -> None:
        """Start the reconcile loop of a job that exists, unless it runs."""
        if self.informers.jobs.get(uid) is not None:
            self._loops.start(uid)

    def wake(self, uid: str) -> None:
        """Start a reconcile of a job whose loop runs."""
        self._loops.wake(uid)

    def _job_changed(self, old: JobRecord | None, new: JobRecord | None) -> None:
        record = new or old
        assert record is not None
        self.feed.changed(old, new)
        if new is None:
            self._checked.forget(record.uid)
            self._assessments.forget(record.uid)
        self._count_gpu_seconds(record.uid, new)
        self.wake(record.uid)
        if old is None or new is None or affects_scheduling(old.view, new.view):
            self.scheduler.trigger()

    def _count_gpu_seconds(self, uid: str, job: JobRecord | None) -> None:
        gpus = {} if job is None else gpu_uses(job.view, partial(self._checked.get, job))
        self.metrics.gpu_seconds.update(uid, gpus)

    def _pod_changed(self, old: PodRecord | None, new: PodRecord | None) -> None:
        for record in (old, new):
            if record is not None:
                self.wake(record.job)
        if old is None or new is None or _holds(old) != _holds(new):
            self.scheduler.trigger()

    def _node_changed(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        record = new or old
        assert record is not None
        for pod in self.informers.pods.by_index("node", record.node.name):
            self.wake(pod.job)
        self._assessments.node_changed(old, new)
        if old is None or new is None or old.node != new.node:
            self.scheduler.trigger()

    async def _try_pod(self, uid: str) -> Object | Unschedulable | None:
        """Try a pod of a waiting job. Return None if the job is gone or invalid."""
        record = self.informers.jobs.get(uid)
        checked = None if record is None else self._checked.get(record)
        if record is None or not isinstance(checked, Job):
            return None
        return await self._writer.try_pod(record, checked)

    async def _list_quotas(self, namespace: str) -> list[Object]:
        pages = list_pages(self.cluster, RESOURCE_QUOTAS, namespace)
        return [item.object async for page in pages for item in page.items]

    def _foreign_pod_changed(self, old: ForeignPod | None, new: ForeignPod | None) -> None:
        """Start a cycle if a pod released resources: at once for devices, else a little later.

        A pod that takes resources helps no job, and pods without devices come and go all the time.
        But it may be why kube-scheduler has refused a pod, which the operator may see before it.
        """
        if new is not None:
            for pod in self.informers.pods.by_index("node", new.node):
                if pod.refused_since and not pod.bound:
                    self.wake(pod.job)
        if any(pod is not None and pod.has_devices for pod in (old, new)):
            self.scheduler.trigger()
        elif old is not None:
            self.scheduler.trigger_later(FOREIGN_POD_SECONDS)

    def _child_changed(self, old: ChildRecord | None, new: ChildRecord | None) -> None:
        """Look at the job of an object that was deleted or edited. A new one needs nothing.

        Without the job, another one of its name may have waited for the deletion.
        """
        job = None if old is None else self.informers.jobs.get(old.owner)
        if old is not None and job is not None and job.namespace == old.namespace:
            self.wake(job.uid)
        elif old is not None and new is None:
            self.scheduler.trigger()

    def _budget_changed(self, old: BudgetRecord | None, new: BudgetRecord | None) -> None:
        """Reconcile the jobs whose pods a budget may select. Its status is not in the record."""
        found = new or old
        assert found is not None
        if old == new:
            return
        owner = self.informers.jobs.get(found.owner)
        if new is None and owner is None and found.owner:
            self.scheduler.trigger()
        for job in [owner] if owner else self.informers.jobs.values():
            if job.namespace == found.namespace:
                self.wake(job.uid)

    def _attempt_object_changed(self, old: AttemptRecord | None, new: AttemptRecord | None) -> None:
        found = new or old
        assert found is not None
        self.wake(found.owner)

    def _trigger(self, _old: object, _new: object) -> None:
        self.scheduler.trigger()

    def _count_accepted(self, assignment: Assignment) -> None:
        if assignment.backfilled:
            self.metrics.backfilled.inc()


def _checked_jobs(config: Config, gpu: Callable[[], Accelerator | None]) -> CheckedJobs:
    """Return the check of jobs with the settings of the operator."""
    return CheckedJobs(
        config.domain_tolerance,
        gpu,
        allow_privileged_pods=config.allow_privileged_pods,
        device_claims=config.device_claims,
        compute_domains=config.compute_domains,
        pod_groups=config.pod_groups,
    )


def _node_health(config: Config) -> NodeHealth:
    table = HealthTable(changed_rows(config.node_health))
    return NodeHealth(table, config.max_excluded_nodes_percent)


def _holds(pod: PodRecord) -> tuple[str, bool, bool]:
    """Return what decides where a pod holds resources."""
    return pod.node, pod.bound, pod.ended
