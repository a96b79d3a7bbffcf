"""How long a job holds its nodes: by its deadline, its plan, or its own pace. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.planning.durations import Estimate, duration, ends_at, step_seconds
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import NOW, ago, status

pytestmark = pytest.mark.unit

NOW_SECONDS = NOW.timestamp()
STEP = {"step": {"seconds": 2.0}}
"""100 steps: 200 seconds."""


def job(deadline: int | None = None) -> Job:
    policy = {} if deadline is None else {"runPolicy": {"activeDeadlineSeconds": deadline}}
    found = check("job", job_object("job", "ns", **policy)["spec"])
    assert isinstance(found, Job), found
    return found


PACES: list[tuple[dict[str, Any], Estimate | None]] = [
    ({}, None),
    (STEP, Estimate(2.0, "planned")),
    ({**STEP, "measured": {"attempt": 0, "fromStep": 1}}, Estimate(2.0, "planned")),
    ({**STEP, "measured": {"stepSeconds": 9.0, "errorRatio": 1.5}}, Estimate(3.0, "measured")),
    ({"measured": {"stepSeconds": 9.0}}, Estimate(9.0, "measured")),
]


@pytest.mark.parametrize(("plan", "expected"), PACES)
def test_the_time_of_a_step(plan: dict[str, Any], expected: Estimate | None) -> None:
    assert step_seconds(JobView({}, {}, {"plan": plan})) == expected


WAITING: list[tuple[int | None, dict[str, Any], Estimate | None]] = [
    (None, {}, None),
    (None, {"plan": STEP}, Estimate(200.0, "planned")),
    (
        None,
        {"plan": STEP, "progress": {"step": 70, "lastCheckpointStep": 60}},
        Estimate(80.0, "planned"),
    ),
    (150, {}, Estimate(150.0, "deadline")),
    (150, {"plan": STEP}, Estimate(150.0, "deadline")),
    (900, {"plan": STEP}, Estimate(200.0, "planned")),
    (900, {"plan": STEP, "startTime": ago(800)}, Estimate(100.0, "deadline")),
    (900, {"plan": STEP, "startTime": ago(1000)}, Estimate(0.0, "deadline")),
]


@pytest.mark.parametrize(("deadline", "found", "expected"), WAITING)
def test_a_waiting_job(
    deadline: int | None, found: dict[str, Any], expected: Estimate | None
) -> None:
    assert duration(job(deadline), JobView({}, {}, found), NOW_SECONDS) == expected


def at(seconds: float) -> float:
    return NOW_SECONDS + seconds


RUNNING: list[tuple[int | None, dict[str, Any], Estimate | None]] = [
    (None, status(ConditionType.RUNNING), None),
    (None, status(plan=STEP), Estimate(at(140), "planned")),
    (
        None,
        status(ConditionType.RUNNING, plan=STEP, progress={"eta": ago(-500)}),
        Estimate(at(500), "measured"),
    ),
    (None, status(plan=STEP, progress={"eta": ago(-500)}), Estimate(at(140), "planned")),
    (None, status(ConditionType.RUNNING, progress={"eta": ago(5)}), None),
    (90, status(ConditionType.RUNNING, progress={"eta": ago(5)}), Estimate(at(30), "deadline")),
    (90, status(ConditionType.RUNNING, progress={"eta": ago(-10)}), Estimate(at(10), "measured")),
    (90, status(ConditionType.RUNNING, plan=STEP), Estimate(at(30), "deadline")),
    (30, status(ConditionType.RUNNING), Estimate(at(0), "deadline")),
]


@pytest.mark.parametrize(("deadline", "found", "expected"), RUNNING)
def test_a_job_that_holds_nodes(
    deadline: int | None, found: dict[str, Any], expected: Estimate | None
) -> None:
    assert ends_at(job(deadline), JobView({}, {}, found), NOW_SECONDS) == expected


def test_only_a_deadline_is_certain() -> None:
    assert Estimate(1.0, "deadline").certain
    assert not Estimate(1.0, "measured").certain and not Estimate(1.0, "planned").certain
