"""A job that has its nodes cannot be edited out of its duties or above the others."""

from __future__ import annotations

import pytest

from llmtrain_devcluster.api import ApiStatusError
from llmtrain_operator.cache.records import PriorityRecord
from llmtrain_operator.scheduler.jobs import pending_job
from tests.support.operator_harness.harness import condition, status_of
from tests.support.operator_harness.jobs import checked_job
from tests.support.operator_harness.scheduling import record, refusal
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import NODES, Tenants

SYSTEM_CLASSES = ("system-node-critical", "system-cluster-critical")
INVALID = {"failurePolicy": {"rules": [{"name": "later", "action": "FailJob"}]}}
"""A change that the API server accepts and the operator refuses."""
ALL = {"workers": {"nodes": NODES}}


@pytest.mark.unit
def test_only_with_the_flag_a_job_may_name_a_class_of_the_system() -> None:
    for name in SYSTEM_CLASSES:
        classes = {name: PriorityRecord(name, 2_000_000_000, False)}
        job = record("job", priorityClassName=name)
        checked = checked_job(priorityClassName=name)
        found = refusal(pending_job(job, checked, classes, {}))
        assert found.reason == "Forbidden" and name in found.message
        allowed = pending_job(job, checked, classes, {}, system_classes=True)
        assert allowed is not None and not hasattr(allowed, "reason")


@pytest.mark.cluster
async def test_a_job_of_a_system_class_does_not_start(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory, carol = tenants.mallory, tenants.carol
    await carol.submit("victim", **ALL)
    await carol.phase("victim", "Running")
    for name in SYSTEM_CLASSES:
        await mallory.submit(name, priorityClassName=name)
        await mallory.reason(name, "Placed", "Forbidden")
    victim = status_of(await carol.job("victim"))
    assert victim["phase"] == "Running" and not victim.get("preemptions")


@pytest.mark.cluster
async def test_the_class_of_a_running_job_is_immutable(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await mallory.submit("job")
    await mallory.phase("job", "Running")
    with pytest.raises(ApiStatusError, match="immutable while the job has nodes") as refused:
        await mallory.patch("job", {"spec": {"priorityClassName": SYSTEM_CLASSES[0]}})
    assert refused.value.status == 422
    await mallory.patch("job", {"spec": {"suspend": True}})
    await mallory.holds("job", "Suspended")
    await mallory.patch("job", {"spec": {"priorityClassName": SYSTEM_CLASSES[0]}})


@pytest.mark.cluster
async def test_a_running_job_that_becomes_invalid_is_still_preempted(
    tenants: Tenants, bystanders: Bystanders, priority: str
) -> None:
    mallory, carol = tenants.mallory, tenants.carol
    await mallory.submit("job", **ALL)
    await mallory.phase("job", "Running")
    await mallory.patch("job", {"spec": INVALID})
    await mallory.wait("job", lambda j: condition(j, "Accepted").get("status") == "False")
    assert status_of(await mallory.job("job"))["phase"] == "Running"
    await carol.submit("vip", priorityClassName=priority)
    await carol.phase("vip", "Running")
    assert status_of(await mallory.job("job"))["preemptions"] == 1


@pytest.mark.cluster
@pytest.mark.parametrize("change", [{"suspend": True}, {"runPolicy": {"activeDeadlineSeconds": 1}}])
async def test_a_running_job_that_becomes_invalid_is_still_stopped(
    tenants: Tenants, bystanders: Bystanders, change: dict[str, object]
) -> None:
    mallory = tenants.mallory
    await mallory.submit("job", **ALL)
    await mallory.phase("job", "Running")
    await mallory.patch("job", {"spec": {**INVALID, **change}})
    await mallory.wait("job", lambda job: "placement" not in status_of(job) or over(job))
    await mallory.pod_count(0)
    await bystanders.are_unharmed(f"an invalid job with {list(change)}")


def over(job: object) -> bool:
    return condition(job, "Failed").get("status") == "True"  # type: ignore[arg-type]


@pytest.mark.cluster
async def test_an_invalid_job_does_not_keep_the_nodes_of_a_gang_that_failed(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await mallory.submit("job", **ALL)
    await mallory.phase("job", "Running")
    await mallory.patch("job", {"spec": INVALID})
    await mallory.wait("job", lambda j: condition(j, "Accepted").get("status") == "False")
    mallory.nodes.end(mallory.namespace, "job-0-0", 137)
    await mallory.phase("job", "Rejected")
    await bystanders.are_unharmed("an invalid job whose gang failed")
