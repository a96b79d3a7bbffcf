"""Success, suspension, deadline, cleanup and deletion of a job. Pure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.reconcile.checklist import decide
from tests.support.operator_harness.observed import (
    NOW,
    ago,
    failed,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit


def test_all_succeeded() -> None:
    held_out = {"heldOutLossBefore": 7.0, "heldOutLossDuring": 4.0, "heldOutLossAfter": 3.0}
    result = json.dumps({"result": {"step": 10, "totalSteps": 10, **held_out, "evil": "x" * 10}})
    pods = (pod(0, "Succeeded", message=result), pod(1, "Succeeded"))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods))
    assert actions.status["phase"] == "Succeeded"
    assert actions.status["progress"] == {"step": 10, "totalSteps": 10, **held_out}
    assert actions.status["completionTime"] == format_time(NOW)
    assert reason(actions, ConditionType.RUNNING)[0] == "False"
    assert not actions.delete_pods, "finished pods stay for their logs"


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
def test_an_invalid_result_is_ignored(garbage: str) -> None:
    pods = (pod(0, "Succeeded", message=garbage), pod(1, "Succeeded"))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods))
    assert actions.status["phase"] == "Succeeded"
    assert not actions.status.get("progress", {}).get("step")


def test_suspend_and_resume() -> None:
    suspended = {"suspend": True}
    actions, observed = settle(
        make_observed(status(ConditionType.RUNNING), spec=suspended, pods=(pod(0), pod(1)))
    )
    assert len(actions.delete_pods) == 2 and "placement" not in actions.status
    assert reason(actions, ConditionType.SUSPENDED)[0] == "False"
    actions, observed = settle(replace(observed, pods=()))
    assert reason(actions, ConditionType.SUSPENDED)[0] == "True"
    assert actions.status["phase"] == "Suspended"
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 0)
    actions, _ = settle(make_observed(dict(actions.status)))
    assert reason(actions, ConditionType.SUSPENDED) == ("False", "Resumed")
    assert actions.status["phase"] == "Queued" and actions.status["attempt"] == 1


def test_a_job_that_starts_suspended_keeps_attempt_zero() -> None:
    actions, _ = settle(make_observed(spec={"suspend": True}))
    assert actions.status["phase"] == "Suspended" and actions.status.get("attempt", 0) == 0


def test_deadline() -> None:
    late = {"runPolicy": {"activeDeadlineSeconds": 30}}
    actions, _ = settle(
        make_observed(status(ConditionType.RUNNING), spec=late, pods=(pod(0), pod(1)))
    )
    assert reason(actions, ConditionType.FAILED) == ("True", "DeadlineExceeded")
    assert "spec.runPolicy.activeDeadlineSeconds" in text(actions, ConditionType.FAILED)
    assert len(actions.delete_pods) == 2
    early = {"runPolicy": {"activeDeadlineSeconds": 90}}
    actions, _ = settle(
        make_observed(status(ConditionType.RUNNING), spec=early, pods=(pod(0), pod(1)))
    )
    assert actions.status["phase"] == "Running" and actions.reconcile_after == pytest.approx(30)


@pytest.mark.parametrize(("policy", "deleted"), [("All", [0, 1]), ("Running", [1]), ("None", [])])
def test_clean_pod_policy(policy: str, deleted: list[int]) -> None:
    observed = make_observed(
        status(ConditionType.FAILED, completionTime=ago(5)),
        pods=(failed(0, 1), pod(1)),
        spec={"runPolicy": {"cleanPodPolicy": policy}},
    )
    actions, _ = settle(observed)
    assert [victim.index for victim in actions.delete_pods] == deleted


@pytest.mark.parametrize(("lifetime", "deleted"), [(None, False), (0, True), (4, True), (9, False)])
def test_time_to_live(lifetime: int | None, deleted: bool) -> None:
    policy = {} if lifetime is None else {"ttlSecondsAfterFinished": lifetime}
    observed = make_observed(
        status(ConditionType.SUCCEEDED, completionTime=ago(5)), spec={"runPolicy": policy}
    )
    actions, _ = settle(observed)
    assert actions.delete_job is deleted


@pytest.mark.parametrize("finalizer", ["foregroundDeletion", "example.com/keep"])
def test_a_job_that_is_being_deleted_only_loses_its_pods(finalizer: str) -> None:
    observed = make_observed(
        status(ConditionType.RUNNING),
        pods=(pod(0), pod(1, deleting=True)),
        metadata={"deletionTimestamp": ago(1), "finalizers": [finalizer]},
    )
    actions = decide(observed)
    assert not actions.changed and not actions.remove_finalizer and not actions.create_pods
    assert [victim.index for victim in actions.delete_pods] == [0]
    actions = decide(replace(observed, pods=()))
    assert not actions.changed and not actions.create_pods and not actions.delete_pods


def test_pods_that_are_to_be_orphaned_continue() -> None:
    observed = make_observed(
        status(ConditionType.RUNNING),
        pods=(pod(0), pod(1)),
        metadata={"deletionTimestamp": ago(1), "finalizers": ["orphan"]},
    )
    actions = decide(observed)
    assert not actions.changed and not actions.delete_pods and not actions.create_pods


@pytest.mark.parametrize("deleting", [False, True])
def test_the_finalizer_of_an_earlier_version_is_removed_at_once(deleting: bool) -> None:
    times = {"deletionTimestamp": ago(1)} if deleting else {}
    observed = make_observed(
        status(ConditionType.RUNNING),
        pods=(pod(0), pod(1)),
        metadata={"finalizers": [labels.FINALIZER], **times},
    )
    assert decide(observed).remove_finalizer
    without = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    assert not decide(without).remove_finalizer
