"""The checklist of policies, case by case. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import Unschedulable
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.reconcile.writer import status_patch
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


def test_a_new_job_is_accepted_and_waits() -> None:
    actions, _ = settle(make_observed())
    assert actions.status["phase"] == "Queued"
    assert reason(actions, ConditionType.ACCEPTED) == ("True", "Valid")
    assert reason(actions, ConditionType.PLACED) == ("False", "Queued")
    assert not actions.create_pods and not actions.delete_pods


def test_the_placement_is_written_before_any_pod() -> None:
    offer = assignment(0)
    first = decide(make_observed(decision=offer))
    assert first.changed and first.assignment is offer
    assert first.status["placement"]["blocks"] == PLACEMENT["blocks"]
    assert not first.create_pods
    actions, _ = settle(make_observed(decision=offer))
    assert actions.create_pods == (0, 1)
    assert actions.status["phase"] == "Starting"
    assert actions.status["startTime"] == actions.status["attemptStartTime"] == format_time(NOW)


def test_the_first_write_waits_for_the_scheduler() -> None:
    new = make_observed(seconds_known=0.25)
    first = decide(new)
    assert not first.changed and first.reconcile_after == pytest.approx(0.75)
    assert reason(decide(replace(new, seconds_known=1.0)), ConditionType.PLACED)[1] == "Queued"
    placed = decide(replace(new, decision=assignment(0)))
    assert reason(placed, ConditionType.ACCEPTED) == ("True", "Valid"), "in the same write"
    assert reason(placed, ConditionType.PLACED) == ("True", "Placed")
    full = decide(replace(new, decision=Unschedulable("InsufficientGpus", "no")))
    assert reason(full, ConditionType.PLACED) == ("False", "InsufficientGpus")


@pytest.mark.parametrize("spec", [{"suspend": True}, {"parallelism": {"tensor": 3, "data": 1}}])
def test_what_needs_no_scheduler_is_written_at_once(spec: dict[str, Any]) -> None:
    assert decide(make_observed(spec=spec, seconds_known=0.0)).changed


def test_an_assignment_for_another_attempt_is_ignored() -> None:
    offer = assignment(0)
    actions, _ = settle(make_observed(status(placed=False, attempt=1), decision=offer))
    assert "placement" not in actions.status


def test_the_wait_reason_is_shown() -> None:
    actions, _ = settle(
        make_observed(decision=Unschedulable("InsufficientGpus", "needs 2 nodes; 1 is free"))
    )
    assert reason(actions, ConditionType.PLACED) == ("False", "InsufficientGpus")
    assert actions.status["reason"] == "InsufficientGpus"
    assert actions.status["nodes"] == "0/2"


def test_an_invalid_job_gets_no_child_objects() -> None:
    actions, _ = settle(make_observed(spec={"model": {"preset": "gpt-9000"}}))
    assert reason(actions, ConditionType.ACCEPTED) == ("False", "UnknownPreset")
    assert text(actions, ConditionType.ACCEPTED).startswith("spec.model.preset: ")
    assert "use one of" in text(actions, ConditionType.ACCEPTED)
    assert actions.status["phase"] == "Rejected"
    assert not actions.create_pods and not actions.delete_pods and actions.assignment is None


def test_a_refused_job_keeps_its_pods_but_those_of_earlier_attempts() -> None:
    stored = status(attempt=1)
    stored["placement"] = {**stored["placement"], "attempt": 1}
    pods = (pod(0), pod(0, attempt=1), pod(1, attempt=1))
    actions, _ = settle(make_observed(stored, spec={"model": {"preset": "gpt-9000"}}, pods=pods))
    assert [found.attempt for found in actions.delete_pods] == [0]


def test_a_running_gang() -> None:
    actions, _ = settle(make_observed(status(), pods=(pod(0), pod(1))))
    assert reason(actions, ConditionType.RUNNING) == ("True", "Training")
    assert reason(actions, ConditionType.PODS_READY) == ("True", "AllPodsReady")
    assert actions.status["phase"] == "Running"
    assert actions.status["nodes"] == "2/2"
    assert actions.poll_pod is not None and actions.poll_pod.index == 0


def test_the_nodes_of_a_finished_job_show_its_result() -> None:
    ended = (pod(0, "Succeeded", exit_code=0), pod(1, "Succeeded", exit_code=0))
    before = status(ConditionType.RUNNING, phase="Running", nodes="1/2")
    actions, observed = settle(make_observed(before, pods=ended))
    assert (actions.status["phase"], actions.status["nodes"]) == ("Succeeded", "2/2")
    actions, _ = settle(replace(observed, pods=()))
    assert actions.status["nodes"] == "2/2", "its pods may be deleted"
    before = status(ConditionType.RUNNING, phase="Running", nodes="2/2")
    actions, _ = settle(make_observed(before, pods=(pod(0), failed(1, 1))))
    assert (actions.status["phase"], actions.status["nodes"]) == ("Failed", "0/2")


def test_missing_pods_are_created_until_the_gang_runs() -> None:
    actions, _ = settle(make_observed(status(), pods=(pod(1),)))
    assert actions.create_pods == (0,)


def test_pods_of_a_later_attempt_are_kept() -> None:
    actions, _ = settle(make_observed(status(), pods=(pod(0, attempt=1), pod(1, attempt=1))))
    assert not actions.delete_pods and not actions.create_pods


def test_a_progress_report_is_written() -> None:
    report = {
        "attempt": 0,
        "step": 25,
        "totalSteps": 100,
        "loss": 4.5,
        "stepSeconds": 2.0,
        "tokensPerSecond": 1000,
        "mfu": 0.4,
        "phase": "training",
        "restartsInPlace": 2,
        "collectives": [
            {"group": "tp", "op": "x", "count": 1, "bytesPerStep": 2, "meanSeconds": 0.5},
            {"group": "evil"},
            7,
        ],
    }
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)), report=report)
    actions, after = settle(observed)
    found = actions.status["progress"]
    assert found["step"] == 25 and found["tokensPerSecond"] == 1000.0
    assert found["eta"] == format_time(NOW + timedelta(seconds=150))
    assert len(found["collectives"]) == 1
    assert (found["restartsInPlace"], actions.status["restarts"]) == (2, 0)
    assert actions.status["progressPercent"] == "25%"
    later = replace(after, now=NOW + timedelta(seconds=50))
    assert not decide(later).changed, "nothing moved: nothing is written"
    old = replace(observed, report={**report, "attempt": 3})
    assert "progress" not in settle(old)[0].status


def test_cosmetic_changes_are_delayed() -> None:
    running, step = status(ConditionType.RUNNING), {"attempt": 0, "step": 25, "totalSteps": 100}
    _, after = settle(make_observed(running, pods=(pod(0), pod(1))))
    fresh = replace(after, report=step, seconds_since_write=0.5)
    actions = decide(fresh)
    assert not actions.changed
    assert actions.reconcile_after == pytest.approx(1.5)
    assert decide(replace(fresh, seconds_since_write=2.0)).changed


def test_status_patch_removes_absent_fields() -> None:
    observed = make_observed(
        status(ConditionType.RUNNING), pods=(pod(0),), nodes={"n0": node("n0")}
    )
    actions = decide(observed)
    body = status_patch(observed, actions.status)
    assert body["metadata"]["resourceVersion"] == "7"
    assert body["status"]["placement"] is None
    assert "startTime" not in body["status"], "what is the same is not sent"


@pytest.mark.parametrize("stored", [{}, {"revision": 0}, {"revision": 7}, {"revision": 2**31 - 1}])
def test_each_status_write_has_another_revision(stored: dict[str, int]) -> None:
    observed = make_observed({**status(), **stored})
    revision = status_patch(observed, observed.raw["status"])["status"]["revision"]
    assert revision != stored.get("revision", 0)
    assert 0 <= revision < 2**31


def test_no_write_in_a_steady_state() -> None:
    for observed in (
        make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1))),
        make_observed(status(ConditionType.SUCCEEDED, completionTime=ago(5))),
        make_observed(decision=Unschedulable("InsufficientGpus", "no")),
        make_observed(spec={"suspend": True}),
    ):
        _, settled = settle(observed)
        later = replace(settled, now=NOW + timedelta(seconds=60))
        again = decide(later)
        assert not again.changed and not again.create_pods and not again.delete_pods
