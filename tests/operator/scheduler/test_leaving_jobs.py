"""Jobs that leave drained nodes: each gets its turn, and a late move counts as no lapse. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Assignment, ClusterState
from llmtrain_core.validation.check import check
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.scheduler.jobs import running_job
from llmtrain_operator.scheduler.lapses import ASSIGNMENT_SECONDS
from llmtrain_operator.scheduler.loop import MAX_LEAVING, Scheduler
from llmtrain_operator.scheduler.memory import Queue
from tests.support.operator_harness.observed import status
from tests.support.operator_harness.scheduling import as_pending, cluster, nodes, record

pytestmark = pytest.mark.unit

AFTER = 1767269400.0
"""The deadline of the moves, in Unix time."""
MOVE = {"attempt": 0, "afterCheckpoint": 0, "deadline": "2026-01-01T12:10:00Z", "nodes": ["n0"]}


def leaving(name: str, **spec: Any) -> JobRecord:
    """A running job that may leave the first of its nodes."""
    progress = {"lastCheckpointStep": 5}
    return record(name, status(ConditionType.RUNNING, progress=progress, move=MOVE), **spec)


class Drained:
    """A scheduler of jobs that leave drained nodes, in a cluster of four nodes, and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *jobs: JobRecord):
        self.records = {job.uid: job for job in jobs}
        self.now, self.lapsed = 1000.0, 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.scheduler = Scheduler(
            self.pending,
            self.cluster,
            self.view,
            lambda _: None,
            leaving_jobs=self.leaving,
            on_lapsed=self.count,
        )

    def count(self) -> None:
        self.lapsed += 1

    def view(self, uid: str) -> JobView:
        return self.records[uid].view

    def leaving(self) -> list[str]:
        return [uid for uid, job in self.records.items() if job.view.may_leave(AFTER)]

    def pending(self) -> Queue:
        found = {uid: as_pending(job) for uid, job in self.records.items()}
        return {uid: job for uid, job in found.items() if job is not None}

    def cluster(self, _assignments: Mapping[str, Assignment]) -> ClusterState:
        found = [
            running_job(job, check(job.name, job.raw["spec"]), {}, AFTER, Request.of)
            for job in self.records.values()
        ]
        return cluster(nodes(4, gpus=2), running=tuple(job for job in found if job is not None))


async def test_jobs_that_cannot_move_take_no_turn_of_one_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    invalid = [leaving(f"bad-{n}", parallelism={"tensor": 7}) for n in range(MAX_LEAVING)]
    drained = Drained(monkeypatch, *invalid, leaving("good"))
    assert len(drained.leaving()) == MAX_LEAVING + 1
    for _ in range(3):
        drained.now += 5
        await drained.scheduler._relocate_from_drained_nodes()
    assert list(drained.scheduler.assignments()) == ["good"]


async def test_a_move_that_is_not_taken_counts_as_no_lapse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drained = Drained(monkeypatch, leaving("a"))
    await drained.scheduler._relocate_from_drained_nodes()
    assert list(drained.scheduler.assignments()) == ["a"]
    drained.records["a"] = record("a", {"attempt": 1})  # the gang has failed meanwhile
    await drained.scheduler.cycle()
    drained.now += ASSIGNMENT_SECONDS
    await drained.scheduler.cycle()
    assert drained.lapsed == 0
