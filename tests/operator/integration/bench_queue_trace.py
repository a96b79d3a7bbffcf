"""Benchmark of the queue: 300 jobs of mixed size and priority on 128 nodes.

A watcher outside the operator records every revision of every job and pod. The mean number of GPUs
in use while jobs wait is compared with two other schedules of the same trace:

- The *replica* applies the decisions of the queue without any control delay. The difference to it
  is lost to delays.
- The *oracle* is a list schedule in this file. It shares no code with the queue and knows the
  duration of each job. It starts every job that fits, in order of priority and age, without
  reservations and without preemption. So it leaves fewer GPUs idle than rules that must prevent the
  starvation of large jobs. The bound of 95 % is relative to both.

The GPUs of the whole cluster are printed as the upper limit of every scheduler. GPUs in use are
those assigned to a gang, from its placement to the end of its last pod, and those of pods that are
still terminating. The GPUs of bound pods are fewer, because pods are created and bound with a delay
on this machine. They are printed without a bound. The work of preempted gangs counts as use; its
share is printed.
"""

from __future__ import annotations

import heapq
from pathlib import Path

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness import trace_cluster
from tests.support.operator_harness.harness import OperatorHarness, OperatorProcess
from tests.support.operator_harness.queue_trace import (
    FULL_TRACE,
    GPUS,
    PATIENT,
    Entry,
    check_trace,
    check_waits,
    measured,
    play,
    replica,
    waits,
)
from tests.support.operator_harness.queue_watch import TraceRecord, integral

pytestmark = pytest.mark.cluster
TRACE = FULL_TRACE
BAR = 0.95
own_cluster = trace_cluster.own_cluster
harness = trace_cluster.harness


@pytest.mark.timeout(900)
async def test_three_hundred_jobs(
    own_cluster: ControlPlane, harness: OperatorHarness, tmp_path: Path
) -> None:
    operator = OperatorProcess(own_cluster, tmp_path, *PATIENT)
    try:
        played = await play(TRACE, harness, operator, tmp_path, 480)
    finally:
        operator.kill()
    account = played.account
    pods = sum(len(attempt.nodes) for attempt in account.attempts)
    print(
        f"\n{TRACE.jobs} jobs, {pods} pods in {played.seconds:.0f} s:"
        f" {TRACE.jobs / played.seconds:.2f} jobs/s, {pods / played.seconds:.1f} pods/s"
    )
    for line in played.figures.splitlines():
        if line.startswith(
            (
                "llmtrain_operator_preemptions_total",
                "llmtrain_operator_backfilled_t",
                "llmtrain_operator_placement_seconds_s",
                "llmtrain_operator_placement_seconds_c",
            )
        ):
            print(line)
    check_trace(TRACE, account)
    check_use(account)


def check_use(account: TraceRecord) -> None:
    """Print and check GPUs in use and wait times against the replica and the oracle."""
    begin = min(account.submitted.values())
    backlog = max(attempt.placed for attempt in account.attempts)
    used, bound = (
        integral(steps, begin, backlog) / (backlog - begin)
        for steps in (account.assigned, account.busy)
    )
    lost = sum(
        (a.last_end - a.placed) * len(a.nodes) * a.gpus
        for a in account.attempts
        if a.preempted_for and a.bound
    )
    ideal = replica(TRACE, account)
    same = ideal.gpu_seconds / ideal.backlog_until
    until, best = oracle(measured(TRACE, account))
    total = TRACE.nodes * GPUS
    for name, value, span in (
        ("in use", used, backlog - begin),
        ("of bound pods", bound, backlog - begin),
        ("replica", same, ideal.backlog_until),
        ("oracle", best, until),
        ("of the cluster", total, 0.0),
    ):
        print(f"GPUs, {name}: {value:.0f} ({value / total:.1%}), for {span:.0f} s")
    stopped = sum(bool(a.preempted_for) for a in account.attempts)
    print(f"preempted {stopped} ({lost / (total * (backlog - begin)):.1%} of all GPU-seconds),")
    print(f"in the replica {sum(ideal.preempted.values())}")
    found = waits(TRACE, account, ideal)
    for name, (seconds, longest) in found.items():
        mean = sum(seconds) / len(seconds)
        print(f"{name}: waited {mean:.0f} s, max {max(seconds):.0f} s; replica max {longest:.0f} s")
    print(f"ratios: replica {used / same:.3f}, oracle {used / best:.3f}, bound {bound / best:.3f}")
    check_waits(found)
    assert used >= BAR * same, "too few GPUs in use compared with the replica: delays are too long"
    assert used >= BAR * best, "too few GPUs in use compared with the oracle"


def oracle(jobs: list[tuple[Entry, float, float]]) -> tuple[float, float]:
    """Return the time of the last start, and the mean number of GPUs in use until then."""
    free, arriving = [GPUS] * TRACE.nodes, sorted(jobs, key=lambda job: job[2])
    waiting: list[tuple[Entry, float, float]] = []
    ends: list[tuple[float, str, int, list[int]]] = []
    now = used = 0.0
    while arriving or waiting:
        next_event = min([job[2] for job in arriving[:1]] + [end[0] for end in ends[:1]])
        used += (GPUS * TRACE.nodes - sum(free)) * (next_event - now)
        now = next_event
        while ends and ends[0][0] <= now:
            _, _, gpus, nodes = heapq.heappop(ends)
            for node in nodes:
                free[node] += gpus
        while arriving and arriving[0][2] <= now:
            waiting.append(arriving.pop(0))
        for job in sorted(waiting, key=lambda job: (-job[0].priority, job[2])):
            entry, length, _ = job
            candidates = sorted(
                (n for n in range(TRACE.nodes) if free[n] >= entry.gpus), key=free.__getitem__
            )
            if len(candidates) >= entry.nodes:
                nodes = candidates[: entry.nodes]
                for node in nodes:
                    free[node] -= entry.gpus
                heapq.heappush(ends, (now + length, entry.name, entry.gpus, nodes))
                waiting.remove(job)
    return now, used / now
