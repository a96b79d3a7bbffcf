"""Disrupted pods, and invalid texts of a trainer. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.records import PodRecord, pod_record
from tests.support.operator_harness.observed import failed, make_observed, pod, settle, status

pytestmark = pytest.mark.unit
DEEP = '{"error": ' + "[" * 100_000 + "]" * 100_000 + "}"
TARGET = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


def raw_pod(exit_code: int, **more: Any) -> dict[str, Any]:
    ended = {"exitCode": exit_code, "reason": "Error", "message": "what the container wrote"}
    return {
        "metadata": {"uid": "p", "name": "job-0-0", "namespace": "ns"},
        "spec": {"nodeName": "n0", "containers": []},
        "status": {
            "phase": "Failed",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
            **more,
        },
    }


@pytest.mark.parametrize(
    ("more", "disruption"),
    [
        ({}, ""),
        ({"reason": "Evicted", "message": "low on memory"}, "Evicted"),
        ({"reason": "Terminated", "conditions": [TARGET]}, "Terminated"),
        ({"conditions": [TARGET]}, "PreemptionByScheduler"),
        ({"conditions": [{**TARGET, "status": "False"}]}, ""),
        ({"reason": "DeadlineExceeded", "message": "too long"}, ""),
    ],
)
def test_disruption_reason_of_a_pod(more: dict[str, Any], disruption: str) -> None:
    record = pod_record(raw_pod(137, **more))
    assert record.disruption == disruption
    assert record.exit_code == 137
    assert record.message == more.get("message", "what the container wrote")


@pytest.mark.parametrize("code", [0, 1, 2, 137, 143, 200])
def test_a_disruption_takes_precedence_over_the_exit_code(code: int) -> None:
    gone = failed(0, code, "shut down", reason="Terminated", disruption="NodeShutdown")
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=(gone, pod(1))))
    [entry] = actions.status["failures"]
    assert (entry["reason"], entry["exitCode"], entry["node"]) == ("NodeShutdown", code, "n0")
    assert actions.status["restarts"] == 1 and "placement" not in actions.status


@pytest.mark.parametrize(
    "gone",
    [
        pod(0, deleting=True, disruption="EvictionByEvictionAPI"),
        failed(0, 143, deleting=True, disruption="EvictionByEvictionAPI"),
    ],
)
def test_a_drained_node_is_not_used_again(gone: PodRecord) -> None:
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=(gone, pod(1))))
    assert actions.status["failures"][0]["reason"] == "EvictionByEvictionAPI"
    assert "placement" not in actions.status


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"error": []}',
        '{"error": {"reason": "A", "message": [1]}}',
        '{"error": {"reason": 1}}',
        '{"error": {"message": "no reason"}}',
        "[" * 4096,
        "9" * 4096,
    ],
)
def test_an_invalid_termination_message_is_shown_as_text(text: str) -> None:
    actions, _ = settle(
        make_observed(status(ConditionType.RUNNING), pods=(failed(0, 2, text), pod(1)))
    )
    assert actions.status["failures"][0]["reason"] == "ExitCode"
    assert actions.status["phase"] == "Failed"


@pytest.mark.parametrize("text", [DEEP, '{"result": {"loss": 1' + "0" * 400 + "}}"])
def test_an_invalid_result_does_not_prevent_success(text: str) -> None:
    pods = (pod(0, "Succeeded", message=text), pod(1, "Succeeded"))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods))
    assert actions.status["phase"] == "Succeeded"


def test_collectives_are_cleaned() -> None:
    good = {"group": "tp", "op": "all_gather", "count": 2**53, "bytesPerStep": 2, "meanSeconds": 1}
    bad = [
        {**good, "op": "\x1b[2J"},
        {**good, "op": "x" * 65},
        {**good, "group": "dp", "count": 2**53 + 1},
    ]
    report = {"collectives": [good, *bad]}
    actions, _ = settle(
        make_observed(
            status(ConditionType.RUNNING),
            pods=(pod(0), pod(1)),
            report=json.loads(json.dumps(report)),
        )
    )
    assert [item["op"] for item in actions.status["progress"]["collectives"]] == ["all_gather"]
