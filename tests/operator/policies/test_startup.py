"""A gang that does not start: the cause and the next attempt. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import Assignment, PendingJob
from llmtrain_core.queueing.quarantine import NodeLists
from llmtrain_operator.cache.records import JobRecord, PodRecord
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
    quarantine_after,
    record,
    refusal,
    waiting_job,
)

pytestmark = pytest.mark.unit
LATE = ago(601)
JUST_NOW = NOW.timestamp() - 60


CREATING = pod(1, "Pending", reason="ContainerCreating", setting_up=True)
PULLING = replace(CREATING, setting_up=False)
UNSEEN = pod(1, "Pending", bound=False)


@pytest.mark.parametrize(
    ("pods", "why", "node", "avoided", "suspects"),
    [
        ((pod(0), CREATING), "StartupTimeout", "n1", {"n1"}, {"n1"}),
        ((pod(0), pod(1, "Pending")), "StartupTimeout", "n1", {"n1"}, {"n1"}),
        ((pod(0, "Pending"), pod(1, "Pending")), "StartupTimeout", "n0", {"n0"}, {"n0"}),
        ((pod(0), PULLING), "StartupTimeout", "n1", {"n1"}, set()),
        ((pod(0), replace(CREATING, bound_at=JUST_NOW)), "StartupTimeout", "n1", {"n1"}, set()),
        ((pod(0), UNSEEN), "StartupTimeout", None, set(), set()),
        ((replace(CREATING, index=0, node="n0"), CREATING), "StartupTimeout", None, set(), set()),
    ],
    ids=[
        "creating",
        "no status",
        "no status of all",
        "image pull",
        "bound late",
        "not scheduled",
        "all late",
    ],
)
def test_a_late_start_blames_a_node_only_on_evidence(
    pods: tuple[PodRecord, ...], why: str, node: str | None, avoided: set[str], suspects: set[str]
) -> None:
    actions, _ = settle(make_observed(status(attemptStartTime=LATE), pods=pods))
    [failure] = actions.status["failures"]
    assert (failure["reason"], failure.get("node")) == (why, node)
    assert failure["message"].startswith("spec.failurePolicy.startupTimeout: ")
    assert pods[1].message in failure["message"]
    found = record("a", dict(actions.status))
    candidate = as_pending(without_placement(found))
    assert isinstance(candidate, PendingJob) and candidate.avoided_nodes == avoided
    lists = quarantine_after([found], NOW.timestamp())
    assert lists.of("ns").suspects == suspects and not lists.of("ns").excluded
    assert lists.of("other") == NodeLists(), "one namespace alone blames no node for others"


def test_a_slow_clock_of_the_scheduler_makes_no_start_late() -> None:
    spec = {"failurePolicy": {"startupTimeout": "10s"}}
    hours_ago = NOW.timestamp() - 7200
    pods = (pod(0), replace(CREATING, bound_at=hours_ago))
    actions, _ = settle(make_observed(status(attemptStartTime=ago(11)), spec=spec, pods=pods))
    (failure,) = actions.status["failures"]
    assert (failure["reason"], failure["evidence"]) == ("StartupTimeout", "Job")


def without_placement(found: JobRecord) -> JobRecord:
    """The job without its placement, as it would wait for another one."""
    stored = {key: value for key, value in found.raw["status"].items() if key != "placement"}
    return record("a", stored)


@pytest.mark.parametrize(
    ("why", "seconds", "waits"),
    [
        ("NameConflict", 9, True),
        ("NameConflict", 10, False),
        ("QuotaExceeded", 9, True),
        ("QuotaExceeded", 10, False),
        ("Forbidden", 0, False),
        ("InvalidSpec", 0, False),
    ],
)
def test_a_gang_whose_objects_are_refused_releases_its_nodes_at_once(
    why: str, seconds: float, waits: bool
) -> None:
    """A 422 has the fate of a 403: no node is held, no restart counts, and no node is named."""
    refused = CreateError(why, "no", NOW - timedelta(seconds=seconds))
    spec: dict[str, Any] = {"failurePolicy": {"startupTimeout": "999999h", "maxRestarts": 0}}
    actions, _ = settle(make_observed(status(), spec=spec, create_error=refused))
    assert ("placement" in actions.status) is waits
    if waits:
        assert actions.reconcile_after == pytest.approx(1)
        return
    assert reason(actions, ConditionType.PLACED) == ("False", why)
    assert actions.status["unstartedAttempts"] == 1 and not actions.status.get("restarts")
    assert "failures" not in actions.status
    assert actions.status["backoffUntil"] == ago(-60 if why == "NameConflict" else -5)


def test_a_refusal_that_may_pass_is_no_late_start() -> None:
    refused = CreateError("QuotaExceeded", "no", NOW - timedelta(seconds=1))
    before = make_observed(status(attemptStartTime=LATE), create_error=refused)
    actions, _ = settle(before)
    assert "failures" not in actions.status and actions.create_pods == (0, 1)


def test_a_job_that_is_refused_again_waits_twice_as_long() -> None:
    refused = CreateError("Forbidden", "denied by a webhook", NOW)
    actions, _ = settle(make_observed(status(unstartedAttempts=3), create_error=refused))
    assert actions.status["backoffUntil"] == ago(-40)


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
    assert actions.reconcile_after == pytest.approx(60 if why == "NameConflict" else 5)
    assert as_pending(record("a", dict(actions.status))) is None, "others get the nodes meanwhile"
    later = replace(observed, now=NOW + timedelta(seconds=61), pods=())
    actions, _ = settle(later)
    assert reason(actions, ConditionType.PLACED) == ("False", "Queued")
    assert as_pending(record("a", dict(actions.status))) is not None


def test_an_old_create_error_is_not_shown_when_all_pods_exist() -> None:
    trouble = CreateError("QuotaExceeded", "spec.workers: no")
    pods = (pod(0), CREATING)
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
