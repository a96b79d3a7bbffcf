"""300 jobs of mixed size and priority on 128 nodes: watched by somebody else, revision by revision.

The figures: GPUs in use, while jobs wait, against an oracle that knows the trace and whose control
takes no time. A job holds its GPUs from its placement to the end of its last pod; the oracle has
these lengths as measured, so that starting pods costs both the same. Pods of a gang that stopped
hold theirs until they have ended; the oracle's are gone at once.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from installing import install
from operator_bench import Bench, OperatorProcess
from queue_bench import Arrival, fabric, simulate
from queue_watch import Account, Attempt, Playback, Witness, dump, integral

from llmtrain_devcluster.controlplane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted import PodScript, ScriptedNodes

pytestmark = pytest.mark.cluster
SEED = 20261124
PATIENT = (
    "--writes-per-second=400",
    "--progress-seconds=60",
    "--lease-duration=90",
    "--renew-deadline=80",
)
"""A machine that is busy with the cluster itself must not cost the operator its lease, and scripted
pods have no progress to ask for."""
JOB_COUNT, NODE_COUNT, GPUS = 300, 128, 8
SIZES = {1: 50, 2: 25, 4: 14, 8: 7, 16: 3, 32: 1}
"""Nodes of a job, and how many of a hundred jobs have so many."""
PRIORITIES = {0: 70, 100: 24, 1000: 6}
PRIORITY_NAMES = {0: "low", 100: "middle", 1000: "high"}
SLACK = {0: 900, 100: 900, 1000: 600}
"""Seconds between the work of a job and its deadline, by priority: who is stopped needs longer."""


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


def trace(count: int = JOB_COUNT) -> list[Entry]:
    """A third of the jobs at once, the others in the first 45 s, the important ones with them."""
    chance = random.Random(SEED)
    entries = []
    for index in range(count):
        [nodes] = chance.choices([*SIZES], [*SIZES.values()])
        [priority] = chance.choices([*PRIORITIES], [*PRIORITIES.values()])
        gpus = 4 if nodes == 1 and chance.random() < 0.4 else GPUS
        at = 0.0 if index < count // 3 and priority == 0 else chance.uniform(0, 45)
        entries.append(Entry(f"j{index:03}", nodes, gpus, priority, chance.uniform(12, 30), at))
    return sorted(entries, key=lambda entry: (entry.at, entry.name))


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[ControlPlane]:
    """A cluster of its own, thrown away as a whole: to delete all that is in it takes minutes."""
    with ControlPlane(users=USERS) as cluster:
        asyncio.run(install(cluster))
        yield cluster


@pytest.fixture
async def bench(own_cluster: ControlPlane) -> AsyncIterator[Bench]:
    async with own_cluster.client("admin") as api:
        nodes, namespace = ScriptedNodes(api), "trace"
        await api.create("namespaces", {"metadata": {"name": namespace}})
        for value, name in PRIORITY_NAMES.items():
            body = {"metadata": {"name": name}, "value": value}
            await api.create("scheduling.k8s.io/v1/priorityclasses", body)
        await api.wait_for("serviceaccounts", "default", lambda found: found is not None, namespace)
        nodes.start()
        yield Bench(api, namespace, nodes, "trace")
        await nodes.stop()


async def submit_all(bench: Bench, entries: list[Entry]) -> None:
    gate, start = asyncio.Semaphore(8), time.monotonic()

    async def one(entry: Entry) -> None:
        await asyncio.sleep(max(0.0, start + entry.at - time.monotonic()))
        async with gate:
            await bench.submit(
                entry.name,
                workers={"nodes": entry.nodes, "gpusPerNode": entry.gpus, "command": ["train"],
                         "nodeSelector": {"bench": bench.tag}},
                parallelism={"tensor": entry.gpus, "data": entry.nodes},
                priorityClassName=PRIORITY_NAMES[entry.priority],
                runPolicy={"activeDeadlineSeconds": entry.bound},
            )  # fmt: skip

    await asyncio.gather(*(one(entry) for entry in entries))


async def all_done(
    witness: Witness, operator: OperatorProcess, count: int, seconds: float
) -> Counter[str]:
    deadline = time.monotonic() + seconds
    while True:
        phases = Counter(witness.phases.values())
        if phases["Succeeded"] + phases["Failed"] == count:
            return phases
        assert operator.alive(), operator.tail()
        assert time.monotonic() < deadline, f"not done in time: {phases}"
        await asyncio.sleep(0.5)


@pytest.mark.timeout(900)
async def test_three_hundred_jobs(own_cluster: ControlPlane, bench: Bench, tmp_path: Path) -> None:
    entries = trace()
    zones = [
        {"network.topology.nvidia.com/spine": f"s{i // 64}",
         "network.topology.nvidia.com/leaf": f"l{i // 16}"}
        for i in range(NODE_COUNT)
    ]  # fmt: skip
    await bench.add_nodes(*zones, gpus=GPUS)
    lengths = {entry.name: entry.length for entry in entries}
    bench.nodes.script(
        lambda pod: pod["metadata"]["namespace"] == bench.namespace,
        lambda pod: PodScript(
            exit_after=lengths[pod["metadata"]["labels"]["llmtrain.dev/job-name"]]
        ),
    )
    operator = OperatorProcess(own_cluster, tmp_path, *PATIENT)
    await asyncio.to_thread(operator.start)
    witness = Witness(bench.api, bench.namespace)
    witness.start()
    started = time.monotonic()
    try:
        submitting = asyncio.create_task(submit_all(bench, entries))
        phases = await all_done(witness, operator, len(entries), 480)
        await submitting
        took = time.monotonic() - started
        await asyncio.sleep(1.0)
        figures = operator.metrics()
    finally:
        witness.stop()
        (tmp_path / "seen.jsonl").write_text(dump(witness.seen))
        operator.kill()
    assert phases == {"Succeeded": len(entries)}
    account = Playback(GPUS).play(witness.seen)
    assert account.breaches == []
    judge(entries, account)
    report(entries, account, took, figures)


def judge(entries: list[Entry], account: Account) -> None:
    by_name = {entry.name: entry for entry in entries}
    by_job: dict[str, list[Attempt]] = {}
    for attempt in account.attempts:
        assert len(attempt.nodes) == by_name[attempt.job].nodes
        if not attempt.preempted_for:
            assert attempt.bound == set(range(len(attempt.nodes))), "the whole gang was bound"
        by_job.setdefault(attempt.job, []).append(attempt)
    for attempts in by_job.values():
        assert [a.number for a in attempts] == list(range(len(attempts)))
        assert all(a.preempted_for for a in attempts[:-1]), "only preemption ends an attempt"
        assert not attempts[-1].preempted_for
    stopped = [attempt for attempt in account.attempts if attempt.preempted_for]
    assert stopped, "the trace is meant to need preemption"
    for winner in {victim.preempted_for for victim in stopped}:
        mine = [victim for victim in stopped if victim.preempted_for == winner]
        judge_preemption(by_name[winner], mine, by_job[winner], by_name)


def judge_preemption(
    winner: Entry, stopped: list[Attempt], its: list[Attempt], by_name: dict[str, Entry]
) -> None:
    """The winner outranks all its victims, and once they have left the whole of it fits."""
    names = {victim.job for victim in stopped}
    assert all(by_name[name].priority < winner.priority for name in names)
    assert any(gang.placed >= stopped[0].placed for gang in its), "it started after that"
    held: Counter[str] = Counter()
    for job, (nodes, gpus) in stopped[0].others.items():
        if job not in names:
            held.update(dict.fromkeys(nodes, gpus))
    room = NODE_COUNT - sum(held[node] > GPUS - winner.gpus for node in held)
    assert room >= winner.nodes, f"{winner.name} does not fit without {sorted(names)}"


def report(entries: list[Entry], account: Account, took: float, figures: str) -> None:
    """Compare with the oracle, and print."""
    begin = min(account.submitted.values())
    final = {attempt.job: attempt for attempt in account.attempts}
    lengths = {name: a.last_end - a.placed for name, a in final.items()}
    backlog = max(attempt.placed for attempt in account.attempts)
    mean = integral(account.promised, begin, backlog) / (backlog - begin)
    bound = integral(account.busy, begin, backlog) / (backlog - begin)
    oracle = simulate(
        [
            Arrival(e.name, e.nodes, lengths[e.name], account.submitted[e.name] - begin, e.gpus,
                    e.priority, bound=e.bound)
            for e in entries
        ],
        fabric(NODE_COUNT, GPUS, per_leaf=16),
    )  # fmt: skip
    perfect = oracle.gpu_seconds / oracle.backlog_until
    pods = sum(len(attempt.nodes) for attempt in account.attempts)
    share, total = mean / perfect, NODE_COUNT * GPUS
    print(
        f"\n{len(entries)} jobs, {pods} pods in {took:.0f} s:"
        f" {len(entries) / took:.2f} jobs/s, {pods / took:.1f} pods/s"
        f"\nGPUs in use while jobs wait: {mean:.0f} of {total} ({mean / total:.1%});"
        f" oracle {perfect:.0f} ({perfect / total:.1%}); ratio {share:.3f};"
        f" under bound pods {bound:.0f}"
        f"\nbacklog {backlog - begin:.0f} s, oracle {oracle.backlog_until:.0f} s"
        f"\npreempted {sum(bool(a.preempted_for) for a in account.attempts)},"
        f" oracle {sum(oracle.preempted.values())}"
    )
    first = {a.job: a.placed - account.submitted[a.job] for a in reversed(account.attempts)}
    for priority in sorted(PRIORITIES, reverse=True):
        waits = [first[e.name] for e in entries if e.priority == priority]
        print(
            f"priority {priority}: waited {sum(waits) / len(waits):.0f} s,"
            f" {max(waits):.0f} s at most"
        )
    for line in figures.splitlines():
        if line.startswith(("llmtrain_operator_preemptions_total", "llmtrain_operator_backfilled_t",
                            "llmtrain_operator_placement_seconds_s",
                            "llmtrain_operator_placement_seconds_c")):  # fmt: skip
            print(line)
    assert share >= 0.95
