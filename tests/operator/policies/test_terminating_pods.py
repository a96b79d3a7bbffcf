"""Pods that do not end although their node is ready: no clock, no restart, no endless wait."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import Unschedulable
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.policies.deletion import seconds_until_slow
from llmtrain_operator.reconcile.checklist import decide
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)
from tests.support.operator_harness.scheduling import in_use, record

pytestmark = pytest.mark.unit

LATE = ago(601)
"""Longer ago than the startup timeout."""


def terminating(overdue: float, index: int = 1, **changes: Any) -> PodRecord:
    """A pod of attempt 0 whose grace period ended so many seconds ago."""
    end = NOW.timestamp() - overdue
    return pod(index, attempt=0, deleting=True, ends_by=end, **changes)


def restarting(*pods: PodRecord, spares: tuple[str, ...] = (), **changes: Any) -> Observed:
    """A gang whose second attempt waits for pods of the first one."""
    placement: dict[str, Any] = {**PLACEMENT, "attempt": 1}
    if spares:
        levels = [{"level": "leaf", "domains": 1}, {"level": "node", "domains": 2}]
        placement |= {"levels": levels, "spares": [{"path": "leaf-1", "nodes": [*spares]}]}
    before = {"attempt": 1, "placement": placement, "restarts": 1, "attemptStartTime": LATE}
    names = ("n0", "n1", "n7", *spares)
    return make_observed(
        status(**{**before, **changes}), pods=pods, nodes={name: node(name) for name in names}
    )


def test_a_wait_for_pods_is_shown_and_no_late_start() -> None:
    actions, _ = settle(restarting(terminating(70)))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "PodsTerminating")
    assert text(actions, ConditionType.PODS_READY).endswith(
        "pod job-0-1 on node n1 is still terminating, its grace period ended more than 1 min ago"
    )
    assert actions.create_pods == () and "failures" not in actions.status
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 1)
    assert actions.reconcile_after == pytest.approx(50), "two minutes after the grace period"


def test_a_finished_job_names_pods_that_do_not_end() -> None:
    before = status(ConditionType.SUCCEEDED, completionTime=ago(900))
    actions, observed = settle(make_observed(before, pods=(terminating(70),)))
    assert not actions.changed and actions.reconcile_after == pytest.approx(50)
    stuck = replace(observed, now=NOW + timedelta(seconds=60))
    actions, observed = settle(stuck)
    assert reason(actions, ConditionType.PODS_READY) == ("False", "PodsTerminating")
    assert "pods hold their nodes: pod job-0-1 on node n1" in text(
        actions, ConditionType.PODS_READY
    )
    assert actions.status["phase"] == "Succeeded"
    actions, _ = settle(replace(observed, pods=()))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "Completed")


def test_a_short_wait_is_not_shown() -> None:
    actions, _ = settle(restarting(terminating(-25), attemptStartTime=ago(5)))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "PodsStarting")
    assert actions.reconcile_after == pytest.approx(5)


def test_the_startup_timeout_counts_from_the_end_of_the_wait() -> None:
    waiting, observed = settle(restarting(terminating(70)))
    actions, _ = settle(replace(observed, pods=()))
    assert actions.status["attemptStartTime"] == ago(0) != waiting.status["attemptStartTime"]
    assert actions.create_pods == (0, 1)


@pytest.mark.parametrize("overdue", [119, 120])
def test_a_gang_leaves_the_node_of_a_pod_that_does_not_end(overdue: float) -> None:
    actions, _ = settle(restarting(terminating(overdue)))
    moved = "placement" not in actions.status
    assert moved is (overdue >= 120)
    if moved:
        assert (actions.status["attempt"], actions.status["restarts"]) == (2, 1)
        assert reason(actions, ConditionType.PLACED) == ("False", "Unschedulable")
        assert "cannot start on n1 (pod job-0-1 on node n1 is still terminating" in text(
            actions, ConditionType.PLACED
        )
        assert "failures" not in actions.status and not actions.status.get("backoffUntil")


def test_a_spare_replaces_the_node() -> None:
    actions, _ = settle(restarting(terminating(120), spares=("n2",)))
    nodes = [name for block in actions.status["placement"]["blocks"] for name in block["nodes"]]
    assert nodes == ["n0", "n2"]
    assert (actions.status["attempt"], actions.status["restarts"]) == (2, 1)
    assert actions.create_pods == (0, 1), "the pod on n1 is not waited for"


def test_a_gang_elsewhere_starts_without_the_pod() -> None:
    stuck = terminating(120, node="n7")
    actions, _ = settle(restarting(stuck, attemptStartTime=ago(60)))
    assert actions.create_pods == (0, 1)
    awaited = replace(stuck, ends_by=NOW.timestamp() - 119)
    waits, _ = settle(restarting(awaited, attemptStartTime=ago(60)))
    assert waits.create_pods == ()


def test_a_pod_of_the_attempt_that_does_not_end_is_treated_alike() -> None:
    own = replace(terminating(70, phase="Pending", ready=False), attempt=1)
    actions, _ = settle(restarting(pod(0, attempt=1), own))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "PodsTerminating")
    own = replace(own, ends_by=NOW.timestamp() - 120)
    actions, _ = settle(restarting(pod(0, attempt=1), own))
    assert actions.status["attempt"] == 2 and "failures" not in actions.status


def test_the_node_of_the_pod_stays_in_use_for_the_job_itself() -> None:
    stuck = terminating(900, owner="uid", node="n0")
    found = in_use([record("uid", {"attempt": 2})], [stuck], now=NOW.timestamp())
    assert [(item.node, item.owner) for item in found] == [("n0", "uid")]


@pytest.mark.parametrize(
    ("overdue", "says", "changes_in"),
    [
        (1, "its grace period ended", 59),
        (200, "its grace period ended more than 2 min ago", 100),
        (4000, "its grace period ended more than 1 h ago", 3200),
        (200_000, "its grace period ended more than 1 d ago", None),
    ],
)
def test_the_age_changes_the_status_rarely(
    overdue: float, says: str, changes_in: float | None
) -> None:
    actions, _ = settle(suspended(terminating(overdue)))
    assert text(actions, ConditionType.SUSPENDED).endswith(
        f"pod job-0-1 on node n1 is still terminating, {says}"
    )
    assert reason(actions, ConditionType.SUSPENDED)[0] == "False"
    after = actions.reconcile_after
    assert after == (None if changes_in is None else pytest.approx(changes_in))


def suspended(*pods: PodRecord) -> Observed:
    stored = status(placed=False, attempt=1)
    return make_observed(stored, spec={"suspend": True}, pods=pods)


def test_a_queued_job_does_not_wait_for_its_pods() -> None:
    decision = Unschedulable("InsufficientGpus", "no room")  # type: ignore[arg-type]
    stored = status(placed=False, attempt=1)
    actions, _ = settle(make_observed(stored, pods=(terminating(900),), decision=decision))
    assert reason(actions, ConditionType.PLACED) == ("False", "InsufficientGpus")


def deleted(seconds: float, *pods: PodRecord, finalizers: tuple[str, ...]) -> Actions:
    metadata = {"deletionTimestamp": ago(seconds), "finalizers": [*finalizers]}
    observed = make_observed(status(), metadata=metadata, pods=pods)
    actions = decide(observed)
    if actions.changed:
        observed = replace(observed, raw={**observed.raw, "status": actions.status})
        assert not decide(observed).changed
    return actions


def test_a_job_that_is_being_deleted_says_what_it_waits_for() -> None:
    stuck = terminating(70)
    quiet = deleted(80, stuck, finalizers=("foregroundDeletion",))
    assert not quiet.changed and quiet.reconcile_after == pytest.approx(10)
    actions = deleted(100, stuck, finalizers=("foregroundDeletion",))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "PodsTerminating")
    assert "is deleted and waits for pod job-0-1 on node n1 is still terminating" in text(
        actions, ConditionType.PODS_READY
    )
    actions = deleted(100, finalizers=("example.com/backup",))
    assert text(actions, ConditionType.PODS_READY).endswith("its finalizers example.com/backup")
    assert not deleted(100, pod(0), finalizers=("orphan",)).changed


@pytest.mark.parametrize(
    ("grace", "passed", "left"),
    [
        (30, 10, 80),
        (30, 95, -5),
        (120, 95, 85),
        (120, 150, 30),
        (120, 185, -5),
        (10**9, 150, 30),  # of who deletes a pod by hand
        (1, 10, 80),
    ],
)
def test_a_deletion_is_slow_a_minute_after_the_grace_period(
    grace: int, passed: float, left: float
) -> None:
    pods = (terminating(passed - grace), terminating(passed - min(grace, 5), index=0))
    assert seconds_until_slow(pods, passed, NOW) == left


def test_a_deletion_with_a_long_grace_period_is_told_later() -> None:
    """The grace period of 120 s ended 5 s ago. Without it, 90 s are long."""
    actions = deleted(125, terminating(5), finalizers=("foregroundDeletion",))
    assert not actions.changed and actions.reconcile_after == pytest.approx(55)


def test_the_clock_stands_still_while_pods_end() -> None:
    """The grace period may be longer than the startup timeout."""
    long = replace(terminating(0), ends_by=(NOW + timedelta(hours=1)).timestamp())
    actions, _ = settle(restarting(long))
    assert "failures" not in actions.status
    assert text(actions, ConditionType.PODS_READY).endswith(
        "waiting for pods of the last attempt: pod job-0-1 on node n1 is terminating"
    )
