"""Gangs that do not start, or are done in part, hold their nodes for a bounded time. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.disruption_budgets import BudgetRecord, LabelSelector
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.job_state.observation import CreateError
from llmtrain_operator.job_state.restart_budget import BOUND_DELAY_SECONDS
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    assignment,
    make_observed,
    node,
    pod,
    settle,
    status,
)

pytestmark = pytest.mark.unit


def after(seconds: float) -> str:
    return format_time(NOW + timedelta(seconds=seconds))


def test_a_refusal_as_tenth_failure_waits_for_the_next_attempt_without_nodes() -> None:
    failures = [
        {
            "time": ago(3000 - 300 * index),
            "attempt": index,
            "reason": "Evicted",
            "message": "",
            "evidence": "Disruption",
        }
        for index in range(9)
    ]
    before = status(
        attempt=9,
        restarts=9,
        failures=failures,
        placement={**PLACEMENT, "attempt": 9},
        attemptStartTime=ago(8),
    )
    refused = pod(
        0, "Pending", 9, bound=False, refused_since=ago(6), reason="Unschedulable", message="claim"
    )
    pods = (refused, pod(1, "Pending", 9))
    actions, observed = settle(make_observed(before, pods=pods))
    assert (actions.status["attempt"], "placement" in actions.status) == (10, False)
    assert actions.status["backoffUntil"] == after(BOUND_DELAY_SECONDS)
    soon = replace(observed, now=NOW + timedelta(seconds=6), pods=(), decision=assignment(10))
    actions, _ = settle(soon)
    assert "placement" not in actions.status, "others can use the nodes until then"


def test_a_drain_deletes_a_completed_pod_of_which_a_sidecar_runs_on() -> None:
    selector = LabelSelector((("llmtrain.dev/job-uid", "uid"),))
    done = pod(1, "Succeeded", has_sidecar=True, exit_code=0, finished=ago(100))
    before = status(ConditionType.RUNNING, completedPods={"attempt": 0, "indexes": "1"})
    observed = make_observed(
        before, pods=(pod(0), done), budget=BudgetRecord("b", "job", "ns", "uid", 2, selector)
    )
    actions, observed = settle(observed)
    assert not actions.delete_pods, "no node is drained"
    nodes = {"n0": node("n0"), "n1": node("n1", cordoned=True)}
    actions, _ = settle(replace(observed, nodes=nodes))
    assert [found.uid for found in actions.delete_pods] == [done.uid]
    assert "move" not in actions.status, "the gang goes on"


def test_a_gang_keeps_its_nodes_for_a_moment_if_a_name_is_taken() -> None:
    """A job waits for objects of a deleted job before it gets nodes; its cache may be behind."""
    early = CreateError(Reason.NAME_CONFLICT, "", NOW - timedelta(seconds=9))
    actions, _ = settle(make_observed(status(), create_error=early))
    assert "placement" in actions.status
    late = CreateError(Reason.NAME_CONFLICT, "", NOW - timedelta(seconds=11))
    actions, _ = settle(make_observed(status(), create_error=late))
    assert actions.status["backoffUntil"] == after(60)


def test_collisions_on_shared_nodes_do_not_lengthen_the_delays_after_other_causes() -> None:
    nodes = {"n0": node("n0", cordoned=True), "n1": node("n1")}
    refused = pod(
        0, "Pending", bound=False, refused_since=ago(1), reason="Unschedulable", message="full"
    )
    before, counts = status(), []
    for _ in range(8):
        observed = make_observed(before, pods=(refused,), nodes=nodes, shares_nodes=True)
        actions, _ = settle(observed)
        assert parse_time(actions.status["backoffUntil"]) > NOW
        counts.append(actions.status["unstartedAttempts"])
        before = status(unstartedAttempts=counts[-1])
    assert counts == [1, 2, 3, 4, 4, 4, 4, 4]


def test_a_gang_that_waits_for_a_pod_of_a_later_attempt_fails_at_the_startup_timeout() -> None:
    before = status(attempt=1, placement={**PLACEMENT, "attempt": 1}, attemptStartTime=ago(90000))
    actions, _ = settle(make_observed(before, pods=(pod(0, attempt=5),)))
    assert not actions.create_pods
    (failure,) = actions.status["failures"]
    assert failure["reason"] == Reason.STARTUP_TIMEOUT
