"""Record every revision of every job and pod by watches of its own, and check the record.

The revisions of one cluster have one order, so a record can be replayed after the test. No code of
the operator is used.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.kubelet.pod_watch import follow
from tests.support.operator_harness.harness import JOBS, condition, status_of

GPU = "nvidia.com/gpu"
_FOR = re.compile(r"preempted by [^/ ]+/([^, ]+), ")


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of one object."""

    revision: int
    seconds: float
    """Time at which the watcher received it."""
    kind: str
    """job or pod."""
    deleted: bool
    raw: dict[str, Any]


@dataclass(slots=True)
class Attempt:
    """One gang: its placement, and the times at which it held its nodes."""

    job: str
    number: int
    nodes: tuple[str, ...]
    gpus: int
    placed: float
    revision: int
    """Revision of its placement."""
    bound: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    first_bound: float = 0.0
    last_end: float = 0.0
    preempted_for: str = ""
    left_for: str = ""
    """Reason of the condition Placed when it gave its nodes back."""
    released: int = 0
    """Revision at which its last pod ended after it was preempted, or 0 if it had no pods."""
    others: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    """Nodes and GPUs per node that each placed job held at that revision."""


@dataclass(slots=True)
class TraceRecord:
    """The result of a replay."""

    violations: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    submitted: dict[str, float] = field(default_factory=dict)
    busy: list[tuple[float, int]] = field(default_factory=list)
    """(time, GPUs of bound pods from then on)."""
    assigned: list[tuple[float, int]] = field(default_factory=list)
    """(time, GPUs from then on of placed gangs, and of pods that still terminate)."""


class QueueWatcher:
    """Records the revisions of one namespace."""

    def __init__(self, api: Api, namespace: str):
        self._api = api
        self._namespace = namespace
        self.revisions: list[Revision] = []
        self.phases: dict[str, str] = {}
        """Newest phase of each job, by name."""
        self.gaps = 0
        """Number of times that a watch had to start again, so revisions may be missing."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._watch("job", JOBS)),
            asyncio.create_task(self._watch("pod", "pods")),
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _gap(self) -> None:
        self.gaps += 1

    async def _watch(self, kind: str, resource: str) -> None:
        where = f"metadata.namespace={self._namespace}"
        async for event, raw in follow(self._api, resource, where, self._gap):
            revision = int(raw["metadata"]["resourceVersion"])
            raw["metadata"].pop("managedFields", None)
            if kind == "job":
                self.phases[raw["metadata"]["name"]] = status_of(raw).get("phase", "")
            deleted = event == "DELETED"
            self.revisions.append(Revision(revision, time.monotonic(), kind, deleted, raw))


class Replay:
    """Replays revisions in their order, and accounts for nodes and gangs."""

    def __init__(self, gpus_per_node: int):
        self._gpus_per_node = gpus_per_node
        self._placements: dict[str, tuple[tuple[str, ...], int]] = {}
        """By job: nodes of its placement and GPUs on each."""
        self._pods: dict[str, tuple[str, str, int]] = {}
        """By UID of a pod that has not ended: job, node it is bound to, GPUs."""
        self._current: dict[tuple[str, int], Attempt] = {}
        self._number: dict[str, int] = {}
        self.account = TraceRecord()

    def run(self, revisions: list[Revision]) -> TraceRecord:
        for change in sorted(revisions, key=lambda change: change.revision):
            nodes = self._job(change) if change.kind == "job" else self._pod(change)
            for node in nodes:
                held = self._held(node)
                if held > self._gpus_per_node:
                    self._violation(change, f"{held} GPUs of {node} are in use")
            self._count(change.seconds)
        return self.account

    def _violation(self, change: Revision, text: str) -> None:
        self.account.violations.append(f"revision {change.revision}: {text}")

    def _job(self, change: Revision) -> Iterator[str]:
        name, status = change.raw["metadata"]["name"], status_of(change.raw)
        self.account.submitted.setdefault(name, change.seconds)
        number, placement = int(status.get("attempt", 0)), status.get("placement")
        placed = condition(change.raw, "Placed")
        gang = self._current.get((name, number - 1))
        if gang and not gang.preempted_for and placed.get("reason") == "Preempted":
            found = _FOR.match(placed["message"])
            gang.preempted_for = found.group(1) if found else "?"
            if self._has_started(gang.preempted_for):
                self._violation(change, f"{name} stops for {gang.preempted_for}, which has started")
        ends = (condition(change.raw, kind) for kind in ("Succeeded", "Failed"))
        finished = any(end.get("status") == "True" for end in ends)
        # The pods of a job that is being deleted still count, but it holds no other nodes.
        deleting = change.deleted or "deletionTimestamp" in change.raw["metadata"]
        if gang and placed.get("status") == "False":
            gang.left_for = gang.left_for or placed["reason"]
        if not placement or finished or deleting:
            self._placements.pop(name, None)
            return
        nodes = tuple(n for block in placement["blocks"] for n in block["nodes"])
        wanted = change.raw["spec"]["workers"]["nodes"]
        if len(set(nodes)) != wanted:
            self._violation(change, f"{name} is placed on {len(set(nodes))} of {wanted} nodes")
        if (name, placement.get("attempt", 0)) not in self._current:
            gang = Attempt(
                name, number, nodes, placement["gpusPerNode"], change.seconds, change.revision
            )
            self._current[name, number] = gang
            self.account.attempts.append(gang)
        self._placements[name] = (tuple(nodes), placement["gpusPerNode"])
        self._number[name] = placement.get("attempt", 0)
        yield from self._placements[name][0]

    def _pod(self, change: Revision) -> Iterator[str]:
        metadata, spec = change.raw["metadata"], change.raw["spec"]
        labels = metadata["labels"]
        job, number = labels["llmtrain.dev/job-name"], int(labels["llmtrain.dev/attempt"])
        index, gang = int(labels["llmtrain.dev/node-index"]), self._current.get((job, number))
        if gang is None:
            self._violation(change, f"{metadata['name']} exists before its gang is placed")
            return
        node = spec.get("nodeName", "")
        if node and node != gang.nodes[index]:
            self._violation(change, f"{metadata['name']} is on {node}, not on {gang.nodes[index]}")
        if change.deleted or change.raw["status"].get("phase") in ("Succeeded", "Failed"):
            if self._pods.pop(metadata["uid"], None) is not None:
                gang.ended.add(index)
                gang.last_end = change.seconds
                if gang.preempted_for:
                    gang.released, gang.others = change.revision, self._in_use()
            return
        if node and metadata["uid"] not in self._pods:
            # kube-scheduler may bind a pod that is about to be deleted; its GPUs still count.
            held = self._placements.get(job)
            same = held is not None and held[0][: len(gang.nodes)] == gang.nodes
            if not gang.preempted_for and not gang.left_for and not same:
                self._violation(change, f"{metadata['name']} is bound without a placement")
            gang.first_bound = gang.first_bound or change.seconds
            gang.bound.add(index)
            limits = spec["containers"][0]["resources"]["limits"]
            self._pods[metadata["uid"]] = (job, node, int(limits[GPU]))
            yield node

    def _held(self, node: str) -> int:
        """Return the GPUs of a node in use; pods and placement of a job count once."""
        placed = {job: gpus for job, (nodes, gpus) in self._in_use().items() if node in nodes}
        pods: dict[str, int] = {}
        for job, where, gpus in self._pods.values():
            if where == node:
                pods[job] = pods.get(job, 0) + gpus
        return sum(max(placed.get(job, 0), pods.get(job, 0)) for job in placed | pods)

    def _in_use(self) -> dict[str, tuple[tuple[str, ...], int]]:
        """Return the placements whose gangs have not ended, by job."""
        return {job: found for job, found in self._placements.items() if not self._ended(job)}

    def _has_started(self, job: str) -> bool:
        """Whether a job is placed and a pod of its gang is bound."""
        return job in self._placements and bool(self._gang(job).bound)

    def _ended(self, job: str) -> bool:
        """Whether every pod of a gang has ended, so that its nodes are free."""
        gang = self._gang(job)
        return len(gang.ended) == len(gang.nodes)

    def _gang(self, job: str) -> Attempt:
        return self._current[job, self._number[job]]

    def _count(self, seconds: float) -> None:
        held = sum(gpus for _, _, gpus in self._pods.values())
        current = self._in_use()
        assigned = sum(len(nodes) * gpus for nodes, gpus in current.values())
        for job, node, gpus in self._pods.values():
            if job not in current or node not in current[job][0]:
                assigned += gpus
        for steps, value in ((self.account.busy, held), (self.account.assigned, assigned)):
            if not steps or steps[-1][1] != value:
                steps.append((seconds, value))


def integral(steps: list[tuple[float, int]], begin: float, end: float) -> float:
    """Return the integral of a step function from `begin` to `end`."""
    total = 0.0
    for (start, value), (stop, _) in zip(steps, [*steps[1:], (end, 0)], strict=True):
        total += value * max(0.0, min(stop, end) - max(start, begin))
    return total


def dump(revisions: list[Revision]) -> str:
    """Return the revisions as lines of JSON, for the analysis of a failure."""
    return "\n".join(
        json.dumps(
            [
                s.revision,
                round(s.seconds, 3),
                s.kind,
                s.deleted,
                s.raw["metadata"]["name"],
                s.raw.get("status", {}),
            ]
        )
        for s in sorted(revisions, key=lambda s: s.revision)
    )
