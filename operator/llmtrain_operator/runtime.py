"""The parts put together: copies of the cluster, the scheduler, and a loop for each job."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections import Counter as Tally
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.check import Job, Problem, check
from llmtrain_operator.config import Config
from llmtrain_operator.kube.budget import WriteBudget
from llmtrain_operator.kube.client import KubeCluster
from llmtrain_operator.kube.informer import Informer, Selection
from llmtrain_operator.kube.resources import FABRICS, JOBS, NODES, PODS, PRIORITY_CLASSES
from llmtrain_operator.lifecycle.apply import Hand
from llmtrain_operator.lifecycle.loop import JobLoop, Surroundings
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.progress_reader import ProgressReader
from llmtrain_operator.records import (
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
from llmtrain_operator.scheduler import Candidate, Scheduler, World, candidate_of
from llmtrain_operator.usage import usage
from llmtrain_operator.verdicts import Offer

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


def is_ours(spec: Mapping[str, Any]) -> bool:
    """Whether this operator is in charge of a job; it writes nothing about any other."""
    return spec.get("managedBy") in (None, labels.CONTROLLER_NAME)


class Runtime:
    """Everything that lives as long as this process leads."""

    def __init__(
        self, config: Config, cluster: KubeCluster, metrics: Metrics, broken: Callable[[str], None]
    ):
        """`broken` is told of a part that ended unasked; it should end the process."""
        self._broken = broken
        self.config = config
        self.cluster = cluster
        self.metrics = metrics
        self._loops: dict[str, JobLoop] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._checked: dict[str, tuple[int, Job | list[Problem]]] = {}
        self._make_informers()
        self.scheduler = Scheduler(
            self._candidates, self._world, self._stored, self.wake, metrics.placement.observe
        )
        self._reader = ProgressReader(cluster, config.progress_seconds, self.wake)
        self._around = Surroundings(
            cluster=cluster, jobs=self.jobs, pods=self.pods, node=self._node,
            checked=self._check, scheduler=self.scheduler, reader=self._reader,
            hand=Hand(cluster, WriteBudget(config.writes_per_second)), metrics=metrics,
            node_lost_seconds=config.node_lost_seconds,
        )  # fmt: skip
        self._show_gauges()

    def _make_informers(self) -> None:
        cluster, metrics, namespace = self.cluster, self.metrics, self.config.namespace
        self.jobs = Informer[JobRecord](
            "jobs", cluster, Selection(JOBS, namespace), job_record,
            on_change=self._job_changed, observer=metrics,
        )  # fmt: skip
        self.pods = Informer[PodRecord](
            "pods", cluster, Selection(PODS, namespace, labels=labels.JOB_UID), pod_record,
            indexes={"job": lambda pod: pod.job, "node": lambda pod: pod.node or None},
            on_change=self._pod_changed, observer=metrics,
        )  # fmt: skip
        self.nodes = Informer[NodeRecord](
            "nodes", cluster, Selection(NODES), node_record,
            indexes={"name": lambda record: record.node.name},
            on_change=self._node_changed, observer=metrics,
        )  # fmt: skip
        # With one namespace only, the pods that others of us look after are strangers as well.
        others = NOT_OURS if namespace is None else ""
        self.foreign = Informer[ForeignPod](
            "foreign-pods", cluster, Selection(PODS, None, others, LIVE_AND_BOUND),
            lambda raw: None if is_followed(raw, namespace) else foreign_pod(raw),
            on_change=self._poke, observer=metrics,
        )  # fmt: skip
        self.fabrics = Informer[FabricRecord](
            "fabrics", cluster, Selection(FABRICS), fabric_record,
            on_change=self._poke, observer=metrics,
        )  # fmt: skip
        self.priorities = Informer[PriorityRecord](
            "priority-classes", cluster, Selection(PRIORITY_CLASSES), priority_record,
            on_change=self._poke, observer=metrics,
        )  # fmt: skip
        self.informers: tuple[Informer[Any], ...] = (
            self.jobs, self.pods, self.nodes, self.fabrics, self.priorities,
            *((self.foreign,) if self.config.count_foreign_pods else ()),
        )  # fmt: skip

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
        loop = self._loops[uid] = JobLoop(uid, self._around)
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
        self.wake(record.uid)
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
        for pod in self.pods.by("node", record.node.name):
            self.wake(pod.job)
        self.scheduler.poke()

    def _poke(self, _old: object, _new: object) -> None:
        self.scheduler.poke()

    def _node(self, name: str) -> NodeRecord | None:
        return next(iter(self.nodes.by("name", name)), None)

    def _check(self, record: JobRecord) -> Job | list[Problem]:
        """Check a job; once per generation, because everybody asks and the answer is the same."""
        generation = int(record.raw["metadata"].get("generation") or 0)
        known = self._checked.get(record.uid)
        if known is None or known[0] != generation:
            known = (generation, check(record.name, record.raw.get("spec") or {}))
            self._checked[record.uid] = known
        return known[1]

    def _candidates(self) -> list[Candidate]:
        priorities = {item.name: item for item in self.priorities.values()}
        found = []
        for record in self.jobs.values():
            if is_ours(record.raw.get("spec") or {}):
                candidate = candidate_of(record, self._check(record), priorities)
                if candidate is not None:
                    found.append(candidate)
        return found

    def _world(self, offers: Mapping[str, Offer]) -> World:
        taken = usage(self.jobs.values(), self.pods.values(), self.foreign.values(), offers)
        return World(
            nodes=tuple(record.node for record in self.nodes.values()),
            usage=tuple(taken),
            fabrics={record.name: record for record in self.fabrics.values()},
        )

    def _stored(self, uid: str) -> Mapping[str, Any] | None:
        record = self.jobs.get(uid)
        return None if record is None else record.raw.get("status") or {}

    def _show_gauges(self) -> None:
        def phases() -> Mapping[str, float]:
            return Tally(
                (record.raw.get("status") or {}).get("phase") or "Pending"
                for record in self.jobs.values()
            )

        def staleness() -> Mapping[str, float]:
            return {informer.name: informer.staleness for informer in self.informers}

        shown: tuple[tuple[str, str, str, Callable[[], Mapping[str, float]]], ...] = (
            ("llmtrain_operator_jobs", "Jobs by phase.", "phase", phases),
            (
                "llmtrain_operator_queue_depth", "Jobs that wait for their place.", "",
                lambda: {"": float(self.scheduler.waiting)},
            ),
            (
                "llmtrain_operator_informer_staleness_seconds",
                "Seconds since an informer last heard from the server.", "informer", staleness,
            ),
        )  # fmt: skip
        for name, text, label, values in shown:
            self.metrics.show(name, text, label, values)
