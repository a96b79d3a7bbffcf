"""An assignment that no status write takes lapses, and its nodes are free again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmtrain_core.queueing import Allocation, Assignment, ClusterState, PendingJob, Unschedulable
from llmtrain_core.topology.inventory import Usage
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.placement_status import placement_status
from llmtrain_operator.scheduler import loop
from llmtrain_operator.scheduler.lapses import ASSIGNMENT_SECONDS, NO_LAPSE
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.memory import Queue
from tests.support.operator_harness.scheduling import (
    GPU,
    as_pending,
    cluster,
    decide,
    in_use,
    nodes,
    record,
    waiting_job,
)

pytestmark = pytest.mark.unit


class Queued:
    """Two jobs that need the same two nodes, a clock, and statuses that are written by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.records = {"a": record("a"), "b": record("b")}
        self.now = 1000.0
        self.lapsed = 0
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)
        self.scheduler = Scheduler(
            self.pending, self.cluster, self.view, lambda _: None, on_lapsed=self.count
        )

    def count(self) -> None:
        self.lapsed += 1

    def view(self, uid: str) -> JobView | None:
        return self.records[uid].view if uid in self.records else None

    def pending(self) -> Queue:
        found = {uid: as_pending(r) for uid, r in self.records.items()}
        return {uid: job for uid, job in found.items() if job is not None}

    def cluster(self, assignments: Mapping[str, Assignment]) -> ClusterState:
        taken = in_use(self.records.values(), [], assignments)
        return cluster(nodes(2, gpus=2), tuple(taken))

    async def after(self, seconds: float) -> None:
        self.now += seconds
        await self.scheduler.cycle()

    def assigned(self) -> list[str]:
        return [uid for uid in ("a", "b") if isinstance(self.scheduler.decision(uid), Assignment)]


async def test_an_assignment_that_no_status_write_takes_lapses_and_the_job_goes_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    queued = Queued(monkeypatch)
    await queued.after(0)
    first = queued.scheduler.decision("a")
    assert isinstance(first, Assignment)
    await queued.after(29)
    assert queued.assigned() == ["a"] and queued.lapsed == 0
    await queued.after(1)
    assert queued.assigned() == ["b"] and queued.lapsed == 1
    assert "job=a its status was not written in time" in caplog.text
    waits = queued.scheduler.decision("a")
    assert isinstance(waits, Unschedulable) and "could not be written within 30 s" in waits.message
    assert not queued.scheduler.reserve("a", first), "a write that comes too late takes no nodes"
    await queued.after(30)
    assert queued.assigned() == ["a"], "alone again, it gets another chance after 30 s"
    await queued.after(30)
    assert queued.assigned() == ["b"] and queued.lapsed == 3
    await queued.after(30)
    assert queued.assigned() == [] and queued.lapsed == 4
    await queued.after(29)
    assert queued.assigned() == [], "each lapse doubles the delay"
    await queued.after(1)
    assert queued.assigned() == ["a"]


async def test_an_assignment_that_is_being_written_does_not_lapse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued = Queued(monkeypatch)
    await queued.after(0)
    first = queued.scheduler.decision("a")
    assert isinstance(first, Assignment) and queued.scheduler.reserve("a", first)
    await queued.after(300)
    assert queued.assigned() == ["a"], "the write may have been applied"
    queued.records["a"] = record("a", {"placement": placement_status(first).to_wire()})
    await queued.after(1)
    assert queued.assigned() == [] and queued.lapsed == 0


async def test_an_assignment_does_not_lapse_while_the_job_waits_for_its_turn_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued = Queued(monkeypatch)
    await queued.after(0)
    first = queued.scheduler.decision("a")
    assert isinstance(first, Assignment)
    queued.scheduler.wait_for_turn("a")
    await queued.after(300)
    assert queued.assigned() == ["a"] and queued.scheduler.reserve("a", first)
    queued.scheduler.release("a")  # the status write was denied
    await queued.after(29)
    assert queued.assigned() == ["a"]
    await queued.after(1)
    assert queued.assigned() == ["b"] and queued.lapsed == 1


async def test_a_job_whose_status_can_be_written_again_starts_although_small_jobs_keep_arriving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small job arrives every 30 s and runs for 90 s. The large one needs both nodes."""
    now = 1000.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    queue: dict[str, PendingJob] = {"large-0": waiting_job("large-0", 2, priority=100)}
    running: dict[str, tuple[str, float]] = {}
    """The node of each job that runs, and the end of the job."""

    def seen(assignments: Mapping[str, Assignment]) -> ClusterState:
        held = [(uid, node) for uid, (node, _) in running.items()]
        held += [(uid, node) for uid, found in assignments.items() for node in found.nodes]
        ends = tuple(
            Allocation(uid, "ns", 0, (node,), {GPU: 8}, end, preemptible=False)
            for uid, (node, end) in running.items()
        )
        used = tuple(Usage(node, GPU, 8, uid) for uid, node in held)
        return cluster(nodes(2), used, allocations=ends)

    scheduler = Scheduler(
        lambda: dict(queue), seen, lambda _: JobView({}, {}, {"attempt": 0}), lambda _: None
    )
    await scheduler.cycle()
    assert isinstance(scheduler.decision("large-0"), Assignment)
    now += ASSIGNMENT_SECONDS + 1
    before = 0
    for number in range(100):
        running = {uid: found for uid, found in running.items() if found[1] > now}
        queue[f"small-{number}"] = waiting_job(f"small-{number}", 1)
        await scheduler.cycle()
        given = scheduler.assignments()
        if "large-0" in given:
            break
        for uid, found in given.items():
            running[uid] = found.nodes[0], now + 90
            del queue[uid]
            before += 1
        now += 30
    assert "large-0" in scheduler.assignments()
    assert before, "it goes behind them for a while"


def test_a_job_is_behind_all_others_for_as_long_as_it_stayed_out_of_the_queue() -> None:
    job, lapses = waiting_job("job-1", 1), NO_LAPSE.next(100.0).next(200.0)
    assert isinstance(lapses.apply_to(job, 259.0), Unschedulable)
    assert lapses.apply_to(job, 260.0) == lapses.apply_to(job, 319.0) == replace(job, deferred=True)
    assert lapses.apply_to(job, 320.0) == job


async def test_a_job_that_was_placed_after_a_lapse_is_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued = Queued(monkeypatch)
    del queued.records["b"]
    await queued.after(0)
    await queued.after(30)
    await queued.after(30)
    found = queued.scheduler.decision("a")
    assert isinstance(found, Assignment) and queued.scheduler.reserve("a", found)
    queued.records["a"] = record("a", {"placement": placement_status(found).to_wire()})
    await queued.after(1)
    assert not queued.scheduler._jobs


def test_a_deferred_job_goes_last_and_takes_nothing_from_others() -> None:
    late = replace(waiting_job("late-0", 1, priority=9), deferred=True)
    found = decide([late, waiting_job("job-1", 1)], cluster(nodes(1)))
    assert isinstance(found["job-1"], Assignment) and isinstance(found["late-0"], Unschedulable)
    low = Allocation("low", "ns", 0, ("n0",), {GPU: 8})
    state = cluster(nodes(1), (Usage("n0", GPU, 8, "low"),), allocations=(low,))
    [waits] = decide([late], state).values()
    assert isinstance(waits, Unschedulable) and waits.reason == "InsufficientGpus"


def test_the_delay_after_a_lapse_is_bounded() -> None:
    lapses = NO_LAPSE
    for _ in range(40):
        lapses = lapses.next(0.0)
    assert (lapses.count, lapses.until) == (40, 3600.0)
