"""The checklist: how a job ends or is stopped, and what is left of it. Pure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.reconcile.checklist import decide
from tests.support.operator_harness.observed import (
    NOW,
    ago,
    failed,
    pod,
    reason,
    seen,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit


def test_all_succeeded() -> None:
    result = json.dumps(
        {"result": {"step": 10, "totalSteps": 10, "heldOutLossAfter": 3.0, "evil": "x" * 10}}
    )
    pods = (pod(0, "Succeeded", message=result), pod(1, "Succeeded"))
    plan, _ = settle(seen(status(ConditionType.RUNNING), pods=pods))
    assert plan.status["phase"] == "Succeeded"
    assert plan.status["progress"] == {"step": 10, "totalSteps": 10, "heldOutLossAfter": 3.0}
    assert plan.status["completionTime"] == format_time(NOW)
    assert reason(plan, ConditionType.RUNNING)[0] == "False"
    assert not plan.delete_pods, "finished pods stay for their logs"


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "{",
        "[]",
        '{"result": 3}',
        '{"result": {"step": "x"}}',
        '{"result": {"step": -1, "loss": NaN}}',
        '"x"',
    ],
)
def test_a_result_that_makes_no_sense_is_left_out(garbage: str) -> None:
    pods = (pod(0, "Succeeded", message=garbage), pod(1, "Succeeded"))
    plan, _ = settle(seen(status(ConditionType.RUNNING), pods=pods))
    assert plan.status["phase"] == "Succeeded"
    assert not plan.status.get("progress", {}).get("step")


def test_suspend_and_resume() -> None:
    suspended = {"suspend": True}
    plan, observed = settle(
        seen(status(ConditionType.RUNNING), spec=suspended, pods=(pod(0), pod(1)))
    )
    assert len(plan.delete_pods) == 2 and "placement" not in plan.status
    assert reason(plan, ConditionType.SUSPENDED)[0] == "False"
    plan, observed = settle(replace(observed, pods=()))
    assert reason(plan, ConditionType.SUSPENDED)[0] == "True"
    assert plan.status["phase"] == "Suspended"
    assert (plan.status["attempt"], plan.status["restarts"]) == (1, 0)
    plan, _ = settle(seen(dict(plan.status)))
    assert reason(plan, ConditionType.SUSPENDED) == ("False", "Resumed")
    assert plan.status["phase"] == "Queued" and plan.status["attempt"] == 1


def test_a_job_that_starts_suspended_keeps_attempt_zero() -> None:
    plan, _ = settle(seen(spec={"suspend": True}))
    assert plan.status["phase"] == "Suspended" and plan.status.get("attempt", 0) == 0


def test_deadline() -> None:
    late = {"runPolicy": {"activeDeadlineSeconds": 30}}
    plan, _ = settle(seen(status(ConditionType.RUNNING), spec=late, pods=(pod(0), pod(1))))
    assert reason(plan, ConditionType.FAILED) == ("True", "DeadlineExceeded")
    assert "spec.runPolicy.activeDeadlineSeconds" in text(plan, ConditionType.FAILED)
    assert len(plan.delete_pods) == 2
    early = {"runPolicy": {"activeDeadlineSeconds": 90}}
    plan, _ = settle(seen(status(ConditionType.RUNNING), spec=early, pods=(pod(0), pod(1))))
    assert plan.status["phase"] == "Running" and plan.reconcile_after == pytest.approx(30)


@pytest.mark.parametrize(("policy", "deleted"), [("All", [0, 1]), ("Running", [1]), ("None", [])])
def test_clean_pod_policy(policy: str, deleted: list[int]) -> None:
    observed = seen(
        status(ConditionType.FAILED, completionTime=ago(5)),
        pods=(failed(0, 1), pod(1)),
        spec={"runPolicy": {"cleanPodPolicy": policy}},
    )
    plan, _ = settle(observed)
    assert [victim.index for victim in plan.delete_pods] == deleted


@pytest.mark.parametrize(("lifetime", "deleted"), [(None, False), (0, True), (4, True), (9, False)])
def test_time_to_live(lifetime: int | None, deleted: bool) -> None:
    policy = {} if lifetime is None else {"ttlSecondsAfterFinished": lifetime}
    observed = seen(
        status(ConditionType.SUCCEEDED, completionTime=ago(5)), spec={"runPolicy": policy}
    )
    plan, _ = settle(observed)
    assert plan.delete_job is deleted


def test_deletion_waits_for_the_pods() -> None:
    observed = seen(
        status(ConditionType.RUNNING),
        pods=(pod(0), pod(1, deleting=True)),
        metadata={"deletionTimestamp": ago(1)},
    )
    plan = decide(observed)
    assert not plan.changed and not plan.remove_finalizer
    assert [victim.index for victim in plan.delete_pods] == [0]
    assert decide(replace(observed, pods=())).remove_finalizer
