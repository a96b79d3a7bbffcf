"""A ComputeDomain lives as long as its attempt, and the next attempt waits until it is gone."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.compute_domain_record import ComputeDomainRecord
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.policies.startup import DOMAIN_SECONDS
from llmtrain_operator.reconcile.compute_domains import unwanted_domains
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


def domain(attempt: int, deleting: bool = False) -> ComputeDomainRecord:
    return ComputeDomainRecord(f"d{attempt}", "ns", f"job-{attempt}", "uid", attempt, deleting)


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
    domains: tuple[ComputeDomainRecord, ...],
    deleted: list[str],
) -> None:
    view = make_observed(job).view
    assert [found.name for found in unwanted_domains(view, pods, domains)] == deleted


def starting(seconds: float, *domains: ComputeDomainRecord) -> Any:
    placed: dict[str, Any] = {"attempt": 1, "placement": {**PLACEMENT, "attempt": 1}}
    return settle(
        make_observed(status(attemptStartTime=ago(seconds), **placed), compute_domains=domains)
    )[0]


def test_pods_are_created_once_the_domain_of_the_last_attempt_is_gone() -> None:
    waits = starting(1, domain(0, deleting=True))
    assert waits.create_pods == () and waits.reconcile_after is not None
    assert waits.reconcile_after <= DOMAIN_SECONDS - 1
    assert "waiting for the deletion of ComputeDomain job-0" in text(
        waits, ConditionType.PODS_READY
    )
    assert starting(1, domain(1)).create_pods == (0, 1), "it is that of this attempt"


def test_the_wait_for_a_domain_has_an_end() -> None:
    assert starting(DOMAIN_SECONDS + 1, domain(0, deleting=True)).create_pods == (0, 1)
