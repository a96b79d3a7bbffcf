"""Where a job goes whose nodes are drained: before pending jobs, and to spares of others last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Allocation, Assignment, ClusterState, PendingJob, RunningJob
from llmtrain_core.queueing.quarantine import NodeLists, Quarantine
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import check
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import JobRecord, NodeRecord
from llmtrain_operator.config import Config
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.scheduler.cycle import displaced, find_place_elsewhere
from llmtrain_operator.scheduler.decisions import Preemption
from llmtrain_operator.scheduler.jobs import running_job
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.snapshot import ClusterReader
from tests.support.operator_harness.observed import PLACEMENT, pod, status
from tests.support.operator_harness.scheduling import (
    GPU,
    as_pending,
    cluster,
    in_use,
    record,
    waiting_job,
)

pytestmark = pytest.mark.unit

DEADLINE = "2026-01-01T12:10:00Z"
BEFORE, AFTER = 1767268800.0, 1767269400.0
"""Noon, and the deadline."""
SHAPE: dict[str, Any] = {
    "workers": {"gpusPerNode": 8, "command": ["x"]},
    "parallelism": {"tensor": 8, "data": 2},
}


def job(*nodes: str, leaves: tuple[str, ...] = ("n1",), saved: int = 40, **spec: Any) -> JobRecord:
    """A running job on these nodes, some of which are drained since step 20."""
    move = {"attempt": 0, "afterCheckpoint": 20, "nodes": [*leaves], "deadline": DEADLINE}
    return record(
        "job",
        status(
            ConditionType.RUNNING,
            placement={**PLACEMENT, "gpusPerNode": 8, "blocks": [{"path": "", "nodes": [*nodes]}]},
            progress={"step": 41, "totalSteps": 100, "lastCheckpointStep": saved},
            move=move,
        ),
        **SHAPE,
        **spec,
    )


def as_running(found: JobRecord, now: float = BEFORE) -> RunningJob:
    checked = check(found.name, found.raw["spec"])
    running = running_job(found, checked, {}, now, Request.of)
    assert running is not None
    return running


def state(found: JobRecord, *free: str, cordoned: tuple[str, ...] = ("n1",)) -> ClusterState:
    """A cluster of the job's nodes and these free ones."""
    names = [*found.view.placed_nodes, *free]
    nodes = [Node(name, {}, {GPU: 8}, cordoned=name in cordoned) for name in names]
    return cluster(nodes, tuple(in_use([found])), running=(as_running(found),))


def test_it_may_leave_after_a_newer_checkpoint_or_at_the_deadline() -> None:
    assert as_running(job("n0", "n1")).leaving == {"n1"}
    old = job("n0", "n1", saved=20)
    assert as_running(old).leaving == frozenset()
    assert as_running(old, AFTER).leaving == {"n1"}


def test_the_nodes_that_are_not_drained_may_be_used_again() -> None:
    found = job("n0", "n1")
    assignment = find_place_elsewhere(as_running(found), state(found, "n2"))
    assert assignment is not None and set(assignment.nodes) == {"n0", "n2"}
    assert assignment.attempt == 1
    assert find_place_elsewhere(as_running(found), state(found)) is None


def test_a_drained_node_is_left_even_if_the_job_tolerates_its_taint() -> None:
    found = job("n0", "n1")
    here = state(found, "n2", cordoned=())
    assignment = find_place_elsewhere(as_running(found), here)
    assert assignment is not None and "n1" not in assignment.nodes


def test_the_spares_of_other_jobs_come_last() -> None:
    found = job("n0", "n1")
    spare = Allocation("other", "ns", 0, ("n2",), {GPU: 8})
    here = replace(state(found, "n2", "n3"), spares=(spare,))
    assignment = find_place_elsewhere(as_running(found), here)
    assert assignment is not None and set(assignment.nodes) == {"n0", "n3"}
    here = replace(state(found, "n2"), spares=(spare,))
    assignment = find_place_elsewhere(as_running(found), here)
    assert assignment is not None and set(assignment.nodes) == {"n0", "n2"}


def suspected(found: JobRecord, here: ClusterState) -> tuple[RunningJob, ClusterState]:
    lists = NodeLists({}, frozenset({"n2"}))
    return as_running(found), replace(here, quarantine=Quarantine(lists))


def avoided(found: JobRecord, here: ClusterState) -> tuple[RunningJob, ClusterState]:
    running = as_running(found)
    return replace(running, next=replace(running.next, avoided_nodes=frozenset({"n2"}))), here


@pytest.mark.parametrize("case", [suspected, avoided])
def test_nodes_that_may_be_faulty_come_last(
    case: Callable[[JobRecord, ClusterState], tuple[RunningJob, ClusterState]],
) -> None:
    found = job("n0", "n1")
    assignment = find_place_elsewhere(*case(found, state(found, "n2", "n3")))
    assert assignment is not None and set(assignment.nodes) == {"n0", "n3"}
    assignment = find_place_elsewhere(*case(found, state(found, "n2")))
    assert assignment is not None and set(assignment.nodes) == {"n0", "n2"}


def test_it_moves_to_no_node_whose_reservation_has_expired() -> None:
    """It would displace the job that had reserved it."""
    found = job("n0", "n1")
    expired = Allocation("late", "ns", 0, ("n2",), {GPU: 8})
    here = replace(state(found, "n2", "n3"), expired=(expired,))
    assignment = find_place_elsewhere(as_running(found), here)
    assert assignment is not None and set(assignment.nodes) == {"n0", "n3"}


def test_it_moves_to_no_node_whose_gpus_have_too_little_memory() -> None:
    found = job("n0", "n1")
    handlers = ChangeHandlers(*[lambda *_: None] * 7)
    informers = Informers(cast(KubeApi, None), None, False, handlers, Metrics())
    informers.jobs._store(found.uid, None, found)
    for name in ("n0", "n1", "n2", "n3"):
        node = Node(name, {}, {GPU: 8, "memory": 2**34}, cordoned=name == "n1")
        informers.nodes._store(name, None, NodeRecord(node, ""))
    reader = ClusterReader(informers, CheckedJobs(), lambda *_: frozenset({"n2"}), Config())
    here = reader.cluster_state({})
    [running] = here.running
    assignment = find_place_elsewhere(running, here)
    assert assignment is not None and set(assignment.nodes) == {"n0", "n3"}


async def test_it_displaces_a_job_whose_reservation_has_expired_if_no_other_node_is_free() -> None:
    found = job("n0", "n1")
    expired = Allocation("late", "ns", 0, ("n2",), {GPU: 8}, attempt=4)
    late = record("late", {"attempt": 4})
    views = {"job": found.view, "late": late.view}

    def seen(assignments: Mapping[str, Assignment]) -> ClusterState:
        return replace(state(found, "n2"), expired=(expired,))

    woken: list[str] = []
    scheduler = Scheduler(dict, seen, views.get, woken.append, leaving_jobs=lambda: ["job"])
    await scheduler.cycle()
    assert set(scheduler.assignments()["job"].nodes) == {"n0", "n2"}
    told = scheduler.decision("late")
    assert isinstance(told, Preemption) and told.expired and told.attempt == 4
    assert set(woken) == {"job", "late"}


def test_a_job_does_not_displace_itself() -> None:
    found = job("n0", "n1")
    expired = Allocation("job", "ns", 0, ("n0",), {GPU: 8})
    here = replace(state(found, "n2"), expired=(expired,))
    assignment = find_place_elsewhere(as_running(found), here)
    assert assignment is not None
    assert displaced([(as_running(found).next, assignment)], here) == {}


def moved(found: JobRecord, memory: int) -> Assignment:
    """Where a job goes whose pods request that much memory: n2 has 16 GiB, n3 has 64 GiB."""
    informers = Informers(
        cast(KubeApi, None), None, False, ChangeHandlers(*[lambda *_: None] * 7), Metrics()
    )
    informers.jobs._store(found.uid, None, found)
    for name, bits in (("n0", 36), ("n1", 36), ("n2", 34), ("n3", 36)):
        node = Node(name, {}, {GPU: 8, "memory": 2**bits}, cordoned=name == "n1")
        informers.nodes._store(name, None, NodeRecord(node, ""))
    for index in (0, 1):
        running = pod(index, job="job", owner="job", resources=((GPU, 8), ("memory", memory)))
        informers.pods._store(running.uid, None, running)
    reader = ClusterReader(informers, CheckedJobs(), lambda *_: frozenset(), Config())
    here = reader.cluster_state({})
    assignment = find_place_elsewhere(here.running[0], here)
    assert assignment is not None
    return assignment


def test_it_moves_only_where_its_pods_fit_with_what_admission_has_added() -> None:
    """A LimitRange sets requests, and a webhook adds containers: the spec has neither."""
    assignment = moved(job("n0", "n1"), 2**35)
    assert set(assignment.nodes) == {"n0", "n3"}
    assert assignment.resources["memory"] == 2**35


def test_its_next_pods_are_not_resized_as_those_that_run() -> None:
    found = job("n0", "n1")
    found.view.stored_placement["resources"] = {GPU: 8, "memory": 2**32, "pods": 1}
    assignment = moved(found, 2**35)
    assert set(assignment.nodes) == {"n0", "n2"}
    assert assignment.resources["memory"] == 2**32


def test_it_moves_with_fewer_spares_of_its_own() -> None:
    found = job("n0", "n1", topology={"spares": 1})
    assignment = find_place_elsewhere(as_running(found), state(found, "n2"))
    assert assignment is not None and set(assignment.nodes) == {"n0", "n2"}


async def test_it_gets_free_nodes_before_a_job_that_waits() -> None:
    found = job("n0", "n1")
    waiting: dict[str, PendingJob] = {"late-1": waiting_job("late-1", 1)}

    def seen(assignments: Mapping[str, Assignment]) -> ClusterState:
        here = state(found, "n2")
        return replace(here, usage=tuple(in_use([found], assignments=assignments)))

    def stored(uid: str) -> JobView | None:
        return found.view if uid == "job" else None

    woken: list[str] = []
    scheduler = Scheduler(lambda: waiting, seen, stored, woken.append, leaving_jobs=lambda: ["job"])
    await scheduler.cycle()
    given = scheduler.decision("job")
    assert isinstance(given, Assignment) and set(given.nodes) == {"n0", "n2"}
    assert not isinstance(scheduler.decision("late-1"), Assignment)
    await scheduler.cycle()
    assert scheduler.decision("job") == given, "it has time to take it"


async def test_it_gets_no_spare_that_its_job_is_about_to_use() -> None:
    found, other = job("n0", "n1"), record("other", status(ConditionType.RUNNING), **SHAPE)
    views = {"job": found.view, "other": other.view}
    spare = Allocation("other", "ns", 0, ("n2",), {GPU: 8})

    def seen(assignments: Mapping[str, Assignment]) -> ClusterState:
        here = replace(state(found, "n2"), spares=(spare,))
        return replace(here, usage=tuple(in_use([found], assignments=assignments)))

    scheduler = Scheduler(dict, seen, views.get, lambda _: None, leaving_jobs=lambda: ["job"])
    scheduler.claim("other", frozenset({"n2"}))
    await scheduler.cycle()
    assert not scheduler.assignments()
    scheduler.release("other")  # the status write has failed
    await scheduler.cycle()
    assert set(scheduler.assignments()["job"].nodes) == {"n0", "n2"}


async def test_a_job_that_fails_before_it_moves_starts_again_on_the_nodes_that_it_got() -> None:
    records = {"job": job("n0", "n1")}
    lapsed: list[str] = []

    def waiting() -> dict[str, PendingJob]:
        found = as_pending(records["job"])
        return {"job": found} if isinstance(found, PendingJob) else {}

    def seen(assignments: Mapping[str, Assignment]) -> ClusterState:
        here = state(job("n0", "n1"), "n2")
        used = tuple(in_use(records.values(), assignments=assignments))
        return replace(here, usage=used, running=() if waiting() else here.running)

    scheduler = Scheduler(
        waiting,
        seen,
        lambda uid: records[uid].view,
        lambda _: None,
        leaving_jobs=lambda: [] if waiting() else ["job"],
        on_lapsed=lambda: lapsed.append("job"),
    )
    await scheduler.cycle()
    given = scheduler.decision("job")
    assert isinstance(given, Assignment) and set(given.nodes) == {"n0", "n2"}
    placed = records["job"].view.stored_placement
    records["job"] = record("job", {"attempt": 1, "placement": placed}, **SHAPE)
    assert waiting()
    await scheduler.cycle()
    assert scheduler.decision("job") == given and not lapsed
