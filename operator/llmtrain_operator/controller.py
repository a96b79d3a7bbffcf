"""The parts put together: copies of the cluster, the scheduler, and a loop for each job."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter as Tally
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.placement import Request
from llmtrain_core.queueing.cycle import SOON_SECONDS
from llmtrain_core.queueing.quarantine import quarantine
from llmtrain_core.topology.levels import Levels
from llmtrain_core.validation.check import Job, Problem, check
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import (
    FabricRecord,
    ForeignPod,
    JobRecord,
    NodeRecord,
    PodRecord,
    PriorityRecord,
    fabric_record,
    foreign_pod,
    is_followed,
    job_record,
    node_record,
    pod_record,
    priority_record,
)
from llmtrain_operator.config import Config
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.informer import Informer, Selection
from llmtrain_operator.kube.rate_limit import WriteRateLimiter
from llmtrain_operator.kube.resources import FABRICS, JOBS, NODES, PODS, PRIORITY_CLASSES
from llmtrain_operator.manifests.gang_scheduling import GangScheduling
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.planning.assessments import Assessor
from llmtrain_operator.progress.poller import ProgressReader
from llmtrain_operator.reconcile.reconciler import Reconciler, ReconcilerDeps
from llmtrain_operator.reconcile.writer import JobWriter
from llmtrain_operator.scheduler.cycle import World
from llmtrain_operator.scheduler.decisions import Offer
from llmtrain_operator.scheduler.fabric_levels import Maps
from llmtrain_operator.scheduler.jobs import Candidate, blames, candidate_of, tenant_of
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.running_jobs import Ledger, Sitting, sitting_of
from llmtrain_operator.scheduler.usage import leaving, succeeded, usage

log = logging.getLogger(__name__)

NOT_OURS = f"!{labels.JOB_UID}"
LIVE_AND_BOUND = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"


def calm_collector() -> None:
    """Let the garbage collector look less often.

    Parsed JSON is many short-lived objects and no cycles; by default every few hundred of them set
    off a search through everything that the process keeps.
    """
    gc.set_threshold(50_000, 20, 50)


def guard(task: asyncio.Task[Any], broken: Callable[[str], None]) -> None:
    """Tell when a task ends that should run for ever; being cancelled is no surprise."""

    def ended(_: object) -> None:
        if not task.cancelled():
            error = task.exception()
            log.error("%s ended: %s", task.get_name(), error or "no reason", exc_info=error)
            broken(task.get_name())

    task.add_done_callback(ended)


def matters(old: JobView, new: JobView) -> bool:
    """Whether a change of a job can change what the queue decides; figures and words cannot."""

    def essence(job: JobView) -> tuple[object, ...]:
        placement = job.stored_placement or {}
        return (
            job.generation,
            job.annotations,
            job.is_deleting,
            job.attempt,
            job.phase,
            job.failures,
            job.move and job.last_checkpoint,
            placement.get("attempt"),
            placement.get("blocks"),
        )

    return essence(old) != essence(new)


class Runtime:
    """Everything that lives as long as this process leads."""

    def __init__(
        self, config: Config, cluster: KubeClient, metrics: Metrics, broken: Callable[[str], None]
    ):
        """`broken` is told of a part that ended unasked; it should end the process."""
        self._broken = broken
        self.config = config
        self.cluster = cluster
        self.metrics = metrics
        self._loops: dict[str, Reconciler] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._checked: dict[str, tuple[int, Job | list[Problem]]] = {}
        self._requests: dict[str, tuple[Job, Request]] = {}
        self._ledger = Ledger()
        self._make_informers()
        self.scheduler = Scheduler(
            self._candidates,
            self._world,
            self._stored,
            self.wake,
            metrics.placement.observe,
            taken=lambda offer: metrics.backfilled.inc() if offer.backfilled else None,
        )
        self.assessor = Assessor(
            lambda: (record.node for record in self.nodes.values()),
            self._node,
            self._fabric_levels,
            self.wake,
        )
        self._reader = ProgressReader(cluster, config.progress_seconds, self.wake)
        self._around = ReconcilerDeps(
            cluster=cluster,
            jobs=self.jobs,
            pods=self.pods,
            node=self._node,
            checked=self._check,
            assessor=self.assessor,
            scheduler=self.scheduler,
            maps=Maps(lambda: (record.node for record in self.nodes.values()), self._fabric),
            reader=self._reader,
            writer=JobWriter(
                cluster,
                WriteRateLimiter(config.writes_per_second),
                GangScheduling(config.pod_groups, config.kueue),
            ),
            metrics=metrics,
            node_lost_seconds=config.node_lost_seconds,
        )
        self._show_gauges()

    def _make_informers(self) -> None:
        cluster, metrics, namespace = self.cluster, self.metrics, self.config.namespace
        self.jobs = Informer[JobRecord](
            "jobs",
            cluster,
            Selection(JOBS, namespace),
            job_record,
            on_change=self._job_changed,
            observer=metrics,
        )
        self.pods = Informer[PodRecord](
            "pods",
            cluster,
            Selection(PODS, namespace, labels=labels.JOB_UID),
            pod_record,
            indexes={"job": lambda pod: pod.job, "node": lambda pod: pod.node or None},
            on_change=self._pod_changed,
            observer=metrics,
        )
        self.nodes = Informer[NodeRecord](
            "nodes",
            cluster,
            Selection(NODES),
            node_record,
            indexes={"name": lambda record: record.node.name},
            on_change=self._node_changed,
            observer=metrics,
        )
        # With one namespace only, the pods that others of us look after are strangers as well.
        others = NOT_OURS if namespace is None else ""
        self.foreign = Informer[ForeignPod](
            "foreign-pods",
            cluster,
            Selection(PODS, None, others, LIVE_AND_BOUND),
            lambda raw: None if is_followed(raw, namespace) else foreign_pod(raw),
            on_change=self._poke,
            observer=metrics,
        )
        self.fabrics = Informer[FabricRecord](
            "fabrics",
            cluster,
            Selection(FABRICS),
            fabric_record,
            on_change=self._poke,
            observer=metrics,
        )
        self.priorities = Informer[PriorityRecord](
            "priority-classes",
            cluster,
            Selection(PRIORITY_CLASSES),
            priority_record,
            on_change=self._poke,
            observer=metrics,
        )
        self.informers: tuple[Informer[Any], ...] = (
            self.jobs,
            self.pods,
            self.nodes,
            self.fabrics,
            self.priorities,
            *((self.foreign,) if self.config.count_foreign_pods else ()),
        )

    async def start(self) -> None:
        """Fill the copies, then let the scheduler decide: never on half a picture."""
        for informer in self.informers:
            self._spawn(informer.run(), f"informer {informer.name}")
        for informer in self.informers:
            await informer.synced.wait()
        self._spawn(self.scheduler.run(), "scheduler")
        self.scheduler.poke()
        log.info("synced jobs=%d pods=%d nodes=%d", len(self.jobs), len(self.pods), len(self.nodes))

    async def stop(self) -> None:
        """End all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        guard(task, self._broken)
        self._tasks.append(task)

    @property
    def ready(self) -> bool:
        """Whether all copies are complete and everything that should run does."""
        return (
            bool(self._tasks)
            and all(informer.synced.is_set() for informer in self.informers)
            and self.alive
        )

    @property
    def alive(self) -> bool:
        """Whether no part has ended."""
        return not any(task.done() for task in self._tasks)

    @contextlib.contextmanager
    def loop(self, uid: str) -> Any:
        """Give a job its loop, as long as the context lasts."""
        loop = self._loops[uid] = Reconciler(uid, self._around)
        try:
            yield loop
        finally:
            if self._loops.get(uid) is loop:
                del self._loops[uid]

    def wake(self, uid: str) -> None:
        """Let a job's loop take a turn."""
        loop = self._loops.get(uid)
        if loop is not None:
            loop.wake.set()

    def _job_changed(self, old: JobRecord | None, new: JobRecord | None) -> None:
        record = new or old
        assert record is not None
        if new is None:
            self._checked.pop(record.uid, None)
            self._requests.pop(record.uid, None)
            self.assessor.forget(record.uid)
        self.wake(record.uid)
        if old is None or new is None or matters(old.view, new.view):
            self.scheduler.poke()

    def _pod_changed(self, old: PodRecord | None, new: PodRecord | None) -> None:
        for record in (old, new):
            if record is not None:
                self.wake(record.job)
        if old is None or new is None or old.ended != new.ended or old.node != new.node:
            self.scheduler.poke()

    def _node_changed(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        record = new or old
        assert record is not None
        for pod in self.pods.by_index("node", record.node.name):
            self.wake(pod.job)
        self.assessor.node_changed(old, new)
        if old is None or new is None or old.node != new.node:
            self.scheduler.poke()

    def _poke(self, _old: object, _new: object) -> None:
        self.scheduler.poke()

    def _node(self, name: str) -> NodeRecord | None:
        return next(iter(self.nodes.by_index("name", name)), None)

    def _fabric_levels(self, name: str | None) -> Levels:
        """Levels of the Fabric in force; none without one, since labels tell no uplink's rate."""
        found = self._fabric(name or FABRIC_NAME)
        return found.levels if found else ()

    def _fabric(self, name: str) -> FabricRecord | None:
        return next((fabric for fabric in self.fabrics.values() if fabric.name == name), None)

    def _check(self, record: JobRecord) -> Job | list[Problem]:
        """Check a job; once per generation, because everybody asks and the answer is the same."""
        generation = record.view.generation
        known = self._checked.get(record.uid)
        if known is None or known[0] != generation:
            known = (generation, check(record.name, record.view.spec))
            self._checked[record.uid] = known
        return known[1]

    def _priorities(self) -> dict[str, PriorityRecord]:
        return {item.name: item for item in self.priorities.values()}

    def _candidates(self) -> list[Candidate]:
        priorities, now = self._priorities(), time.time()
        found = []
        for record in self._ours():
            make = partial(self._request, record.uid)
            candidate = candidate_of(record, self._check(record), priorities, now, make)
            if candidate is not None and not _turned_down(record):
                found.append(self._on_large_gpus(record, candidate))
        return found

    def _on_large_gpus(self, record: JobRecord, candidate: Candidate) -> Candidate:
        """Keep a job off nodes whose GPUs are too small for it."""
        small = self.assessor.too_small(record, candidate.job)
        if not small:
            return candidate
        request = candidate.request
        return replace(candidate, request=replace(request, too_small=small))

    def _ours(self) -> Iterator[JobRecord]:
        return (job for job in self.jobs.values() if job.view.is_ours)

    def _request(self, uid: str, job: Job) -> Request:
        """Build a job's request once: it asks the plan what its groups send."""
        known = self._requests.get(uid)
        if known is None or known[0] is not job:
            known = self._requests[uid] = (job, Request.of(job))
        return known[1]

    def _world(self, offers: Mapping[str, Offer]) -> World:
        priorities, now = self._priorities(), time.time()
        taken = usage(self.jobs.values(), self.pods.values(), self.foreign.values(), offers)
        holding = ((job, tenant_of(job, self._check(job), priorities, now)) for job in self._ours())
        done = succeeded({job.uid: job for job in self.jobs.values()}, self.pods.values())
        tenants = [
            (job, tenant) for job, tenant in holding if tenant is not None and job.uid not in done
        ]
        going = leaving(self.jobs.values(), self.pods.values(), now + SOON_SECONDS)
        return World(
            nodes=tuple(record.node for record in self.nodes.values()),
            usage=tuple(taken),
            fabrics={record.name: record for record in self.fabrics.values()},
            tenants=(*(tenant for _, tenant in tenants), *going),
            attempts={tenant.uid: job.view.attempt for job, tenant in tenants},
            quarantine=quarantine(blames(self._ours()), now),
            now=now,
            sitting=tuple(self._sitting(priorities, now)),
            ledger=self._ledger,
        )

    def _sitting(self, priorities: Mapping[str, PriorityRecord], now: float) -> Iterator[Sitting]:
        for record in self._ours():
            make = partial(self._request, record.uid)
            found = sitting_of(record, self._check(record), priorities, now, make)
            if found is not None:
                yield found

    def _stored(self, uid: str) -> JobView | None:
        record = self.jobs.get(uid)
        return None if record is None else record.view

    def _show_gauges(self) -> None:
        def phases() -> Mapping[str, float]:
            return Tally(record.view.phase for record in self.jobs.values())

        def staleness() -> Mapping[str, float]:
            return {informer.name: informer.staleness for informer in self.informers}

        shown: tuple[tuple[str, str, str, Callable[[], Mapping[str, float]]], ...] = (
            ("llmtrain_operator_jobs", "Jobs by phase.", "phase", phases),
            (
                "llmtrain_operator_queue_depth",
                "Jobs that wait for their place.",
                "",
                lambda: {"": float(self.scheduler.waiting)},
            ),
            (
                "llmtrain_operator_quarantined_nodes",
                "Nodes that are out after failures, for every job.",
                "",
                lambda: {"": float(len(quarantine(blames(self._ours()), time.time()).until))},
            ),
            (
                "llmtrain_operator_informer_staleness_seconds",
                "Seconds since an informer last heard from the server.",
                "informer",
                staleness,
            ),
        )
        for name, text, label, values in shown:
            self.metrics.show(name, text, label, values)


def _turned_down(record: JobRecord) -> bool:
    """Whether the job's loop does not accept it: then it wants no place until it is."""
    accepted = record.view.condition(ConditionType.ACCEPTED)
    return accepted is not None and accepted["status"] == "False"
