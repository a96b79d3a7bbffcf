"""A job waits for the pods of a deleted job of its name. Pure."""

from __future__ import annotations

import pytest

from llmtrain_operator.manifests.names import JobIdentity, job_of_pod
from llmtrain_operator.scheduler.earlier_pods import wait_for_earlier_pods
from tests.support.operator_harness.observed import failed, pod
from tests.support.operator_harness.scheduling import record, refusal

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["job", "a-1", "a-1-2"])
def test_the_name_of_a_pod_names_its_job(name: str) -> None:
    assert job_of_pod(JobIdentity("ns", name, "uid").pod(12, 345)) == name


def test_pods_of_an_earlier_job_that_run_keep_the_job_waiting() -> None:
    job = record("new")
    left = [pod(1, attempt=3, deleting=True), pod(0, attempt=3), pod(7, owner="new")]
    found = refusal(wait_for_earlier_pods(job, left))
    assert found.reason == "NameConflict"
    assert "2 pods of an earlier job" in found.message and "job-3-0;" in found.message
    assert wait_for_earlier_pods(job, [pod(0, owner="new"), pod(1, owner="new")]) is None
    assert wait_for_earlier_pods(job, []) is None


def test_pods_that_have_ended_only_matter_if_they_have_a_name_that_is_needed() -> None:
    first = record("new")
    assert wait_for_earlier_pods(first, [failed(0, 1, attempt=3)]) is None
    assert wait_for_earlier_pods(first, [failed(0, 1)]) is not None
    fourth = record("new", {"attempt": 3})
    assert wait_for_earlier_pods(fourth, [failed(0, 1, attempt=3)]) is not None
