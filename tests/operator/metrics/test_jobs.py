"""The figures of a job, read from its status."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, Reason, set_condition
from llmtrain_operator.cache.job_record import job_record
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.metrics.jobs import JobFigures, job_figures, oldest_wait
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import PLACEMENT

pytestmark = pytest.mark.unit

CREATED, LATER = "2026-01-01T12:00:00Z", "2026-01-01T12:30:00Z"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
PLAN = {"step": {"seconds": 2.5, "collectives": {"tp": 0.5, "dp": 0.25, 'x"} 1': 9.0}}}


def record(status: dict[str, Any]) -> JobRecord:
    raw = job_object("job", "team")
    raw["metadata"] |= {"uid": "u", "resourceVersion": "1", "creationTimestamp": CREATED}
    return job_record({**raw, "status": status})


def conditions(*found: tuple[ConditionType, bool, str, str]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for kind, true, reason, at in found:
        made = set_condition(made, kind, true, reason, "text", generation=1, now=at)
    return made


def queued(reason: str, *more: tuple[ConditionType, bool, str, str]) -> dict[str, Any]:
    placed = (ConditionType.PLACED, False, reason, CREATED)
    return {"phase": "Queued", "conditions": conditions(placed, *more)}


def test_a_job_that_waits() -> None:
    found = job_figures(record(queued(Reason.INSUFFICIENT_GPUS)))
    assert found == JobFigures("team", "job", "Queued", "InsufficientGpus", NOON)


def test_a_new_job_waits_from_its_creation() -> None:
    assert job_figures(record({})) == JobFigures("team", "job", "Pending", "Queued", NOON)


def test_time_in_which_a_job_was_suspended_is_no_wait() -> None:
    resumed = (ConditionType.SUSPENDED, False, Reason.RESUMED, LATER)
    assert job_figures(record(queued("Queued", resumed))).waiting_since == NOON + 1800


def test_a_reason_that_is_not_ours_is_other() -> None:
    assert job_figures(record(queued("Ransom"))).waiting_reason == "Other"


@pytest.mark.parametrize("phase", ["Running", "Starting", "Suspended", "Rejected", "Failed"])
def test_other_jobs_do_not_wait(phase: str) -> None:
    found = job_figures(record({"phase": phase, "placement": PLACEMENT}))
    assert (found.phase, found.waiting_reason, found.waiting_since) == (phase, None, None)


def test_the_plan_of_a_job() -> None:
    found = job_figures(record({"phase": "Running", "placement": PLACEMENT, "plan": PLAN}))
    assert found.planned_step == 2.5
    assert found.planned_collectives == {"tp": 0.5, "dp": 0.25}, "groups have known labels"
    ended = conditions((ConditionType.SUCCEEDED, True, Reason.COMPLETED, LATER))
    done = job_figures(record({"phase": "Succeeded", "conditions": ended, "plan": PLAN}))
    assert done.planned_step is None and not done.planned_collectives


def test_the_oldest_wait() -> None:
    def waits(since: float | None) -> JobFigures:
        return JobFigures("team", "job", "Queued", "Queued", since)

    assert oldest_wait([waits(70), waits(None), waits(30)], now=100) == 70
    assert oldest_wait([waits(None)], now=100) == 0
    assert oldest_wait([waits(101)], now=100) == 0, "clocks differ"
