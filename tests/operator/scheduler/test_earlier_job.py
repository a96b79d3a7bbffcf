"""A job waits for the pods and other objects of a deleted job of its name. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.labels import JOB_UID
from llmtrain_core.queueing import Unschedulable
from llmtrain_operator.cache.child_record import ChildRecord, child_record
from llmtrain_operator.cache.disruption_budgets import BudgetRecord, budget_record
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.kube.resources import (
    CONFIG_MAPS,
    NETWORK_POLICIES,
    SERVICES,
    Resource,
)
from llmtrain_operator.manifests.job_resources import child_names, job_resources
from llmtrain_operator.manifests.names import JobIdentity, job_of_pod
from llmtrain_operator.scheduler.earlier_job import wait_for_earlier_job
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.jobs import IDENTITY
from tests.support.operator_harness.observed import failed, pod
from tests.support.operator_harness.scheduling import record, refusal

pytestmark = pytest.mark.unit

NAMES = {CONFIG_MAPS: "job-job-0", SERVICES: "job", NETWORK_POLICIES: "job"}
"""Names of the objects of the first attempt."""


def raw_object(name: str, owner: str) -> dict[str, Any]:
    """An object with the label of a job, and owned by the job with this UID unless it is empty."""
    reference = {"kind": "LLMTrainingJob", "name": "job", "uid": owner, "controller": True}
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"{name}-of-{owner}",
            "resourceVersion": "3",
            "labels": {JOB_UID: owner or "old"},
            "ownerReferences": [reference] if owner else [],
        }
    }


def child(kind: Resource, owner: str) -> ChildRecord:
    return child_record(kind)(raw_object(NAMES[kind], owner))


def budget(owner: str) -> BudgetRecord:
    return budget_record(raw_object("job", owner))


def wait(
    job: JobRecord,
    pods: tuple[PodRecord, ...] = (),
    children: tuple[ChildRecord, ...] = (),
    budgets: tuple[BudgetRecord, ...] = (),
) -> Unschedulable | None:
    return wait_for_earlier_job(job, pods, children, budgets)


@pytest.mark.parametrize("name", ["job", "a-1", "a-1-2"])
def test_the_name_of_a_pod_names_its_job(name: str) -> None:
    assert job_of_pod(JobIdentity("ns", name, "uid").pod(12, 345)) == name


def test_pods_of_an_earlier_job_that_run_keep_the_job_waiting() -> None:
    job = record("new")
    left = (pod(1, attempt=3, deleting=True), pod(0, attempt=3), pod(7, owner="new"))
    found = refusal(wait(job, left))
    assert found.reason == "NameConflict"
    assert "2 pods of an earlier job" in found.message and "job-3-0;" in found.message
    assert wait(job, (pod(0, owner="new"), pod(1, owner="new"))) is None
    assert wait(job) is None


def test_pods_that_have_ended_only_matter_if_they_have_a_name_that_is_needed() -> None:
    first = record("new")
    assert wait(first, (failed(0, 1, attempt=3),)) is None
    assert wait(first, (failed(0, 1),)) is not None
    fourth = record("new", {"attempt": 3})
    assert wait(fourth, (failed(0, 1, attempt=3),)) is not None


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.plural)
def test_an_object_of_an_earlier_job_keeps_the_job_waiting(kind: Resource) -> None:
    found = refusal(wait(record("new"), children=(child(kind, "old"),)))
    assert found.reason == "NameConflict"
    assert f"1 objects of an earlier job of this name are left, such as {kind.plural} " in (
        found.message
    )
    assert "delete those that stay" in found.message
    assert wait(record("new"), children=(child(kind, "new"),)) is None


def test_an_orphan_must_be_deleted_by_its_user() -> None:
    found = refusal(wait(record("new"), children=(child(SERVICES, ""),)))
    assert "services job exists and is not owned by this job; delete it" in found.message


def test_the_budget_of_an_earlier_job_keeps_the_job_waiting_and_one_of_others_does_not() -> None:
    found = refusal(wait(record("new"), budgets=(budget("old"),)))
    assert "such as poddisruptionbudgets job;" in found.message
    assert wait(record("new"), budgets=(budget(""),)) is None


def test_the_names_that_are_waited_for_are_those_that_the_operator_creates() -> None:
    made = job_resources(job_object("job", "ns"), IDENTITY, 3, "key")
    assert {kind: body["metadata"]["name"] for kind, body in made} == child_names(IDENTITY, 3)
