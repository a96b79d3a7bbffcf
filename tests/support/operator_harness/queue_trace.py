"""Traces of jobs that run on scripted nodes under a watcher, and the checks of every trace."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmtrain_core.queueing.cycle import TERMINATION_SECONDS
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    PATIENT_LEASE,
    OperatorHarness,
    OperatorProcess,
)
from tests.support.operator_harness.queue_watch import (
    Attempt,
    QueueWatcher,
    Replay,
    Revision,
    TraceRecord,
    dump,
)
from tests.support.queue_sim import Arrival, History, fabric, simulate

GPUS = 8
PRIORITIES = {0: 70, 100: 24, 1000: 6}
"""Priorities, and the percentage of jobs that have each."""
PRIORITY_NAMES = {0: "trace-low", 100: "trace-middle", 1000: "trace-high"}
SLACK = {0: 900, 100: 900, 1000: 600}
"""Seconds from the duration of a job to its deadline, by priority: preempted jobs take longer."""
PATIENT = ("--writes-per-second=400", "--progress-seconds=60", *PATIENT_LEASE)
"""Flags of the operator, which rarely polls progress: scripted pods have none."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    nodes: int
    gpus: int
    priority: int
    length: float
    at: float

    @property
    def bound(self) -> int:
        return math.ceil(self.length) + SLACK[self.priority]


@dataclass(frozen=True, slots=True)
class Trace:
    """Jobs of mixed size and priority. Equal values give equal jobs."""

    seed: int
    jobs: int
    nodes: int
    """Nodes of the cluster."""
    per_leaf: int
    sizes: dict[int, int]
    """Percentage of jobs by number of nodes."""
    lengths: tuple[float, float]
    span: float
    """Seconds of submissions. Low-priority jobs of the first third are submitted at the start."""
    requests: Mapping[str, str] = field(default_factory=dict)
    """Requests of each pod besides GPUs."""
    pods_per_node: int = 110

    def entries(self) -> list[Entry]:
        chance = random.Random(self.seed)
        entries = []
        for index in range(self.jobs):
            [nodes] = chance.choices([*self.sizes], [*self.sizes.values()])
            [priority] = chance.choices([*PRIORITIES], [*PRIORITIES.values()])
            gpus = 4 if nodes == 1 and chance.random() < 0.4 else GPUS
            early = index < self.jobs // 3 and priority == 0
            at = 0.0 if early else chance.uniform(0, self.span)
            length = chance.uniform(*self.lengths)
            entries.append(Entry(f"j{index:03}", nodes, gpus, priority, length, at))
        return sorted(entries, key=lambda entry: (entry.at, entry.name))

    def under_pressure(self) -> Trace:
        """Return the trace with pods and nodes for which foreign pods leave little room.

        Two pods of four GPUs fit on a node. Each requests a quarter of its CPUs.
        """
        return replace(self, requests={"cpu": "16", "memory": "64Gi"}, pods_per_node=6)


FULL_TRACE = Trace(
    seed=20261124,
    jobs=300,
    nodes=128,
    per_leaf=16,
    lengths=(12, 30),
    span=45,
    sizes={1: 50, 2: 25, 4: 14, 8: 7, 16: 3, 32: 1},
)


@dataclass(frozen=True, slots=True)
class Played:
    """Result of a trace."""

    account: TraceRecord
    seconds: float
    figures: str
    """The operator's metrics at the end."""
    revisions: list[Revision]


async def play(
    trace: Trace,
    harness: OperatorHarness,
    operator: OperatorProcess,
    folder: Path,
    seconds: float,
    beside: AbstractAsyncContextManager[object] | None = None,
) -> Played:
    """Submit all jobs, wait until they have finished, and replay what the watcher recorded.

    `beside` runs during this time. The caller stops the operator.
    """
    entries = trace.entries()
    zones = [
        {
            "network.topology.nvidia.com/spine": f"s{i // (4 * trace.per_leaf)}",
            "network.topology.nvidia.com/leaf": f"l{i // trace.per_leaf}",
        }
        for i in range(trace.nodes)
    ]
    await harness.add_nodes(*zones, gpus=GPUS, pods=trace.pods_per_node)
    lengths = {entry.name: entry.length for entry in entries}
    harness.nodes.script(
        lambda pod: pod["metadata"]["namespace"] == harness.namespace,
        lambda pod: PodScript(
            exit_after=lengths[pod["metadata"]["labels"]["llmtrain.dev/job-name"]]
        ),
    )
    await asyncio.to_thread(operator.start)
    watcher = QueueWatcher(harness.api, harness.namespace)
    watcher.start()
    started = time.monotonic()
    try:
        async with beside or nullcontext():
            submitting = asyncio.create_task(_submit_all(harness, trace, entries))
            phases = await _all_done(watcher, operator, len(entries), seconds)
            await submitting
        took = time.monotonic() - started
        await asyncio.sleep(1.0)
        figures = operator.metrics()
    finally:
        watcher.stop()
        (folder / "revisions.jsonl").write_text(dump(watcher.revisions))
    assert watcher.gaps == 0, "the watcher missed revisions, so the trace is not verified"
    assert phases == {"Succeeded": len(entries)}
    account = Replay(GPUS).run(watcher.revisions)
    return Played(account, took, figures, watcher.revisions)


async def _submit_all(harness: OperatorHarness, trace: Trace, entries: list[Entry]) -> None:
    gate, start = asyncio.Semaphore(8), time.monotonic()

    async def one(entry: Entry) -> None:
        await asyncio.sleep(max(0.0, start + entry.at - time.monotonic()))
        async with gate:
            await harness.submit(
                entry.name,
                workers={
                    "nodes": entry.nodes,
                    "gpusPerNode": entry.gpus,
                    "command": ["train"],
                    "nodeSelector": {"harness": harness.tag},
                    **({"resources": {"requests": dict(trace.requests)}} if trace.requests else {}),
                },
                parallelism={"tensor": entry.gpus, "data": entry.nodes},
                priorityClassName=PRIORITY_NAMES[entry.priority],
                runPolicy={"activeDeadlineSeconds": entry.bound},
            )

    await asyncio.gather(*(one(entry) for entry in entries))


async def _all_done(
    watcher: QueueWatcher, operator: OperatorProcess, count: int, seconds: float
) -> Counter[str]:
    deadline = time.monotonic() + seconds
    while True:
        phases = Counter(watcher.phases.values())
        if phases["Succeeded"] + phases["Failed"] == count:
            return phases
        assert operator.alive(), operator.tail()
        assert time.monotonic() < deadline, f"jobs did not finish in time: {phases}"
        await asyncio.sleep(0.5)


def check_trace(trace: Trace, account: TraceRecord, *, foreign_pods: bool = False) -> None:
    """Check that no gang is partial at any revision, and that every preemption is justified.

    Whole gangs are preempted, and only if the preemptor then fits. Beside foreign pods, a gang may
    leave its nodes for them, kube-scheduler may preempt a pod, and foreign pods may take the nodes
    of the preemptor.
    """
    assert account.violations == []
    by_name = {entry.name: entry for entry in trace.entries()}
    by_job: dict[str, list[Attempt]] = {}
    for attempt in account.attempts:
        assert len(attempt.nodes) == by_name[attempt.job].nodes
        by_job.setdefault(attempt.job, []).append(attempt)
    for attempts in by_job.values():
        *earlier, last = attempts
        assert [a.number for a in attempts] == list(range(len(attempts)))
        assert foreign_pods or all(a.preempted_for for a in earlier), "an attempt ended by itself"
        assert not last.preempted_for
        assert last.bound == set(range(len(last.nodes))), "not all pods were bound"
    stopped = [attempt for attempt in account.attempts if attempt.preempted_for]
    assert stopped, "the trace caused no preemption"
    assert any(victim.released for victim in stopped), "no preempted gang had pods"
    for victim in stopped:
        assert by_name[victim.job].priority < by_name[victim.preempted_for].priority
        if not foreign_pods:
            check_preemption(trace.nodes, victim, account, by_name)


def check_preemption(
    nodes: int, victim: Attempt, account: TraceRecord, by_name: dict[str, Entry]
) -> None:
    """Check that the gang for which another one was preempted then fits as a whole.

    The check is at the revision at which the last pod of the victim ended. The writes of one
    decision are stored in any order and may take long on a busy machine: a gang that was preempted
    for the same job may still have its placement. Until then the preemptor may have started, or a
    job of higher priority may have taken the nodes.
    """
    winner = by_name[victim.preempted_for]
    if not victim.released or winner.name in victim.others:
        return
    if any(
        by_name[other.job].priority > winner.priority
        and other.placed >= account.submitted[winner.name]
        and other.revision <= victim.released
        for other in account.attempts
    ):
        return
    held: Counter[str] = Counter()
    for job, (nodes_held, gpus) in victim.others.items():
        last = [a for a in account.attempts if a.job == job and a.revision <= victim.released][-1:]
        if not any(attempt.preempted_for == winner.name for attempt in last):
            held.update(dict.fromkeys(nodes_held, gpus))
    free = nodes - sum(held[node] > GPUS - winner.gpus for node in held)
    assert free >= winner.nodes, f"{winner.name} does not fit without {victim.job}: {held}"


def replica(trace: Trace, account: TraceRecord) -> History:
    """Simulate the decisions of the queue on the same trace, without control delays.

    Jobs take the measured time from placement to the end of the last pod, so pod startup takes the
    same time in both. Preempted jobs release their nodes at once. Deadlines are known, durations
    are not.
    """
    return simulate(
        [
            Arrival(e.name, e.nodes, length, at, e.gpus, e.priority, bound=e.bound)
            for e, length, at in measured(trace, account)
        ],
        fabric(trace.nodes, GPUS, per_leaf=trace.per_leaf),
    )


def measured(trace: Trace, account: TraceRecord) -> list[tuple[Entry, float, float]]:
    """Return the jobs with their measured duration and submission time."""
    begin = min(account.submitted.values())
    final = {attempt.job: attempt for attempt in account.attempts}
    return [
        (e, final[e.name].last_end - final[e.name].placed, account.submitted[e.name] - begin)
        for e in trace.entries()
    ]


def waits(
    trace: Trace, account: TraceRecord, ideal: History
) -> dict[str, tuple[list[float], float]]:
    """Return the times to the first placement by class, and the longest in the replica.

    There is a class for each priority, and one for the jobs of the two largest sizes, which a
    stream of smaller jobs could starve.
    """
    first = {a.job: a.placed - account.submitted[a.job] for a in reversed(account.attempts)}
    arrived = {entry.name: at for entry, _, at in measured(trace, account)}
    wide = sorted(trace.sizes)[-2:]
    classes = {f"priority {p}": [e for e in trace.entries() if e.priority == p] for p in PRIORITIES}
    classes[f"{wide[0]} nodes and more"] = [e for e in trace.entries() if e.nodes in wide]
    return {
        name: (
            [first[e.name] for e in members],
            max(ideal.starts[e.name][0] - arrived[e.name] for e in members),
        )
        for name, members in classes.items()
    }


def check_waits(found: dict[str, tuple[list[float], float]]) -> None:
    """Check that no class waits much longer than in the replica, which has no delays.

    The limit is 1.5 times the wait in the replica, because one late end shifts the whole queue,
    plus the time in which no job is preempted for one that starts soon.
    """
    for name, (seconds, ideal) in found.items():
        assert max(seconds) <= 1.5 * ideal + TERMINATION_SECONDS, f"{name}: waits too long"
    mean = {name: sum(seconds) / len(seconds) for name, (seconds, _) in found.items()}
    assert mean["priority 1000"] < mean["priority 100"] < mean["priority 0"]
