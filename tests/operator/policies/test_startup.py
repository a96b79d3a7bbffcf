"""A gang that does not start: the cause and the next attempt. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import Assignment
from llmtrain_operator.job_state.observation import CreateError
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)
from tests.support.operator_harness.scheduling import (
    as_pending,
    cluster,
    decide,
    nodes,
    record,
    refusal,
    waiting_job,
)

pytestmark = pytest.mark.unit
LATE = ago(601)


def test_the_failure_names_the_node_of_the_first_late_pod() -> None:
    pods = (pod(0), pod(1, "Pending", reason="Unschedulable"))
    actions, _ = settle(make_observed(status(attemptStartTime=LATE), pods=pods))
    [failure] = actions.status["failures"]
    assert (failure["reason"], failure["node"]) == ("StartupTimeout", "n1")
    candidate = as_pending(record("a", dict(actions.status)))
    assert candidate is not None and candidate.avoided_nodes == {"n1"}


def test_only_failures_of_a_node_make_the_job_avoid_it() -> None:
    failures = [
        {"time": ago(9), "attempt": 0, "reason": why, "message": "", "node": node}
        for why, node in (("ExitCode", "n0"), ("NodeLost", "n2"))
    ]
    candidate = as_pending(record("a", {"failures": failures}))
    assert candidate is not None and candidate.avoided_nodes == {"n2"}


def test_avoided_nodes_are_used_only_if_nothing_else_fits() -> None:
    for count, used in ((1, {"n0"}), (3, {"n0", "n1", "n2"})):
        job = replace(waiting_job("job-0", count), avoided_nodes=frozenset({"n1"}))
        [decision] = decide([job], cluster(nodes(3), ())).values()
        assert isinstance(decision, Assignment) and set(decision.nodes) == used
    job = replace(waiting_job("job-0", 2), avoided_nodes=frozenset({"n1"}))
    [decision] = decide([job], cluster(nodes(3), ())).values()
    assert isinstance(decision, Assignment) and set(decision.nodes) == {"n0", "n2"}


@pytest.mark.parametrize("why", ["QuotaExceeded", "Forbidden", "NameConflict"])
def test_a_create_error_releases_the_nodes_without_a_restart(why: str) -> None:
    trouble = CreateError(why, "spec.workers: pods job-0-1: no")
    observed = make_observed(status(attemptStartTime=LATE), create_error=trouble, pods=(pod(0),))
    actions, observed = settle(observed)
    assert "placement" not in actions.status and "failures" not in actions.status
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 0)
    assert reason(actions, ConditionType.PLACED) == ("False", why)
    assert text(actions, ConditionType.PLACED) == trouble.message
    assert (actions.status["phase"], actions.status["reason"]) == ("Queued", why)
    assert [victim.index for victim in actions.delete_pods] == [0]
    assert actions.reconcile_after == pytest.approx(60)
    assert as_pending(record("a", dict(actions.status))) is None, "others get the nodes meanwhile"
    later = replace(observed, now=NOW + timedelta(seconds=61), pods=())
    actions, _ = settle(later)
    assert reason(actions, ConditionType.PLACED) == ("False", "Queued")
    assert as_pending(record("a", dict(actions.status))) is not None


def test_an_old_create_error_is_not_shown_when_all_pods_exist() -> None:
    trouble = CreateError("QuotaExceeded", "spec.workers: no")
    pods = (pod(0), pod(1, "Pending", reason="Unschedulable"))
    actions, _ = settle(
        make_observed(status(attemptStartTime=LATE), create_error=trouble, pods=pods)
    )
    assert actions.status["failures"][0]["reason"] == "StartupTimeout"


def test_startup_timeout_counts_from_the_end_of_the_backoff() -> None:
    failures = [
        {"time": ago(seconds), "attempt": 0, "reason": "ExitCode", "message": ""}
        for seconds in (8, 7, 6, 5)
    ]
    before = status(
        failures=failures,
        restarts=4,
        attempt=4,
        attemptStartTime=ago(5),
        placement={**PLACEMENT, "attempt": 4},
    )
    spec = {"failurePolicy": {"startupTimeout": "4s", "maxRestarts": 9}}
    actions, observed = settle(make_observed(before, spec=spec))
    assert actions.create_pods == (0, 1), "the pause of 4 s ended 1 s ago"
    actions, _ = settle(replace(observed, now=NOW + timedelta(seconds=3.5)))
    assert actions.status["failures"][-1]["reason"] == "StartupTimeout"


def test_a_job_with_an_unknown_priority_class_is_not_placed() -> None:
    decision = as_pending(record("a", priorityClassName="no-such-class"))
    assert refusal(decision).reason == "PriorityClassNotFound"
    assert refusal(decision).message.startswith("spec.priorityClassName: ")
