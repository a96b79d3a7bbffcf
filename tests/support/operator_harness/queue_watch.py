"""An independent eye on the queue: its own watch streams, every revision of every job and pod.

The revisions of one cluster are in one order, so what is gathered here can be played back after the
test as it was, instant by instant. Nothing of the operator is used.
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
AT_ONCE_SECONDS = 0.3
"""What is seen so close together may have been decided in the other order."""
_FOR = re.compile(r"preempted by [^/ ]+/([^, ]+), ")


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of one object."""

    revision: int
    seconds: float
    """When it was seen."""
    kind: str
    """job or pod."""
    gone: bool
    raw: dict[str, Any]


@dataclass(slots=True)
class Attempt:
    """One gang: what was promised to it, and when it held it."""

    job: str
    number: int
    nodes: tuple[str, ...]
    gpus: int
    placed: float
    bound: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    first_bound: float = 0.0
    last_end: float = 0.0
    preempted_for: str = ""
    stopped: float = 0.0
    others: dict[tuple[str, int], tuple[tuple[str, ...], int]] = field(default_factory=dict)
    """What others held at the moment it stopped: by job and attempt, nodes and GPUs on each."""


@dataclass(slots=True)
class TraceRecord:
    """What the play-back found."""

    breaches: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    submitted: dict[str, float] = field(default_factory=dict)
    busy: list[tuple[float, int]] = field(default_factory=list)
    """(time, GPUs held by bound pods from then on)."""
    promised: list[tuple[float, int]] = field(default_factory=list)
    """(time, GPUs from then on of gangs with a place, and of pods that still leave theirs)."""


class QueueWatcher:
    """Gathers what happens in one namespace."""

    def __init__(self, api: Api, namespace: str):
        self._api = api
        self._namespace = namespace
        self.seen: list[Revision] = []
        self.phases: dict[str, str] = {}
        """Newest phase of each job, by name."""
        self.gaps = 0
        """How often the server had forgotten where a stream was: revisions are missing then."""
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
        async for change, raw in follow(self._api, resource, where, self._gap):
            revision = int(raw["metadata"]["resourceVersion"])
            raw["metadata"].pop("managedFields", None)
            if kind == "job":
                self.phases[raw["metadata"]["name"]] = status_of(raw).get("phase", "")
            self.seen.append(Revision(revision, time.monotonic(), kind, change == "DELETED", raw))


class Playback:
    """Plays the sights in order of revision and keeps the books of nodes and gangs."""

    def __init__(self, gpus_per_node: int):
        self._room = gpus_per_node
        self._promises: dict[str, tuple[tuple[str, ...], int]] = {}
        """By job: nodes of its placement and GPUs on each."""
        self._pods: dict[str, tuple[str, str, int]] = {}
        """By UID of a living pod: job, node it is bound to, GPUs."""
        self._current: dict[tuple[str, int], Attempt] = {}
        self._number: dict[str, int] = {}
        self.account = TraceRecord()

    def play(self, seen: list[Revision]) -> TraceRecord:
        for sight in sorted(seen, key=lambda sight: sight.revision):
            touched = self._job(sight) if sight.kind == "job" else self._pod(sight)
            for node in touched:
                held = self._held(node)
                if held > self._room:
                    self._breach(sight, f"{node} gives {held} of {self._room} GPUs")
            self._count(sight.seconds)
        return self.account

    def _breach(self, sight: Revision, text: str) -> None:
        self.account.breaches.append(f"revision {sight.revision}: {text}")

    def _job(self, sight: Revision) -> Iterator[str]:
        name, status = sight.raw["metadata"]["name"], status_of(sight.raw)
        self.account.submitted.setdefault(name, sight.seconds)
        number, placement = int(status.get("attempt", 0)), status.get("placement")
        placed = condition(sight.raw, "Placed")
        gang = self._current.get((name, number - 1))
        if gang and not gang.preempted_for and placed.get("reason") == "Preempted":
            found = _FOR.match(placed["message"])
            gang.preempted_for = found.group(1) if found else "?"
            gang.stopped = sight.seconds
            gang.others = {
                (job, self._number[job]): promise
                for job, promise in self._promises.items()
                if job != name and not self._over(job) and not self._just_placed(job, sight)
            }
        over = any(condition(sight.raw, k).get("status") == "True" for k in ("Succeeded", "Failed"))
        if not placement or over or sight.gone:
            self._promises.pop(name, None)
            return
        nodes = tuple(n for block in placement["blocks"] for n in block["nodes"])
        wanted = sight.raw["spec"]["workers"]["nodes"]
        if len(set(nodes)) != wanted:
            self._breach(sight, f"{name} is promised {len(set(nodes))} of {wanted} nodes")
        spares = tuple(n for block in placement.get("spares", ()) for n in block["nodes"])
        if (name, placement.get("attempt", 0)) not in self._current:
            gang = Attempt(name, number, nodes, placement["gpusPerNode"], sight.seconds)
            self._current[name, number] = gang
            self.account.attempts.append(gang)
        self._promises[name] = ((*nodes, *spares), placement["gpusPerNode"])
        self._number[name] = placement.get("attempt", 0)
        yield from self._promises[name][0]

    def _pod(self, sight: Revision) -> Iterator[str]:
        metadata, spec = sight.raw["metadata"], sight.raw["spec"]
        labels = metadata["labels"]
        job, number = labels["llmtrain.dev/job-name"], int(labels["llmtrain.dev/attempt"])
        index, gang = int(labels["llmtrain.dev/node-index"]), self._current.get((job, number))
        if gang is None:
            self._breach(sight, f"{metadata['name']} is there before its gang has a place")
            return
        node = spec.get("nodeName", "")
        if node and node != gang.nodes[index]:
            self._breach(sight, f"{metadata['name']} is on {node}, not on {gang.nodes[index]}")
        if sight.gone or sight.raw["status"].get("phase") in ("Succeeded", "Failed"):
            if self._pods.pop(metadata["uid"], None) is not None:
                gang.ended.add(index)
                gang.last_end = sight.seconds
            return
        if node and metadata["uid"] not in self._pods:
            # kube-scheduler may bind a pod that is about to be deleted; its GPUs still count.
            held = self._promises.get(job)
            same = held is not None and held[0][: len(gang.nodes)] == gang.nodes
            if not gang.preempted_for and not same:
                self._breach(sight, f"{metadata['name']} is bound, its gang has no place any more")
            gang.first_bound = gang.first_bound or sight.seconds
            gang.bound.add(index)
            limits = spec["containers"][0]["resources"]["limits"]
            self._pods[metadata["uid"]] = (job, node, int(limits[GPU]))
            yield node

    def _held(self, node: str) -> int:
        """GPUs of a node that are promised or held; a job's pods and its promise count once."""
        by_job = {
            job: gpus
            for job, (nodes, gpus) in self._promises.items()
            if node in nodes and not self._over(job)
        }
        living: dict[str, int] = {}
        for job, where, gpus in self._pods.values():
            if where == node:
                living[job] = living.get(job, 0) + gpus
        return sum(max(by_job.get(job, 0), living.get(job, 0)) for job in by_job | living)

    def _over(self, job: str) -> bool:
        """Whether every pod of a gang has ended: its place is free, written down or not."""
        gang = self._gang(job)
        return len(gang.ended) == len(gang.nodes)

    def _just_placed(self, job: str, sight: Revision) -> bool:
        """Whether a place is so new that a stop decided before it may be written after it."""
        return sight.seconds - self._gang(job).placed < AT_ONCE_SECONDS

    def _gang(self, job: str) -> Attempt:
        return self._current[job, self._number[job]]

    def _count(self, seconds: float) -> None:
        held = sum(gpus for _, _, gpus in self._pods.values())
        current = {job: p for job, p in self._promises.items() if not self._over(job)}
        promised = sum(len(nodes) * gpus for nodes, gpus in current.values())
        for job, node, gpus in self._pods.values():
            if job not in current or node not in current[job][0]:
                promised += gpus
        for steps, value in ((self.account.busy, held), (self.account.promised, promised)):
            if not steps or steps[-1][1] != value:
                steps.append((seconds, value))


def integral(steps: list[tuple[float, int]], begin: float, end: float) -> float:
    """GPU-seconds of a step function from `begin` to `end`."""
    total = 0.0
    for (start, value), (stop, _) in zip(steps, [*steps[1:], (end, 0)], strict=True):
        total += value * max(0.0, min(stop, end) - max(start, begin))
    return total


def dump(seen: list[Revision]) -> str:
    """Sights as lines of JSON, to look into a failure."""
    return "\n".join(
        json.dumps(
            [
                s.revision,
                round(s.seconds, 3),
                s.kind,
                s.gone,
                s.raw["metadata"]["name"],
                s.raw.get("status", {}),
            ]
        )
        for s in sorted(seen, key=lambda s: s.revision)
    )
