"""The limit of active jobs of a namespace. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.queueing import PendingJob, Unschedulable
from llmtrain_operator.scheduler.namespace_limit import limit_active_jobs
from tests.support.operator_harness.scheduling import refusal, waiting_job

pytestmark = pytest.mark.unit


def queue(*jobs: PendingJob | Unschedulable) -> dict[str, PendingJob | Unschedulable]:
    return {getattr(job, "uid", "unschedulable"): job for job in jobs}


def active(found: dict[str, PendingJob | Unschedulable]) -> set[str]:
    return {uid for uid, job in found.items() if isinstance(job, PendingJob)}


def test_the_oldest_jobs_of_a_namespace_are_active() -> None:
    jobs = [waiting_job(f"job-{i}", 1) for i in (2, 0, 1)]
    found = limit_active_jobs(queue(*jobs), {}, 2)
    assert active(found) == {"job-0", "job-1"}
    assert refusal(found["job-2"]).reason == "TooManyActiveJobs"
    assert "2 active jobs, as many as" in refusal(found["job-2"]).message


def test_placed_jobs_count() -> None:
    jobs = [waiting_job(f"job-{i}", 1) for i in range(3)]
    assert active(limit_active_jobs(queue(*jobs), {"ns": 2, "other": 9}, 3)) == {"job-0"}
    assert active(limit_active_jobs(queue(*jobs), {"ns": 7}, 3)) == set()


def test_namespaces_do_not_share_a_limit() -> None:
    jobs = [waiting_job(f"job-{i}", 1) for i in range(4)]
    jobs[3] = replace(jobs[3], namespace="other")
    assert active(limit_active_jobs(queue(*jobs), {}, 1)) == {"job-0", "job-3"}


def test_a_higher_priority_goes_first() -> None:
    jobs = [waiting_job("job-0", 1), waiting_job("job-1", 1, priority=5)]
    assert active(limit_active_jobs(queue(*jobs), {}, 1)) == {"job-1"}


def test_a_job_that_cannot_be_placed_keeps_its_reason_and_takes_no_place() -> None:
    broken = Unschedulable("FabricNotFound", "no Fabric")
    found = limit_active_jobs(queue(broken, waiting_job("job-0", 1)), {}, 1)
    assert found["unschedulable"] is broken and active(found) == {"job-0"}
