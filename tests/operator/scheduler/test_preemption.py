"""A gang stops for another: the policy, the scheduler's memory, and SIGKILL in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_core.queueing import Assignment, ClusterState, Unschedulable
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import PriorityRecord
from llmtrain_operator.scheduler.decisions import Preemption
from llmtrain_operator.scheduler.held_nodes import held_by_jobs
from llmtrain_operator.scheduler.jobs import allocation_of, expired_allocation
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.memory import Queue
from llmtrain_operator.scheduler.usage import terminating_allocations, usage
from tests.support.operator_harness.observed import make_observed, pod, reason, settle, status, text
from tests.support.operator_harness.scheduling import as_pending, cluster, nodes, record

pytestmark = pytest.mark.unit

CLASSES = {"high": PriorityRecord("high", 9, False), "mid": PriorityRecord("mid", 5, False)}


def test_a_gang_that_has_to_stop_gives_its_nodes_back_and_queues() -> None:
    preempted = Preemption(0, "vip", "preempted by ns/vip, which has a higher priority")
    running = status(ConditionType.RUNNING, restarts=2)
    actions, observed = settle(make_observed(running, pods=(pod(0), pod(1)), decision=preempted))
    assert (
        reason(actions, ConditionType.PLACED) == ("False", "Preempted")
        and text(actions, ConditionType.PLACED) == preempted.message
    )
    assert reason(actions, ConditionType.RUNNING) == ("False", "Preempted")
    assert "placement" not in actions.status and actions.status["phase"] == "Queued"
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 2), "this is no restart"
    assert actions.status["preemptions"] == 1 and "failures" not in actions.status
    assert [victim.index for victim in actions.delete_pods] == [0, 1], (
        "what was written down is done"
    )
    later = replace(observed, pods=(), decision=Unschedulable("InsufficientGpus", "no room"))
    actions, _ = settle(later)
    assert reason(actions, ConditionType.PLACED) == ("False", "InsufficientGpus")
    assert reason(actions, ConditionType.RUNNING) == ("False", "Preempted"), (
        "the reason why it does not run is kept"
    )


@pytest.mark.parametrize(
    "before", [status(ConditionType.RUNNING, attempt=0), status(placed=False, attempt=1)]
)
def test_a_word_about_another_attempt_is_not_heeded(before: dict[str, Any]) -> None:
    actions, _ = settle(make_observed(before, pods=(), decision=Preemption(7, "vip", "")))
    placed = get_condition(actions.status["conditions"], ConditionType.PLACED)
    assert placed is not None and placed["reason"] != "Preempted"
    assert "preemptions" not in actions.status


class Memory:
    """Copies of a cluster of two nodes with two GPUs, changed by hand."""

    def __init__(self) -> None:
        self.records = {name: record(name) for name in ("low", "other")}
        self.pods: list[Any] = []
        self.woken: list[str] = []
        self.now = 0.0

    def cluster(self, assignments: Mapping[str, Assignment]) -> ClusterState:
        records = list(self.records.values())
        nodes_of = held_by_jobs(records, self.pods, self.now)
        held = [allocation_of(r, [], CLASSES, 0.0, nodes_of.get(r.uid, ())) for r in records]
        terminating = terminating_allocations(records, self.pods, 30.0, nodes_of)
        expired = [expired_allocation(r, nodes_of.get(r.uid, ())) for r in records]
        return cluster(
            nodes(2, gpus=2),
            tuple(usage(records, self.pods, assignments, nodes_of)),
            allocations=(*(found for found in held if found), *terminating),
            expired=tuple(found for found in expired if found),
        )

    def pending(self) -> Queue:
        found = {uid: as_pending(r, **CLASSES) for uid, r in self.records.items()}
        return {uid: job for uid, job in found.items() if job is not None}

    def scheduler(self) -> Scheduler:
        def stored(uid: str) -> JobView | None:
            return self.records[uid].view if uid in self.records else None

        return Scheduler(self.pending, self.cluster, stored, self.woken.append)

    def place(self, name: str, attempt: int = 0, **spec: Any) -> None:
        placement = {
            "attempt": attempt,
            "gpusPerNode": 2,
            "blocks": [{"path": "", "nodes": ["n0", "n1"]}],
        }
        self.records[name] = record(name, {"placement": placement, "attempt": attempt}, **spec)


async def test_what_is_decided_is_remembered_until_it_is_done() -> None:
    memory = Memory()
    del memory.records["other"]
    memory.place("low")
    memory.records["vip"] = record("vip", priorityClassName="high")
    scheduler = memory.scheduler()
    await scheduler.cycle()
    preempted = scheduler.decision("low")
    assert (
        isinstance(preempted, Preemption) and preempted.preemptor == "vip" and "low" in memory.woken
    )
    waits = scheduler.decision("vip")
    assert isinstance(waits, Unschedulable) and waits.reason == "Preempting"
    await scheduler.cycle()
    assert scheduler.decision("low") is preempted, (
        "the cache does not show it yet: no other job is preempted"
    )
    memory.records["low"] = record("low", {"attempt": 1})
    memory.pods = [pod(i, owner="low", node=f"n{i}", job="low") for i in range(2)]
    memory.records["rival"] = record("rival", priorityClassName="high")
    memory.records["rival"].raw["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    await scheduler.cycle()
    assert not isinstance(scheduler.decision("low"), Preemption)
    memory.pods = []
    await scheduler.cycle()
    assert isinstance(scheduler.decision("vip"), Assignment), "the room was made for it"
    assert isinstance(scheduler.decision("rival"), Unschedulable), "older, but the room is not its"


async def test_nobody_stops_for_a_job_that_went_away() -> None:
    memory = Memory()
    del memory.records["other"]
    memory.place("low")
    memory.records["vip"] = record("vip", priorityClassName="high")
    scheduler = memory.scheduler()
    await scheduler.cycle()
    assert isinstance(scheduler.decision("low"), Preemption)
    del memory.records["vip"]
    await scheduler.cycle()
    assert scheduler.decision("low") is None


async def test_a_spare_that_replaces_a_node_is_given_to_no_other_job() -> None:
    memory = Memory()
    memory.records = {"owner": record("owner"), "other": record("other")}
    scheduler = memory.scheduler()
    scheduler.claim("owner", frozenset({"n1"}))
    await scheduler.cycle()
    assert assigned(scheduler) == []
    scheduler.release("owner")
    await scheduler.cycle()
    assert len(assigned(scheduler)) == 1
    # The status shows the new attempt: the claim is over.
    scheduler = memory.scheduler()
    scheduler.claim("owner", frozenset({"n1"}))
    memory.records["owner"] = record("owner", {"attempt": 1})
    await scheduler.cycle()
    assert len(assigned(scheduler)) == 1


def assigned(scheduler: Scheduler) -> list[str]:
    return [n for n in ("owner", "other") if isinstance(scheduler.decision(n), Assignment)]
