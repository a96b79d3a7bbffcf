"""Containers that a webhook adds to the pods: only the container `trainer` decides. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.records import PodRecord, pod_record
from llmtrain_operator.scheduler.usage import usage
from tests.support.operator_harness.observed import make_observed, node, reason, settle, status
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.unit

RUNS: dict[str, Any] = {"running": {"startedAt": "2026-01-01T11:59:00Z"}}
WAITS: dict[str, Any] = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
BOTH = {"n0": node("n0"), "n1": node("n1")}


def ended(code: int, message: str = "") -> dict[str, Any]:
    end = {"exitCode": code, "reason": "Error", "finishedAt": "2026-01-01T11:59:30Z"}
    return {"terminated": {**end, "message": message}}


def pod_with(
    trainer: dict[str, Any], sidecar: dict[str, Any], phase: str = "Running", index: int = 0
) -> PodRecord:
    """Return a pod in which the sidecar comes first, as a webhook may put it."""
    states = {"mesh": sidecar, "trainer": trainer}
    limits = {"limits": {"nvidia.com/gpu": "2"}}
    return pod_record(
        {
            "metadata": {
                "uid": f"pod-{index}",
                "name": f"job-0-{index}",
                "namespace": "ns",
                "labels": {
                    "llmtrain.dev/job-uid": "uid",
                    "llmtrain.dev/attempt": "0",
                    "llmtrain.dev/node-index": str(index),
                },
                "ownerReferences": [{"controller": True, "uid": "uid"}],
            },
            "spec": {
                "nodeName": f"n{index}",
                "containers": [{"name": "mesh"}, {"name": "trainer", "resources": limits}],
            },
            "status": {
                "phase": phase,
                "containerStatuses": [
                    {"name": name, "state": state} for name, state in states.items()
                ],
            },
        }
    )


def test_the_job_ends_with_its_trainers_and_its_pods_are_deleted() -> None:
    pods = (pod_with(ended(0), RUNS), pod_with(ended(0), RUNS, index=1))
    for policy in ("Running", "None", "All"):
        spec = {"runPolicy": {"cleanPodPolicy": policy}}
        observed = make_observed(status(ConditionType.RUNNING), spec=spec, pods=pods, nodes=BOTH)
        actions, _ = settle(observed)
        assert reason(actions, ConditionType.SUCCEEDED) == ("True", "Completed"), policy
        assert {pod.name for pod in actions.delete_pods} == {"job-0-0", "job-0-1"}, policy


def test_the_job_goes_on_until_the_last_trainer_has_ended() -> None:
    pods = (pod_with(ended(0), RUNS), pod_with(RUNS, RUNS, index=1))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods, nodes=BOTH))
    assert actions.status["phase"] == "Running" and not actions.delete_pods


@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_the_error_of_the_trainer_is_read(phase: str) -> None:
    text = json.dumps({"error": {"reason": "CorpusMissing", "message": "no text", "exitCode": 2}})
    pods = (
        pod_with(ended(2, text), ended(137, "the mesh fell over"), phase),
        pod_with(RUNS, RUNS, index=1),
    )
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods, nodes=BOTH))
    [failure] = actions.status["failures"]
    assert (failure["reason"], failure["exitCode"]) == ("CorpusMissing", 2)
    assert actions.status["phase"] == "Failed"


def test_a_sidecar_that_fails_stops_no_training() -> None:
    pods = (pod_with(RUNS, ended(1)), pod_with(RUNS, ended(0), index=1))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods, nodes=BOTH))
    assert actions.status["phase"] == "Running" and not actions.status.get("failures")


def test_a_sidecar_that_fails_does_not_fail_a_trainer_that_succeeded() -> None:
    pods = tuple(pod_with(ended(0), ended(1), "Failed", index) for index in range(2))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods, nodes=BOTH))
    assert reason(actions, ConditionType.SUCCEEDED) == ("True", "Completed")


def test_a_pod_holds_its_node_until_its_last_container_has_ended() -> None:
    job = record("uid", status())
    pod = pod_with(ended(0), RUNS)
    assert pod.trainer_ended and not pod.ended
    held = {(item.node, item.resource): item.amount for item in usage([job], [pod], {}, {})}
    assert held["n0", "nvidia.com/gpu"] == 2
    assert pod_with(ended(0), ended(0), "Succeeded").ended


def test_the_trainer_says_why_it_does_not_start_before_a_sidecar_does() -> None:
    crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "the mesh"}}
    assert pod_with(WAITS, crash, "Pending").reason == "ImagePullBackOff"
    assert pod_with(RUNS, WAITS, "Pending").reason == "ImagePullBackOff"
