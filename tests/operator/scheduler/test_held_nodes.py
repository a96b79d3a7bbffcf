"""Which nodes a placement holds, and who loses them after the reservation. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import Allocation, Assignment
from llmtrain_core.topology.inventory import Usage
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.cache.records import JobRecord, PodRecord, pod_record
from llmtrain_operator.scheduler.cycle import decide
from llmtrain_operator.scheduler.decisions import Preemption
from llmtrain_operator.scheduler.held_nodes import held_by_jobs
from llmtrain_operator.scheduler.jobs import allocation_of, expired_allocation
from llmtrain_operator.scheduler.usage import terminating_allocations
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    failed,
    make_observed,
    pod,
    reason,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import (
    GPU,
    cluster,
    in_use,
    nodes,
    record,
    total,
    waiting_job,
)

pytestmark = pytest.mark.unit

RESERVATION = 600.0
SPARES = [{"path": "leaf-1", "nodes": ["n2"]}]


def placed(seconds: float, *true: ConditionType, **more: Any) -> JobRecord:
    """A job whose attempt was placed this long ago."""
    return record("uid", status(*true, **{"attemptStartTime": ago(seconds), **more}))


def held(job: JobRecord, *pods: PodRecord) -> tuple[str, ...]:
    found = held_by_jobs([job], pods, NOW.timestamp(), RESERVATION)
    return tuple(found.get("uid", ()))


def test_a_placement_without_pods_holds_its_nodes_for_the_reservation_only() -> None:
    spec: dict[str, Any] = {"failurePolicy": {"startupTimeout": "999999h"}}
    young = record("uid", status(attemptStartTime=ago(RESERVATION - 1)), **spec)
    old = record("uid", status(attemptStartTime=ago(RESERVATION)), **spec)
    assert held(young) == ("n0", "n1")
    assert held(old) == ()
    assert total(in_use([old], now=NOW.timestamp())) == {}


@pytest.mark.parametrize("changes", [{"gated": True}, {"reason": "Unschedulable"}, {"node": "n7"}])
def test_after_the_reservation_only_bound_pods_hold_nodes(changes: dict[str, Any]) -> None:
    waiting = pod(0, "Pending", bound=False, **changes)
    job = placed(RESERVATION)
    assert held(job, waiting) == ()
    assert held(job, pod(0, "Pending"), waiting) == ("n0",)
    assert held(job, pod(0), pod(1)) == ("n0", "n1")
    assert held(job, pod(0, attempt=3)) == (), "a pod of another attempt is none of the placement"


def test_the_node_of_an_ended_pod_is_held_while_the_gang_may_restart_there() -> None:
    job = placed(9 * RESERVATION, ConditionType.RUNNING)
    assert held(job, pod(0), failed(1, 1, at=30)) == ("n0", "n1")
    done = pod(1, "Succeeded", finished=ago(30))
    assert held(job, pod(0), done) == ("n0", "n1")
    # A gang that leaves nodes idle does not keep them from others.
    assert held(job, pod(0), replace(done, finished=ago(RESERVATION + 1))) == ("n0",)
    assert held(job, pod(0)) == ("n0", "n1"), "a running gang without a pod is restarted at once"


def test_a_job_that_is_deleted_or_over_holds_nothing() -> None:
    deleting = placed(1)
    deleting.raw["metadata"]["deletionTimestamp"] = ago(1)
    pods = [pod(0), pod(1, "Pending", bound=False)]
    assert held(deleting) == held(deleting, *pods) == ()
    assert total(in_use([deleting], pods, now=NOW.timestamp())) == {("n0", "uid"): 2}
    [ending] = terminating_allocations([deleting], pods, 30.0, {})
    assert ending.nodes == ("n0",) and ending.ends_at == 30.0
    gone = [pod(0, deleting=True), pod(1, "Failed", deleting=True), pod(2, bound=False)]
    assert total(in_use([], gone, now=NOW.timestamp())) == {("n0", gone[0].uid): 2}
    [ending] = terminating_allocations([], gone, 30.0, {})
    assert (ending.nodes, ending.ends_at, ending.namespace) == (("n0",), 30.0, "ns")
    assert terminating_allocations([], [pod(0, owner="")], 30.0, {}) == [], "an orphan has no end"
    assert held(placed(1, ConditionType.FAILED)) == ()
    done = [pod(index, "Succeeded", finished=ago(1)) for index in (0, 1)]
    assert held(placed(1), *done) == (), "the status does not show the end yet"


@pytest.mark.parametrize("owner", ["gone", "uid"])
@pytest.mark.parametrize("late", [-86_400.0, -91.0, 91.0, 1e9])
def test_pods_that_do_not_end_in_time_keep_nobody_from_preempting(owner: str, late: float) -> None:
    """Their process hangs on a device, or their user gave them years to end."""
    now = NOW.timestamp()
    stuck = pod(0, owner=owner, deleting=True, resources=((GPU, 8),))
    lower = Allocation("lower", "ns", 0, ("n1",), {GPU: 8})
    suspended = record("uid", status(placed=False), suspend=True)
    higher = waiting_job("higher1", 1, priority=10)

    def victims(ends_by: float) -> set[str]:
        pods = [replace(stuck, ends_by=ends_by)]
        ending = terminating_allocations([suspended], pods, now + 30, {})
        used = (*in_use([suspended], pods), Usage("n1", GPU, 8, "lower"))
        state = cluster(nodes(2), used, allocations=(lower, *ending))
        return set(decide({higher.uid: higher}, replace(state, now=now)).preemptions)

    assert victims(now + 30) == set()
    assert victims(now + 30 + late) == {"lower"}


def test_the_grace_period_of_a_pod_is_read() -> None:
    metadata: dict[str, Any] = {"uid": "u", "name": "job-0-0", "namespace": "ns"}
    raw = {"metadata": metadata, "spec": {"containers": []}}
    assert not pod_record(raw).ends_by
    metadata["deletionTimestamp"] = format_time(NOW)
    assert pod_record(raw).deleting and pod_record(raw).ends_by == NOW.timestamp()


def test_spare_nodes_are_not_held() -> None:
    job = placed(0, placement={**PLACEMENT, "spares": SPARES})
    assert held(job) == ("n0", "n1")


def test_an_allocation_has_only_the_nodes_that_are_held() -> None:
    job = placed(RESERVATION)
    assert allocation_of(job, [], {}, 0.0, ()) is None
    found = allocation_of(job, [], {}, 0.0, ("n0",))
    assert found is not None and found.nodes == ("n0",)
    expired = expired_allocation(job, ("n0",))
    assert expired is not None and expired.nodes == ("n1",)
    assert expired_allocation(job, ("n0", "n1")) is None


def test_a_job_that_gets_the_nodes_displaces_the_one_that_did_not_start() -> None:
    expired = Allocation("old", "other", 0, ("n0", "n1"), {GPU: 8}, attempt=4)
    state = cluster(nodes(2), expired=(expired,))
    found = decide({"job-1": waiting_job("job-1", 1)}, state)
    assert isinstance(found.pending["job-1"], Assignment)
    displaced = found.preemptions["old"]
    assert displaced.expired and (displaced.attempt, displaced.preemptor) == (4, "job-1")
    assert "a job of another namespace gets the nodes" in displaced.message
    elsewhere = replace(state, expired=(replace(expired, nodes=("n9",)),))
    assert decide({"job-1": waiting_job("job-1", 1)}, elsewhere).preemptions == {}


def test_a_displaced_job_queues_again_later_each_time() -> None:
    displaced = Preemption(0, "new", "another job starts", expired=True)
    observed = make_observed(status(attemptStartTime=ago(700)), decision=displaced)
    waits = []
    for count in range(1, 9):
        actions, _ = settle(observed)
        assert reason(actions, ConditionType.PLACED) == ("False", "ReservationExpired")
        found = actions.status
        assert found["unstartedAttempts"] == found["attempt"] == count
        assert "preemptions" not in found and "placement" not in found
        waits.append((parse_time(found["backoffUntil"]) - NOW).total_seconds())
        again = {**found, "placement": {**PLACEMENT, "attempt": count}}
        again = {key: value for key, value in again.items() if key != "backoffUntil"}
        observed = make_observed(again, decision=replace(displaced, attempt=count))
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_job_that_backs_off_is_queued_when_its_time_has_come() -> None:
    before = status(placed=False, unstartedAttempts=2, backoffUntil=format_time(NOW))
    actions, _ = settle(make_observed(before))
    assert "backoffUntil" not in actions.status
    assert reason(actions, ConditionType.PLACED) == ("False", "Queued")
    running = status(unstartedAttempts=2)
    actions, _ = settle(make_observed(running, pods=(pod(0), pod(1))))
    assert "unstartedAttempts" not in actions.status, "a gang that starts ends the back-off"


def test_a_gang_restarts_only_on_nodes_that_it_still_holds() -> None:
    idle = pod(1, "Succeeded", finished=ago(900))
    running = status(ConditionType.RUNNING, attemptStartTime=ago(5000))
    actions, _ = settle(make_observed(running, pods=(failed(0, 137), idle)))
    assert actions.status["attempt"] == 1 and "placement" not in actions.status
    recent = pod(1, "Succeeded", finished=ago(30))
    actions, _ = settle(make_observed(running, pods=(failed(0, 137), recent)))
    assert actions.status["placement"]["attempt"] == 1
