"""Pods of ranks that have finished may go, or be rejected by a kubelet: the job continues. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.job import format_ranges, parse_ranges
from llmtrain_operator.cache.job_record import job_record
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.scheduler.held_nodes import held_nodes
from tests.support.operator_harness.observed import (
    NOW,
    ago,
    failed,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
)

pytestmark = pytest.mark.unit

RESULT = json.dumps({"result": {"step": 10, "totalSteps": 10, "heldOutLossAfter": 3.0}})


def finished(index: int, seconds: float = 10, **changes: Any) -> PodRecord:
    return pod(index, "Succeeded", finished=ago(seconds), exit_code=0, **changes)


def after(*pods: PodRecord, **situation: Any) -> Observed:
    """A running job of two nodes after these pods were seen for a while."""
    running = status(ConditionType.RUNNING)
    return settle(make_observed(running, pods=pods, **situation))[1]


REJECTED = failed(1, 0, exit_code=None, reason="NodeAffinity", disruption="NodeAffinity")
GONE: dict[str, tuple[tuple[PodRecord, ...], dict[str, Any]]] = {
    "deleted": ((pod(0),), {}),
    "being deleted": ((pod(0), finished(1, deleting=True)), {}),
    "rejected by the kubelet": ((pod(0), REJECTED), {}),
    "rejected without a reason": ((pod(0), failed(1, 0, exit_code=None, reason="")), {}),
    "deleted with its node": ((pod(0),), {"nodes": {"n0": node("n0")}}),
    "on a node that is not ready": (
        (pod(0),),
        {"nodes": {"n0": node("n0"), "n1": node("n1", ready=False)}, "unready_seconds": {"n1": 99}},
    ),
}


@pytest.mark.parametrize("case", GONE)
def test_the_job_continues_without_the_pod_of_a_rank_that_has_finished(case: str) -> None:
    pods, situation = GONE[case]
    before = after(pod(0), finished(1))
    assert before.view.completed_pods == {1}
    actions, continues = settle(replace(before, pods=pods, **situation))
    assert actions.status["phase"] == "Running" and not actions.status.get("failures")
    assert not actions.create_pods and not actions.delete_pods
    actions, _ = settle(replace(continues, pods=(finished(0, message=RESULT), *pods[1:])))
    assert actions.status["phase"] == "Succeeded"
    assert actions.status["progress"]["heldOutLossAfter"] == 3.0
    assert "completedPods" not in actions.status


def test_the_result_of_rank_zero_outlasts_its_pod() -> None:
    before = after(finished(0, message=RESULT), pod(1))
    assert before.view.completed_pods == {0}
    actions, _ = settle(replace(before, pods=(finished(1),)))
    assert actions.status["phase"] == "Succeeded"
    assert actions.status["progress"] == {"step": 10, "totalSteps": 10, "heldOutLossAfter": 3.0}


def test_all_pods_may_go_once_all_are_recorded_but_one() -> None:
    before = after(finished(0, message=RESULT), pod(1))
    actions, _ = settle(replace(before, pods=(pod(1),)))
    assert actions.status["phase"] == "Running"
    assert actions.status["nodes"] == "2/2", "a pod that has succeeded counts"


def test_a_failure_of_another_rank_restarts_the_gang_and_forgets_who_had_finished() -> None:
    before = after(pod(0), finished(1))
    actions, restarting = settle(replace(before, pods=(failed(0, 137),)))
    assert reason(actions, ConditionType.RESTARTING) == ("True", "GangRestart")
    assert actions.status["attempt"] == 1 and restarting.view.completed_pods == frozenset()
    assert "completedPods" not in settle(replace(restarting, pods=()))[0].status


def test_pods_that_end_together_take_no_write() -> None:
    just_now = make_observed(status(ConditionType.RUNNING), pods=(pod(0), finished(1, 0)))
    actions, _ = settle(just_now)
    assert "completedPods" not in actions.status
    assert actions.reconcile_after is not None and actions.reconcile_after <= 2
    soon_after_a_write = after(pod(0), finished(1), seconds_since_write=0.5)
    assert not soon_after_a_write.view.completed_pods


def test_an_end_in_the_future_is_recorded_at_once() -> None:
    assert after(pod(0), finished(1, -120)).view.completed_pods == {1}


def test_a_rank_that_finishes_while_others_start_is_not_started_again() -> None:
    starting = make_observed(status(), pods=(finished(0), pod(1, "Pending")))
    _, observed = settle(starting)
    actions = decide(replace(observed, pods=(pod(1, "Pending"),)))
    assert not actions.create_pods and not actions.status.get("failures")


def test_the_node_of_a_pod_that_is_gone_is_not_held() -> None:
    before = after(pod(0), finished(1))
    old = replace(before, raw={**before.raw, "status": {**before.view.status}})
    old.raw["status"]["attemptStartTime"] = ago(3600)
    assert held_nodes(old.view, (pod(0),), NOW.timestamp()) == ("n0",)


def test_ranges() -> None:
    for numbers, text in (
        ((), ""),
        ((3,), "3"),
        ((5, 3, 4), "3-5"),
        ((0, 2, 3, 7), "0,2-3,7"),
    ):
        assert format_ranges(numbers) == text
        assert parse_ranges(text) == frozenset(numbers)


@pytest.mark.parametrize("text", ["0-999999999", "65536", "-", "1,,2", "x"])
def test_an_unreadable_range_concerns_its_job_only(text: str) -> None:
    created = {"creationTimestamp": ago(60)}
    before = status(completedPods={"attempt": 0, "indexes": text})
    raw = make_observed(before, metadata=created).raw
    with pytest.raises(ValueError):
        job_record(raw)


def test_policies_see_the_pods_of_what_earlier_ones_decided() -> None:
    observed = make_observed(status(ConditionType.RUNNING), pods=[pod(0, "Succeeded"), pod(1)])
    draft = StatusDraft(observed)

    def found() -> list[tuple[str, str]]:
        return [(each.name, each.phase) for each in current_pods(draft)]

    assert found() == [("job-0-0", "Succeeded"), ("job-0-1", "Running")]
    draft.set_field("completedPods", {"attempt": 0, "indexes": "1"})
    assert found() == [("job-0-0", "Succeeded"), ("job-0-1", "Succeeded")]
    current_pods(draft).clear()
    assert len(found()) == 2
    draft.set_field("attempt", 1)
    draft.set_field("placement", None)
    assert found() == []
