"""Jobs on nodes that are drained one after the other, on a simulated clock.

The decisions are those of the operator: the checklist of each job, and the cycle of the queue. The
nodes, the pods and the trainer are simulated, event by event.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.node_health import CORDONED
from llmtrain_core.placement import Request, start_obstacles
from llmtrain_core.queueing import Assignment, ClusterState, PendingJob, RunningJob
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.disruption_budgets import BudgetRecord, LabelSelector
from llmtrain_operator.cache.job import JobView, format_time
from llmtrain_operator.cache.records import JobRecord, NodeRecord, PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.reconcile.checklist import decide as decide_job
from llmtrain_operator.scheduler.cycle import find_place_elsewhere
from llmtrain_operator.scheduler.fabric_snapshots import FabricSnapshots
from llmtrain_operator.scheduler.held_nodes import held_by_jobs
from llmtrain_operator.scheduler.jobs import pending_job, running_job
from llmtrain_operator.scheduler.usage import usage, used_by_others
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import NOW, pod
from tests.support.operator_harness.scheduling import GPU, decide, nodes

GPUS = 8
START_SECONDS = 90.0
"""From the creation of a pod until its ranks train: they import torch and load a checkpoint."""
GRACE_SECONDS = 30.0
"""From the deletion of a pod until it is gone."""
DRAINED_SECONDS = 480.0
"""From the cordon of a node until it may be used again."""
EVICTION_SECONDS = 5.0
"""Between two attempts to evict a pod that a budget protects, as `kubectl drain` waits."""
STEPS = 10**6


@dataclass
class SimulatedJob:
    """A job, its pods, and what its trainer has done. A step takes a second."""

    raw: dict[str, Any]
    checked: Job
    pods: dict[str, PodRecord] = field(default_factory=dict)
    saved: int = 0
    """Step of the newest checkpoint."""
    budget: BudgetRecord | None = None
    moves: int = 0
    """New placements of a gang that ran."""
    lost: int = 0
    """Steps since a checkpoint that a restart has undone."""
    since: float | None = None
    """When the ranks began to train; None while they do not."""

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def view(self) -> JobView:
        return JobView.of(self.raw)

    @property
    def record(self) -> JobRecord:
        return JobRecord(self.uid, "ns", "job", 1, self.raw)

    def stop(self, now: float) -> None:
        """Lose the steps since the newest checkpoint, because a pod of the gang ends."""
        if self.since is not None:
            self.lost += int(now - self.since)
            self.since = None


class MaintainedCluster:
    """Nodes of 8 GPUs, jobs of whole nodes, and the events that are to come."""

    def __init__(self, count: int, gangs: Sequence[int], checkpoint_seconds: float):
        self.now = 0.0
        self.nodes = {node.name: node for node in nodes(count, GPUS)}
        self.checkpoint_seconds = checkpoint_seconds
        self.jobs = {f"job-{number}": _job(number, gang) for number, gang in enumerate(gangs)}
        self.evicted = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = dict.fromkeys(self.jobs)
        """Jobs to reconcile after the events of this instant."""
        self.after(0.0, lambda: None)

    @property
    def time(self) -> datetime:
        return NOW + timedelta(seconds=self.now)

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def run(self, seconds: float) -> None:
        """Handle all events until this time."""
        while self._events and self._events[0][0] <= seconds:
            self.now, _, event = heapq.heappop(self._events)
            event()
            if not self._events or self._events[0][0] > self.now:
                self._settle()
        self.now = seconds

    def _settle(self) -> None:
        """Decide about the jobs that have changed, then about those that wait."""
        while self._changed:
            while self._changed:
                self._reconcile(self._changed.popitem()[0])
            self._schedule()

    def drain(self, name: str) -> None:
        """Cordon a node and evict its pods, as soon as their budgets permit it."""
        self._cordon(name)
        self.after(0.0, lambda: self._evict(name))

    def end(self, name: str) -> None:
        """Cordon a node and end its pods without a warning, as a host that is replaced does."""
        self._cordon(name)
        for job, found in self._pods_on(name):
            self._delete(job, found, "DeletionByPodGC")

    def _cordon(self, name: str) -> None:
        self.nodes[name] = replace(self.nodes[name], cordoned=True, health=(CORDONED,))
        self._changed.update(dict.fromkeys(self.jobs))
        self.after(DRAINED_SECONDS, lambda: self._uncordon(name))

    def _uncordon(self, name: str) -> None:
        """Let a node be used again, if no drain waits for its pods any more."""
        if self._pods_on(name):
            self.after(EVICTION_SECONDS, lambda: self._uncordon(name))
            return
        self.nodes[name] = replace(self.nodes[name], cordoned=False, health=())
        self._changed.update(dict.fromkeys(self.jobs))

    def _evict(self, name: str) -> None:
        found = self._pods_on(name)
        for job, victim in found:
            if job.budget is None:
                self.evicted += 1
                self._delete(job, victim, "EvictionByEvictionAPI")
        if found:
            self.after(EVICTION_SECONDS, lambda: self._evict(name))

    def _pods_on(self, name: str) -> list[tuple[SimulatedJob, PodRecord]]:
        """Return the pods on a node that are not being deleted."""
        return [
            (job, found)
            for job in self.jobs.values()
            for found in job.pods.values()
            if found.node == name and not found.deleting
        ]

    def _delete(self, job: SimulatedJob, victim: PodRecord, disruption: str = "") -> None:
        job.stop(self.now)
        job.pods[victim.uid] = replace(victim, deleting=True, ready=False, disruption=disruption)
        self.after(GRACE_SECONDS, lambda: self._forget(job, victim.uid))
        self._changed[job.uid] = None

    def _forget(self, job: SimulatedJob, uid: str) -> None:
        del job.pods[uid]
        self._changed[job.uid] = None

    def _start(self, job: SimulatedJob, uid: str) -> None:
        found = job.pods.get(uid)
        if found is None or found.deleting:
            return
        job.pods[uid] = replace(found, phase="Running", ready=True)
        gang = [one for one in job.pods.values() if one.attempt == found.attempt]
        if len(gang) == job.checked.nodes and all(one.ready for one in gang):
            job.since = self.now
            self.after(self.checkpoint_seconds, lambda: self._save(job, found.attempt))
            self._changed[job.uid] = None

    def _save(self, job: SimulatedJob, attempt: int) -> None:
        if job.since is None or attempt != job.view.attempt:
            return
        job.saved += int(self.now - job.since)
        job.since = self.now
        self.after(self.checkpoint_seconds, lambda: self._save(job, attempt))
        report = {"attempt": attempt, "step": job.saved, "lastCheckpointStep": job.saved}
        self._reconcile(job.uid, report={**report, "totalSteps": STEPS, "phase": "training"})
        self._changed[job.uid] = None

    def _reconcile(self, uid: str, **found: Any) -> None:
        job = self.jobs[uid]
        pods = tuple(job.pods.values())
        seen = {name: NodeRecord(node, "") for name, node in self.nodes.items()}
        while True:
            observed = Observed(
                now=self.time,
                raw=job.raw,
                checked=job.checked,
                pods=pods,
                nodes=seen,
                budget=job.budget,
                start_obstacles=lambda node: self._obstacles(job, node),
                **found,
            )
            actions = decide_job(observed)
            if not actions.changed:
                break
            job.raw = {**job.raw, "status": dict(actions.status)}
        if actions.create_budget or actions.delete_budget is not None:
            job.budget = _budget(job) if actions.create_budget else None
            self._changed[uid] = None
        for victim in actions.delete_pods:
            self._delete(job, victim)
        for index in actions.create_pods:
            self._create(job, index, observed.view.placed_nodes[index])
        if actions.reconcile_after is not None:
            self.after(actions.reconcile_after, lambda: self._changed.setdefault(uid))

    def _create(self, job: SimulatedJob, index: int, node: str) -> None:
        attempt = job.view.attempt
        made = pod(index, "Pending", attempt, owner=job.uid, node=node, ready=False)
        uid = f"{job.uid}-{attempt}-{index}"
        job.pods[uid] = replace(made, uid=uid, resources=((GPU, GPUS), ("pods", 1)))
        self.after(START_SECONDS, lambda: self._start(job, uid))

    def _obstacles(self, job: SimulatedJob, node: Node) -> Sequence[str]:
        request = Request.of(job.checked)
        others = [
            found
            for other in self.jobs.values()
            if other is not job
            for found in other.pods.values()
            if found.node == node.name
        ]
        used = used_by_others(job.record, node.name, request.needs, others, {})
        return start_obstacles(request, node, used)

    def _schedule(self) -> None:
        """Decide about the jobs that wait. Nodes that a job gets are in use from then on."""
        records = {uid: job.record for uid, job in self.jobs.items()}
        waiting = [
            found
            for uid, job in self.jobs.items()
            if isinstance(
                found := pending_job(records[uid], job.checked, {}, {}, self.time.timestamp()),
                PendingJob,
            )
        ]
        leaving = [found for found in self._running() if found.leaving]
        if not waiting and not leaving:
            return
        for found in leaving:
            place = find_place_elsewhere(found, self._state())
            if place is not None:
                self.jobs[found.next.uid].moves += 1
                self._reconcile(found.next.uid, decision=place)
        for uid, decision in decide(waiting, self._state()).items():
            if isinstance(decision, Assignment):
                self._reconcile(uid, decision=decision)

    def _running(self) -> list[RunningJob]:
        now = self.time.timestamp()
        found = (
            running_job(job.record, job.checked, {}, now, Request.of) for job in self.jobs.values()
        )
        return [each for each in found if each is not None]

    def _state(self) -> ClusterState:
        records = {uid: job.record for uid, job in self.jobs.items()}
        pods = [found for job in self.jobs.values() for found in job.pods.values()]
        held = held_by_jobs(records.values(), pods, self.time.timestamp())
        return ClusterState(
            self.time.timestamp(),
            FabricSnapshots(self.nodes.values(), {}),
            tuple(usage(records.values(), pods, {}, held)),
            running=tuple(self._running()),
        )


def _budget(job: SimulatedJob) -> BudgetRecord:
    owned = LabelSelector(equal=((labels.JOB_UID, job.uid),))
    return BudgetRecord("", "job", "ns", job.uid, job.checked.nodes, owned)


def _job(number: int, gang: int) -> SimulatedJob:
    raw: dict[str, Any] = job_object(
        "job",
        "ns",
        workers={"gpusPerNode": GPUS, "nodes": gang, "command": ["train"]},
        parallelism={"tensor": GPUS, "data": gang},
        training={"steps": STEPS, "globalBatchSize": gang, "microBatchSize": 1},
    )
    metadata: Mapping[str, Any] = raw["metadata"]
    uid, created = f"job-{number}", format_time(NOW + timedelta(seconds=number))
    raw["metadata"] = {**metadata, "uid": uid, "generation": 1, "creationTimestamp": created}
    checked = check("job", raw["spec"])
    assert isinstance(checked, Job), checked
    return SimulatedJob(raw, checked)
