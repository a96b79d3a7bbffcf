"""Restarts in place in the status, and the warning of jobs without checkpoints. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.status.job import JobStatus
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.reconcile.events import status_events
from tests.support.operator_harness.observed import (
    NOW,
    failed,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

CAUSE = {"time": "2026-01-01T12:00:00.25Z", "rank": 3, "reason": "Signal", "message": "signal 9"}


def reported(observed: Observed, **report: Any) -> tuple[Actions, Observed]:
    return settle(replace(observed, report=report))


def in_place(count: int, **cause: Any) -> dict[str, Any]:
    return {"attempt": 0, "restartsInPlace": count, "lastRestart": {**CAUSE, **cause}}


def test_a_restart_in_place_is_recorded_once() -> None:
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    actions, after = reported(observed, **in_place(1))
    assert actions.status["lastRestart"] == {
        "time": format_time(NOW),
        "attempt": 0,
        "action": "RestartInPlace",
        "reason": "Signal",
        "message": "signal 9",
        "rank": 3,
        "restartsInPlace": 1,
    }
    assert actions.status["restarts"] == 0 and "restartsCountTowardsMax" not in actions.status
    later = NOW + timedelta(minutes=5)
    assert decide(replace(after, now=later, report=in_place(1))).status == actions.status
    soon = replace(after, now=NOW + timedelta(seconds=5), report=in_place(3, rank=1))
    assert settle(soon)[0].status["lastRestart"] == actions.status["lastRestart"]
    again, _ = settle(replace(after, now=later, report=in_place(3, rank=1)))
    assert again.status["lastRestart"]["restartsInPlace"] == 3
    assert again.status["lastRestart"]["rank"] == 1


def test_a_restart_in_place_makes_one_event() -> None:
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    _, before = settle(observed)
    _, after = reported(before, **in_place(2))
    identity = JobIdentity.of(observed.raw)
    (event,) = status_events(identity, before.view, after.view, format_time(NOW))
    assert (event["type"], event["reason"]) == ("Warning", "RestartInPlace")
    assert event["message"] == (
        "the launchers restarted all ranks in their pods, 2 times in attempt 0; the last cause is"
        " Signal of rank 3: signal 9"
    )
    assert not status_events(identity, after.view, after.view, format_time(NOW))


def test_the_restarts_in_place_of_the_next_attempt_are_recorded() -> None:
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    _, after = reported(observed, **in_place(2))
    actions, after = settle(replace(after, report=None, pods=(failed(0, 139), pod(1))))
    last = actions.status["lastRestart"]
    assert (last["action"], last["attempt"], last["node"]) == ("RestartGang", 0, "n0")
    assert actions.status["progress"]["restartsInPlace"] == 0, "the next attempt has none"
    assert last["reason"] == "ExitCode" and "exit code 139" in last["message"]
    running = replace(after, pods=(pod(0, attempt=1), pod(1, attempt=1)))
    actions, _ = reported(settle(running)[1], **{**in_place(1), "attempt": 1})
    last = actions.status["lastRestart"]
    assert (last["attempt"], last["restartsInPlace"]) == (1, 1)


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ({"reason": "NodeLost"}, {"reason": "ExitCode"}),
        ({"reason": "EvictionByEvictionAPI"}, {"reason": "ExitCode"}),
        ({"reason": "\x1b[31m"}, {"reason": "ExitCode"}),
        ({"reason": ["x"]}, {"reason": "ExitCode"}),
        ({"reason": "x" * 500}, {"reason": "ExitCode"}),
        ({"message": "a\x1b[2J\n" + "b" * 5000}, {"message": "a [2J " + "b" * 505 + "…"}),
        ({"message": None}, {"message": ""}),
        ({"rank": 4}, {"rank": None}),
        ({"rank": True}, {"rank": None}),
        ({"rank": -1}, {"rank": None}),
    ],
)
def test_what_a_pod_says_about_a_restart_is_bounded(
    cause: dict[str, Any], shown: dict[str, Any]
) -> None:
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    actions, _ = reported(observed, **in_place(1, **cause))
    found = actions.status["lastRestart"]
    JobStatus.from_wire(actions.status)
    assert {key: found.get(key) for key in shown} == shown


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "1", 2**53, None])
def test_an_invalid_number_of_restarts_is_ignored(count: Any) -> None:
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    actions, _ = reported(observed, **{**in_place(1), "restartsInPlace": count})
    assert "lastRestart" not in actions.status


CHECKPOINT = {"uri": "file:///checkpoints"}


def test_a_job_without_checkpoints_is_told_what_a_restart_costs() -> None:
    actions, _ = settle(make_observed())
    assert reason(actions, ConditionType.ACCEPTED) == ("True", "Valid")
    assert reason(actions, ConditionType.RESUMABLE) == ("False", "NoCheckpoint")
    assert "a restart would begin again at step 0" in text(actions, ConditionType.RESUMABLE)
    saved = make_observed(dict(actions.status), spec={"checkpoint": CHECKPOINT})
    actions, _ = settle(saved)
    assert reason(actions, ConditionType.RESUMABLE) == ("True", "CheckpointSet")
    assert text(actions, ConditionType.ACCEPTED) == "the spec is valid"


@pytest.mark.parametrize(
    "spec",
    [
        {"checkpoint": CHECKPOINT},
        {"workers": {"command": ["torchrun"]}},
        {"network": {"tuning": {"candidates": [{"NCCL_NVLS_ENABLE": "0"}]}}},
    ],
)
def test_other_jobs_have_no_warning(spec: dict[str, Any]) -> None:
    actions, _ = settle(make_observed(spec=spec))
    assert reason(actions, ConditionType.ACCEPTED) == ("True", "Valid")
    kinds = {condition["type"] for condition in actions.status["conditions"]}
    assert "Resumable" not in kinds
