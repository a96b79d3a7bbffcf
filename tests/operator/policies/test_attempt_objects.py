"""Some objects live as long as their attempt, and the next attempt waits until they are gone."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.attempt_record import AttemptRecord
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.kube.resources import COMPUTE_DOMAINS, POD_GROUPS, Resource
from llmtrain_operator.policies.startup import DELETION_SECONDS
from llmtrain_operator.reconcile.attempt_objects import unwanted_objects
from tests.support.operator_harness.observed import (
    PLACEMENT,
    ago,
    make_observed,
    pod,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

RUNNING, OVER, WAITING = (
    status(ConditionType.RUNNING, attempt=1, placement={**PLACEMENT, "attempt": 1}),
    status(ConditionType.SUCCEEDED, attempt=1, placement={**PLACEMENT, "attempt": 1}),
    status(placed=False, attempt=1),
)


def domain(attempt: int, deleting: bool = False, kind: Resource = COMPUTE_DOMAINS) -> AttemptRecord:
    name = f"job-{attempt}"
    return AttemptRecord(kind, f"d{attempt}", "ns", name, "uid", attempt, deleting)


@pytest.mark.parametrize(
    ("job", "pods", "domains", "deleted"),
    [
        (RUNNING, (pod(0, attempt=1),), (domain(1),), []),
        (RUNNING, (pod(0, attempt=1),), (domain(0), domain(1)), ["job-0"]),
        (RUNNING, (pod(0),), (domain(0), domain(1)), []),
        (RUNNING, (pod(0, "Failed"),), (domain(0), domain(1)), ["job-0"]),
        (RUNNING, (), (domain(0, deleting=True),), []),
        (RUNNING, (), (domain(2),), []),
        (OVER, (pod(0, "Succeeded", attempt=1),), (domain(1),), ["job-1"]),
        (OVER, (pod(0, attempt=1),), (domain(1),), []),
        (WAITING, (), (domain(1), domain(0)), ["job-1", "job-0"]),
    ],
    ids=[
        "of the attempt that runs",
        "of an earlier attempt",
        "of an earlier attempt with a pod that runs",
        "of an earlier attempt whose pod has ended",
        "deleted already",
        "of a later attempt, which this process has not seen yet",
        "of a job that has succeeded",
        "of a job that has succeeded, with a pod that still runs",
        "of a job that was placed before",
    ],
)
def test_a_compute_domain_is_deleted_after_its_attempt(
    job: dict[str, Any],
    pods: tuple[PodRecord, ...],
    domains: tuple[AttemptRecord, ...],
    deleted: list[str],
) -> None:
    view = make_observed(job).view
    assert [found.name for found in unwanted_objects(view, pods, domains)] == deleted


def starting(seconds: float, *domains: AttemptRecord) -> Any:
    placed: dict[str, Any] = {"attempt": 1, "placement": {**PLACEMENT, "attempt": 1}}
    return settle(
        make_observed(status(attemptStartTime=ago(seconds), **placed), attempt_objects=domains)
    )[0]


@pytest.mark.parametrize(
    ("kind", "name"), [(COMPUTE_DOMAINS, "ComputeDomain"), (POD_GROUPS, "PodGroup")]
)
def test_pods_are_created_once_the_object_of_the_last_attempt_is_gone(
    kind: Resource, name: str
) -> None:
    waits = starting(1, domain(0, deleting=True, kind=kind))
    assert waits.create_pods == () and waits.reconcile_after is not None
    assert waits.reconcile_after <= DELETION_SECONDS - 1
    wanted = f"waiting for the deletion of {name} job-0"
    assert wanted in text(waits, ConditionType.PODS_READY)
    assert starting(1, domain(1, deleting=True, kind=kind)).create_pods == ()
    assert starting(1, domain(1)).create_pods == (0, 1), "it is that of this attempt"


def test_the_wait_for_a_domain_has_an_end() -> None:
    assert starting(DELETION_SECONDS + 1, domain(0, deleting=True)).create_pods == (0, 1)
