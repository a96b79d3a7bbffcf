"""The checklist: what goes wrong, and what follows. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_operator.cache.records import NodeRecord
from llmtrain_operator.job_state.observation import CreateError
from llmtrain_operator.scheduler.decisions import Offer
from tests.support.operator_harness.harness import message
from tests.support.operator_harness.observed import (
    PLACEMENT,
    ago,
    failed,
    node,
    pod,
    reason,
    seen,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit


def test_a_deleted_pod_of_a_running_gang_restarts_it() -> None:
    plan, _ = settle(seen(status(ConditionType.RUNNING), pods=(pod(0),)))
    assert plan.status["attempt"] == 1 and plan.status["restarts"] == 1
    assert plan.status["failures"][0]["reason"] == "PodDeleted"
    assert plan.status["placement"]["attempt"] == 1
    assert [victim.index for victim in plan.delete_pods] == [0]
    assert not plan.create_pods, "the old gang must be gone first"


CORPUS = message("CorpusMissing", "no folder /data", "spec.data.sources[0].uri", "mount it", 2)
PEER = message("PeerLost", "a peer was lost", "", "", 200)

FAILURES = [
    # pods, restarted?, reason, in the message
    ((failed(0, 2, CORPUS), pod(1)), False, "CorpusMissing", "spec.data.sources[0].uri: no folder"),
    ((failed(0, 1), pod(1)), False, "ExitCode", "exit code 1"),
    ((failed(0, 127, "garbage \x00\n"), pod(1)), False, "ExitCode", "garbage"),
    ((failed(0, 137), pod(1)), True, "ExitCode", "exit code 137"),
    ((failed(0, 143), pod(1)), True, "ExitCode", "exit code 143"),
    ((failed(0, 143, deleting=True), pod(1)), True, "PodDeleted", "deleted by another client"),
    ((failed(0, 137, reason="OOMKilled"), pod(1)), True, "OutOfMemory", "raise the memory limit"),
    ((failed(0, 200, PEER, at=20), pod(1)), True, "PeerLost", "a peer was lost"),
    ((failed(0, 200, PEER, at=1), failed(1, 2, CORPUS, at=0)), False, "CorpusMissing", "no folder"),
    ((failed(0, 200, PEER), failed(1, 139)), True, "ExitCode", "exit code 139"),
    ((pod(0, "Failed", reason="Evicted", message="disk"), pod(1)), True, "Evicted", "disk"),
    ((pod(0, "Failed", reason="not a reason!"), pod(1)), True, "PodFailed", "pod job-0-0"),
    ((failed(0, 2, message("no reason\n", "x", "", "", 2)), pod(1)), False, "ExitCode", "x"),
]


@pytest.mark.parametrize(("pods", "restarted", "why", "said"), FAILURES)
def test_failures(pods: Any, restarted: bool, why: str, said: str) -> None:
    plan, _ = settle(seen(status(ConditionType.RUNNING), pods=pods))
    entry = plan.status["failures"][-1]
    assert entry["reason"] == why
    assert said in entry["message"]
    if restarted:
        assert plan.status["attempt"] == 1
        assert reason(plan, ConditionType.RESTARTING) == ("True", "GangRestart")
        assert get_condition(plan.status["conditions"], ConditionType.FAILED) is None
        assert {victim.attempt for victim in plan.delete_pods} == {0}
        assert not plan.create_pods
    else:
        assert plan.status["phase"] == "Failed"
        assert reason(plan, ConditionType.FAILED) == ("True", why)
        assert said in text(plan, ConditionType.FAILED)
        assert "attempt" not in plan.status
        assert {victim.phase for victim in plan.delete_pods} <= {"Running"}


def test_a_lost_peer_waits_for_the_cause() -> None:
    plan, _ = settle(seen(status(ConditionType.RUNNING), pods=(failed(0, 200, PEER, at=2), pod(1))))
    assert "failures" not in plan.status
    assert plan.reconcile_after == pytest.approx(8.0)


def test_restarts_are_bounded() -> None:
    observed = seen(
        status(ConditionType.RUNNING, restarts=3, attempt=3, placement={**PLACEMENT, "attempt": 3}),
        pods=(failed(0, 137, attempt=3), pod(1, attempt=3)),
    )
    plan, _ = settle(observed)
    assert reason(plan, ConditionType.FAILED) == ("True", "TooManyRestarts")
    assert "spec.failurePolicy.maxRestarts" in text(plan, ConditionType.FAILED)


def test_without_restarts_the_cause_is_the_reason() -> None:
    observed = seen(
        status(ConditionType.RUNNING),
        spec={"failurePolicy": {"maxRestarts": 0}},
        pods=(failed(0, 137, reason="OOMKilled"), pod(1)),
    )
    plan, _ = settle(replace(observed, pods=observed.pods))
    assert reason(plan, ConditionType.FAILED)[0] == "True"


def test_only_ten_failures_are_kept() -> None:
    old = [
        {"time": ago(9000 - i), "attempt": i, "reason": "ExitCode", "message": ""}
        for i in range(10)
    ]
    observed = seen(
        status(ConditionType.RUNNING, failures=old, restarts=1),
        pods=(failed(0, 137), pod(1)),
        spec={"failurePolicy": {"maxRestarts": 100}},
    )
    plan, _ = settle(observed)
    assert len(plan.status["failures"]) == 10


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [
        ({"n0": node("n0")}, True),
        ({"n0": node("n0"), "n1": node("n1", ready=False, since=100)}, True),
        ({"n0": node("n0"), "n1": node("n1", ready=False, since=3)}, False),
    ],
)
def test_a_lost_node_means_a_new_placement(nodes: dict[str, NodeRecord], lost: bool) -> None:
    plan, observed = settle(seen(status(ConditionType.RUNNING), pods=(pod(0), pod(1)), nodes=nodes))
    if not lost:
        assert plan.reconcile_after is not None and plan.reconcile_after <= 27
        return
    assert plan.status["failures"][0]["reason"] == "NodeLost"
    assert "placement" not in plan.status
    assert reason(plan, ConditionType.PLACED) == ("False", "NotPlaced")
    # The pod on the lost node stays Terminating for ever: it must not hold the new gang up.
    offer = Offer(
        1,
        {**PLACEMENT, "attempt": 1, "blocks": [{"path": "", "nodes": ["n2", "n3"]}]},
        "2 nodes",
        ("n2", "n3"),
        {},
    )
    later = replace(
        observed,
        verdict=offer,
        pods=(pod(1, deleting=True),),
        nodes={**nodes, "n2": node("n2"), "n3": node("n3")},
    )
    plan, _ = settle(later)
    assert plan.create_pods == (0, 1)


def test_a_cordoned_node_is_not_used_again() -> None:
    observed = seen(
        status(ConditionType.RUNNING),
        pods=(failed(0, 137), pod(1)),
        nodes={"n0": node("n0"), "n1": node("n1", cordoned=True)},
    )
    plan, _ = settle(observed)
    assert "placement" not in plan.status


def test_repeated_failures_hold_back() -> None:
    failures = [
        {"time": ago(seconds), "attempt": 0, "reason": "ExitCode", "message": ""}
        for seconds in (30, 20, 1)
    ]
    plan, _ = settle(
        seen(
            status(failures=failures, restarts=3, attempt=3, placement={**PLACEMENT, "attempt": 3})
        )
    )
    assert not plan.create_pods
    assert plan.reconcile_after == pytest.approx(1.0)


def test_a_gang_that_does_not_start_in_time_is_released() -> None:
    late = status(attemptStartTime=ago(601))
    plan, _ = settle(seen(late, pods=(pod(0), pod(1, "Pending", reason="Unschedulable"))))
    assert plan.status["failures"][0]["reason"] == "StartupTimeout"
    assert "placement" not in plan.status and plan.status["attempt"] == 1
    assert len(plan.delete_pods) == 2


def test_an_image_that_cannot_be_pulled() -> None:
    bad = (pod(0, "Pending", reason="ErrImagePull"), pod(1, "Pending", reason="ImagePullBackOff"))
    plan, _ = settle(seen(status(), pods=bad))
    assert reason(plan, ConditionType.PODS_READY) == ("False", "ImagePullFailed")
    assert (
        text(plan, ConditionType.PODS_READY).find("spec.workers.image: example.com/trainer:1") > 0
    )
    plan, _ = settle(seen(status(attemptStartTime=ago(601)), pods=bad))
    assert reason(plan, ConditionType.FAILED) == ("True", "ImagePullFailed")
    assert len(plan.delete_pods) == 2


def test_trouble_is_shown() -> None:
    trouble = CreateError("QuotaExceeded", "spec.workers: quota; raise it")
    plan, _ = settle(seen(status(), create_error=trouble))
    assert reason(plan, ConditionType.PODS_READY) == ("False", "QuotaExceeded")
    assert plan.status["reason"] == "QuotaExceeded"
