"""Terms of a placement that no edit changes, and what an invalid spec does not stop. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.records import PriorityRecord
from llmtrain_operator.planning.durations import ends_at
from llmtrain_operator.reconcile.writer import _with_priority_class
from llmtrain_operator.scheduler.decisions import Preemption
from llmtrain_operator.scheduler.jobs import allocation_of
from tests.support.operator_harness.jobs import checked_job
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
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.unit

INVALID: dict[str, Any] = {"model": {"preset": "gpt-9000"}}
REFUSED_LATER: list[tuple[dict[str, Any], str]] = [
    ({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}, "remove the variable"),
    (
        {"volumes": [{"name": "v", "mountPath": "/etc", "emptyDir": {}}]},
        "mount the volume elsewhere",
    ),
    ({"resources": {"limits": {"memory": "1Gi"}}}, "lower shmSize"),
]
"""Sections `workers` that an earlier version accepted, and their remedies."""
GANG = (pod(0), pod(1))
CLASSES = {
    "low": PriorityRecord("low", 5, False),
    "system-node-critical": PriorityRecord("system-node-critical", 2000001000, False),
}


def running(**placement: Any) -> dict[str, Any]:
    return status(ConditionType.RUNNING, placement={**PLACEMENT, **placement})


def test_a_placement_has_the_terms_for_which_it_was_given() -> None:
    spec = {"priorityClassName": "low", "runPolicy": {"activeDeadlineSeconds": 90}}
    actions, _ = settle(make_observed(decision=assignment(0), spec=spec))
    placement = actions.status["placement"]
    assert (placement["priority"], placement["priorityClassName"]) == (0, "low")
    assert placement["deadline"] == ago(-90)
    actions, _ = settle(make_observed(decision=assignment(0)))
    assert actions.status["placement"]["priority"] == 0
    assert not {"priorityClassName", "deadline"} & actions.status["placement"].keys()


def test_a_running_job_that_raises_its_priority_can_still_be_preempted() -> None:
    job = record("uid", running(priority=5), priorityClassName="system-node-critical")
    held = allocation_of(job, [], CLASSES, 0.0, ("n0", "n1"))
    assert held is not None and held.priority == 5 and held.preemptible
    old = record("uid", running(), priorityClassName="low")
    held = allocation_of(old, [], CLASSES, 0.0, ("n0", "n1"))
    assert held is not None and held.priority == 5, "a placement of an older release has none"


def test_pods_of_a_restart_have_the_class_of_the_placement() -> None:
    raised = checked_job(priorityClassName="system-node-critical")
    for placement, expected in (
        ({"priority": 5, "priorityClassName": "low"}, "low"),
        ({"priority": 0}, None),
        ({}, "system-node-critical"),
    ):
        assert _with_priority_class(raised, placement).spec.priority_class_name == expected


def test_a_running_job_keeps_its_priority_when_its_class_is_deleted() -> None:
    job = record("uid", running(priority=5, priorityClassName="low"), priorityClassName="low")
    held = allocation_of(job, [], {}, 0.0, ("n0", "n1"))
    assert held is not None and held.priority == 5


def test_pods_of_a_restart_have_no_class_when_it_was_deleted() -> None:
    job, placement = checked_job(), {"priority": 5, "priorityClassName": "low"}
    for known, expected in ((bool, "low"), (lambda _name: False, None)):
        found = _with_priority_class(job, placement, known)
        assert found.spec.priority_class_name == expected


def test_a_raised_deadline_does_not_extend_the_placement() -> None:
    spec = {"runPolicy": {"activeDeadlineSeconds": 99999}}
    job = check("job", make_observed(spec=spec).raw["spec"])
    assert isinstance(job, Job)
    before = make_observed(running(deadline=ago(-30)), spec=spec, pods=GANG)
    end = ends_at(job, before.view, NOW.timestamp())
    assert end is not None and end.value == NOW.timestamp() + 30, "backfill counts on it"
    actions, _ = settle(before)
    assert actions.status["phase"] == "Running"
    assert actions.reconcile_after is not None and actions.reconcile_after <= 30
    over = make_observed(running(deadline=ago(0)), spec=spec, pods=GANG)
    actions, _ = settle(over)
    assert reason(actions, ConditionType.PLACED) == ("False", "PlacementEnded")
    assert reason(actions, ConditionType.RUNNING)[0] == "False"
    assert "placement" not in actions.status and len(actions.delete_pods) == 2
    assert not actions.status.get("restarts")


def test_an_earlier_deadline_applies_at_once() -> None:
    spec = {"runPolicy": {"activeDeadlineSeconds": 10}}
    actions, _ = settle(make_observed(running(deadline=ago(-500)), spec=spec, pods=GANG))
    assert reason(actions, ConditionType.FAILED) == ("True", "DeadlineExceeded")


def test_terms_stay_with_a_replaced_node_and_a_restart() -> None:
    terms = {"priority": 5, "priorityClassName": "low", "deadline": ago(-500)}
    blocks = {"blocks": [{"path": "", "nodes": ["n0", "n1"]}]}
    evicted = failed(1, 0, exit_code=None, disruption="Evicted", reason="Evicted")
    for lost in (failed(1, 137), evicted):
        before = running(**terms, **blocks, spares=[{"path": "", "nodes": ["n2"]}])
        nodes = {name: node(name) for name in ("n0", "n1", "n2")}
        actions, _ = settle(make_observed(before, pods=(pod(0), lost), nodes=nodes))
        found = actions.status["placement"]
        assert found["attempt"] == 1 and terms.items() <= found.items()


# A running job that is edited into an invalid one.


def test_an_invalid_running_job_keeps_its_pods_while_all_of_them_run() -> None:
    actions, _ = settle(make_observed(running(), spec=INVALID, pods=GANG))
    assert reason(actions, ConditionType.ACCEPTED)[0] == "False"
    assert actions.status["phase"] == "Running" and not actions.delete_pods


@pytest.mark.parametrize(("workers", "remedy"), REFUSED_LATER)
def test_a_new_bound_refuses_jobs_that_wait_and_stops_none_that_run(
    workers: dict[str, Any], remedy: str
) -> None:
    spec = {"workers": workers}
    running_on, _ = settle(make_observed(running(), spec=spec, pods=GANG))
    waiting, _ = settle(make_observed(status(placed=False), spec=spec))
    assert running_on.status["phase"] == "Running" and not running_on.delete_pods
    assert waiting.status["phase"] == "Rejected" and not waiting.create_pods
    for actions in (running_on, waiting):
        assert reason(actions, ConditionType.ACCEPTED)[0] == "False"
        assert remedy in text(actions, ConditionType.ACCEPTED)


def test_an_invalid_running_job_is_preempted() -> None:
    victim = Preemption(0, "vip", "preempted by vip")
    actions, _ = settle(make_observed(running(), spec=INVALID, pods=GANG, decision=victim))
    assert reason(actions, ConditionType.PLACED) == ("False", "Preempted")
    assert len(actions.delete_pods) == 2, "its pods end, too"


def test_an_invalid_running_job_is_suspended() -> None:
    spec = {**INVALID, "suspend": True}
    actions, _ = settle(make_observed(running(), spec=spec, pods=GANG))
    assert "placement" not in actions.status and len(actions.delete_pods) == 2
    assert reason(actions, ConditionType.PLACED) == ("False", "Suspended")


def test_an_invalid_running_job_meets_its_deadline() -> None:
    spec = {**INVALID, "runPolicy": {"activeDeadlineSeconds": 30}}
    actions, _ = settle(make_observed(running(), spec=spec, pods=GANG))
    assert reason(actions, ConditionType.FAILED) == ("True", "DeadlineExceeded")


def test_an_invalid_running_job_succeeds_when_its_pods_do() -> None:
    pods = (pod(0, "Succeeded"), pod(1, "Succeeded"))
    actions, _ = settle(make_observed(running(), spec=INVALID, pods=pods))
    assert reason(actions, ConditionType.SUCCEEDED)[0] == "True"


@pytest.mark.parametrize(
    "pods",
    [(pod(0), failed(1, 137)), (pod(0),), (pod(0), pod(1, deleting=True)), ()],
    ids=["failed", "missing", "deleting", "none"],
)
def test_an_invalid_job_whose_gang_is_not_complete_releases_its_nodes(pods: Any) -> None:
    actions, _ = settle(make_observed(running(), spec=INVALID, pods=pods))
    assert "placement" not in actions.status
    assert reason(actions, ConditionType.PLACED) == ("False", "InvalidSpec")
    assert actions.status["phase"] == "Rejected"
