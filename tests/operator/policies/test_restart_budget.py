"""What counts towards maxRestarts, what refills it, and how often a gang restarts. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.defaults import MAX_FAILURES
from llmtrain_core.api.failure_info import FailureEvidence, FailureInfo
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.cache.records import NodeRecord, PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.restart_budget import (
    BOUND_DELAY_SECONDS,
    BOUND_SECONDS,
    is_disruption,
    restart_delay,
)
from llmtrain_operator.job_state.status_draft import Actions
from tests.support.operator_harness.harness import message
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    assignment,
    failed,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

PEER = message("PeerLost", "a peer was lost", "", "", 200)
CAUSE = {"time": "2026-01-01T12:00:00.25Z", "rank": 3, "reason": "Signal", "message": "signal 9"}
TERMINATED = message("Terminated", "the pod received a stop signal", "", "", 143)


def attempt(number: int, *true: ConditionType, **more: Any) -> dict[str, Any]:
    """The status of a job whose attempt of this number is placed on n0 and n1."""
    placement = {**PLACEMENT, "attempt": number}
    return status(*true, attempt=number, placement=placement, **more)


DISRUPTED = {
    "a drain": pod(0, deleting=True, disruption="EvictionByEvictionAPI"),
    "a drained pod that has ended": failed(
        0, 143, TERMINATED, deleting=True, disruption="EvictionByEvictionAPI"
    ),
    "preemption by kube-scheduler": pod(0, deleting=True, disruption="PreemptionByScheduler"),
    "a taint": pod(0, deleting=True, disruption="DeletionByTaintManager"),
    "a shutdown of the node": failed(0, 143, reason="Terminated", disruption="Terminated"),
    "pressure on the node": failed(0, 137, reason="Evicted", disruption="Evicted"),
    "a pod of a removed node": failed(0, 137, disruption="DeletionByPodGC"),
    "a rejection": pod(0, "Failed", reason="OutOfcpu", disruption="OutOfcpu", rejected=True),
    "a rejection for the pod": pod(
        0, "Failed", reason="NodeAffinity", disruption="NodeAffinity", rejected=True
    ),
    "a pod that is deleted": pod(0, deleting=True),
}


@pytest.mark.parametrize("gone", DISRUPTED.values(), ids=DISRUPTED)
@pytest.mark.parametrize("allowed", [0, 3])
def test_a_disruption_counts_not_towards_max_restarts(gone: PodRecord, allowed: int) -> None:
    before = attempt(9, ConditionType.RUNNING, restarts=9, restartsCountTowardsMax=allowed)
    gone = replace(gone, attempt=9, name="job-9-0")
    spec = {"failurePolicy": {"maxRestarts": allowed}}
    actions, _ = settle(make_observed(before, pods=(gone, pod(1, attempt=9)), spec=spec))
    found = actions.status
    assert found["attempt"] == found["restarts"] == 10, text(actions, ConditionType.FAILED)
    assert found["restartsCountTowardsMax"] == allowed
    assert reason(actions, ConditionType.RESTARTING)[0] == "True"
    assert found["failures"][-1]["evidence"] != "Job"


@pytest.mark.parametrize(
    "nodes",
    [{"n1": node("n1")}, {"n0": node("n0", ready=False, since=100), "n1": node("n1")}],
    ids=["deleted", "not ready"],
)
def test_a_lost_node_counts_not_towards_max_restarts(nodes: dict[str, NodeRecord]) -> None:
    before = attempt(3, ConditionType.RUNNING, restarts=3, restartsCountTowardsMax=3)
    pods = (pod(0, attempt=3), pod(1, attempt=3))
    actions, _ = settle(make_observed(before, pods=pods, nodes=nodes))
    assert actions.status["failures"][-1]["reason"] == "NodeLost"
    assert (actions.status["attempt"], actions.status["restartsCountTowardsMax"]) == (4, 3)


OWN = {
    "a signal": failed(0, 139, attempt=3),
    "memory": failed(0, 137, reason="OOMKilled", attempt=3),
    "a hang": failed(0, 201, message("RankHung", "no progress", "", "", 201), attempt=3),
    "a lost peer without a cause": failed(0, 200, PEER, at=70, attempt=3),
    "more storage than its limit": failed(
        0, 137, reason="Evicted", disruption="Evicted", over_limit=True, attempt=3
    ),
    "a reason that only a third-party trainer has": failed(
        0, 137, message("OutOfcpu", "the kubelet did it", "", "", 137), attempt=3
    ),
}


@pytest.mark.parametrize("cause", OWN.values(), ids=OWN)
def test_an_own_failure_counts_towards_max_restarts(cause: PodRecord) -> None:
    for count in (2, 3):
        before = attempt(3, ConditionType.RUNNING, restarts=8, restartsCountTowardsMax=count)
        actions, _ = settle(make_observed(before, pods=(cause, pod(1, attempt=3))))
        if count < 3:
            assert actions.status["restartsCountTowardsMax"] == 3
            assert (actions.status["attempt"], actions.status["restarts"]) == (4, 9)
        else:
            assert reason(actions, ConditionType.FAILED) == ("True", "TooManyRestarts")
            assert "after 3 restarts without a newer checkpoint" in text(
                actions, ConditionType.FAILED
            )


def test_a_start_that_takes_too_long_is_an_own_failure() -> None:
    late = FailureInfo(
        "StartupTimeout", "", node="n0", keeps_nodes=False, evidence=FailureEvidence.START
    )
    assert not is_disruption(late)


@pytest.mark.parametrize(
    "left",
    [
        (failed(1, 200, PEER, at=70),),
        (failed(1, 200, PEER, at=1),),
        (pod(0, deleting=True), failed(1, 200, PEER)),
    ],
    ids=["gone", "gone just now", "being deleted"],
)
def test_peers_of_a_drained_pod_that_is_gone_are_not_the_cause(left: tuple[PodRecord, ...]) -> None:
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=left))
    (failure,) = actions.status["failures"]
    assert (failure["reason"], failure["evidence"]) == ("PodDeleted", "Disruption")
    assert "restartsCountTowardsMax" not in actions.status


def reported(observed: Observed, **report: Any) -> tuple[Actions, Observed]:
    return settle(replace(observed, report={"totalSteps": 100, **report}))


def test_a_newer_checkpoint_refills_max_restarts() -> None:
    running = attempt(3, ConditionType.RUNNING, restarts=3, restartsCountTowardsMax=3)
    stored = {**running, "restartCheckpointStep": 20, "progress": {"lastCheckpointStep": 20}}
    pods = (pod(0, attempt=3), pod(1, attempt=3))
    crashed = (failed(0, 139, attempt=3), pod(1, attempt=3))

    actions, same = reported(make_observed(stored, pods=pods), attempt=3, lastCheckpointStep=20)
    assert actions.status["restartsCountTowardsMax"] == 3
    actions, _ = settle(replace(same, report=None, pods=crashed))
    assert reason(actions, ConditionType.FAILED) == ("True", "TooManyRestarts")

    actions, newer = reported(make_observed(stored, pods=pods), attempt=3, lastCheckpointStep=30)
    assert actions.status["restartsCountTowardsMax"] == 0, "shown before the next failure"
    actions, _ = settle(replace(newer, report=None, pods=crashed))
    found = actions.status
    assert (found["restartsCountTowardsMax"], found["restartCheckpointStep"]) == (1, 30)
    assert (found["restarts"], found["attempt"]) == (4, 4)


def test_an_older_checkpoint_is_no_progress() -> None:
    running = attempt(3, ConditionType.RUNNING, restarts=3, restartsCountTowardsMax=2)
    stored = {**running, "restartCheckpointStep": 90, "progress": {"lastCheckpointStep": 90}}
    observed = make_observed(stored, pods=(pod(0, attempt=3), pod(1, attempt=3)))
    actions, after = reported(observed, attempt=3, lastCheckpointStep=50)
    assert actions.status["restartsCountTowardsMax"] == 2
    crashed = (failed(0, 139, attempt=3), pod(1, attempt=3))
    actions, _ = settle(replace(after, report=None, pods=crashed))
    assert actions.status["restartsCountTowardsMax"] == 3
    assert actions.status["restartCheckpointStep"] == 90


def test_a_disruption_keeps_the_count_of_own_failures() -> None:
    before = attempt(2, ConditionType.RUNNING, restarts=2, restartsCountTowardsMax=2)
    before |= {"restartCheckpointStep": 10, "progress": {"lastCheckpointStep": 10}}
    gone = pod(0, attempt=2, deleting=True, disruption="EvictionByEvictionAPI")
    actions, _ = settle(make_observed(before, pods=(gone, pod(1, attempt=2))))
    assert actions.status["restartsCountTowardsMax"] == 2
    assert actions.status["restartCheckpointStep"] == 10


def entries(*seconds_ago: float) -> list[dict[str, Any]]:
    return [
        {"time": ago(seconds), "attempt": 0, "reason": "NodeLost", "message": ""}
        for seconds in seconds_ago
    ]


@pytest.mark.parametrize(
    ("seconds_ago", "delay"),
    [
        ((), 0),
        ((5,), 0),
        ((9, 5), 1),
        ((700, 9, 5), 1),
        ((1210, 609, 8), 0),
        (tuple(range(9, 0, -1)), 60),
        (tuple(range(10, 0, -1)), BOUND_DELAY_SECONDS),
        (tuple(range(3605, 0, -400)), BOUND_DELAY_SECONDS),
        (tuple(range(3610, 0, -401)), 60),
    ],
)
def test_delay_of_a_restart(seconds_ago: tuple[int, ...], delay: float) -> None:
    assert restart_delay(entries(*seconds_ago)) == delay


def test_a_gang_that_is_disrupted_too_often_waits_without_nodes() -> None:
    times = [60 * number for number in range(9, 0, -1)]
    before = attempt(9, ConditionType.RUNNING, restarts=9, failures=entries(*times))
    before["placement"] = {**before["placement"], "spares": [{"path": "leaf-1", "nodes": ["n2"]}]}
    gone = pod(0, attempt=9, deleting=True, disruption="EvictionByEvictionAPI")
    nodes = {name: node(name) for name in ("n0", "n1", "n2")}
    observed = make_observed(before, pods=(gone, pod(1, attempt=9)), nodes=nodes)
    actions, after = settle(observed)
    found = actions.status
    assert reason(actions, ConditionType.PLACED) == ("False", "RestartBackoff")
    assert found["phase"] == "Queued" and "placement" not in found
    until = NOW + timedelta(seconds=BOUND_DELAY_SECONDS)
    assert found["backoffUntil"] == format_time(until)
    words = text(actions, ConditionType.PLACED)
    assert "10 failures and disruptions within an hour, the last one EvictionByEvictionAPI" in words
    assert format_time(until) in words and found["lastRestart"]["action"] == "RestartGang"
    later = replace(after, now=until, pods=())
    actions, later = settle(later)
    assert reason(actions, ConditionType.PLACED) == ("False", "Queued")
    actions, _ = settle(replace(later, decision=assignment(10)))
    assert actions.create_pods == (0, 1), "there is no other delay"


@given(st.lists(st.floats(0, 700), min_size=1, max_size=40))
def test_no_gang_restarts_more_than_18_times_in_an_hour(lifetimes: list[float]) -> None:
    now, starts = 0.0, [0.0]
    failures: list[dict[str, Any]] = []
    for number in range(80):
        now += lifetimes[number % len(lifetimes)]
        entry = {"time": (NOW + timedelta(seconds=now)).isoformat(), "reason": "NodeLost"}
        failures = [*failures, entry][-MAX_FAILURES:]
        now += restart_delay(failures)
        starts.append(now)
    for first, nineteenth in zip(starts, starts[19:], strict=False):
        assert nineteenth - first > BOUND_SECONDS


@pytest.mark.parametrize("own", [False, True])
def test_a_gang_that_never_lives_restarts_ten_times_an_hour(own: bool) -> None:
    """The cluster ends each attempt at once, or the job does and reports made-up checkpoints."""
    end = {"exit_code": 139} if own else {"disruption": "Evicted"}
    now, stored, starts = NOW, status(ConditionType.RUNNING), [NOW]
    for number in range(25):
        stored["progress"] = {"lastCheckpointStep": number + 1}
        ended = pod(0, "Failed", number, finished=format_time(now), **end)
        stored, now = restart(now, stored, (ended, pod(1, attempt=number)))
        starts.append(now)
    assert stored["restarts"] == 25, "the job waits, and does not fail"
    assert stored.get("restartsCountTowardsMax") == (1 if own else None)
    passed = [(moment - NOW).total_seconds() for moment in starts]
    assert passed[:12] == [0, 0, 1, 3, 7, 15, 31, 63, 123, 183, 543, 903]
    assert {later - earlier for earlier, later in pairwise(passed[10:])} == {360}


def restart(
    now: datetime, stored: dict[str, Any], pods: tuple[PodRecord, ...]
) -> tuple[dict[str, Any], datetime]:
    """Let a gang fail. Return the status of the next attempt as it runs, and when it starts."""
    actions, observed = settle(replace(make_observed(stored, pods=pods), now=now))
    assert actions.status["phase"] != "Failed", text(actions, ConditionType.FAILED)
    number = actions.status["attempt"]
    if "backoffUntil" in actions.status:
        now = parse_time(actions.status["backoffUntil"])
    for _ in range(70):
        offer = assignment(number)
        actions, observed = settle(replace(observed, now=now, pods=(), decision=offer))
        if actions.create_pods:
            started = (pod(0, attempt=number), pod(1, attempt=number))
            actions, _ = settle(replace(observed, now=now, pods=started))
            return dict(actions.status), now
        now += timedelta(seconds=actions.reconcile_after or 1)
    raise AssertionError("the gang does not start")


def test_the_bound_needs_no_more_failures_than_the_status_has() -> None:
    """The oldest failures are dropped, so a bound above this number would never be reached."""
    many = entries(*range(MAX_FAILURES, 0, -1))
    assert restart_delay(many) > restart_delay(many[1:])
