"""A progress report that lies moves no forecast of another job: neither its start nor its nodes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Allocation
from llmtrain_core.topology.inventory import Usage
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.planning.confirmed_progress import (
    MAX_SLOWDOWN,
    MAX_SPEEDUP,
    SLACK_SECONDS,
)
from llmtrain_operator.reconcile.checklist import decide as decide_job
from llmtrain_operator.scheduler.jobs import allocation_of, pending_job, running_job
from tests.support.examples import examples
from tests.support.operator_harness.observed import NOW, ago, make_observed, pod, status
from tests.support.operator_harness.scheduling import (
    GPU,
    cluster,
    decide,
    nodes,
    refusal,
    waiting_job,
)

pytestmark = pytest.mark.unit

STEPS, STEP_SECONDS, PASSED = 1000, 60.0, 1200.0
"""The job of the liar: 20 of 1000 minutes have passed."""
PLAN = {
    "gpus": 4,
    "parameters": 1,
    "tokens": 1,
    "totalFlops": 1.0,
    "bubble": 0.0,
    "flopsPerToken": {"fullAttention": 1, "causalAttention": 1},
    "memory": {"perGpuBytes": {}, "totalBytes": 1},
}
PLANNED = {**PLAN, "step": {"seconds": STEP_SECONDS, "computeSeconds": 50.0, "exposed": {}}}
LIES: dict[str, list[dict[str, Any]]] = {
    "almost done": [{"step": STEPS - 1, "totalSteps": STEPS, "stepSeconds": 1e-9}],
    "done": [{"step": STEPS, "totalSteps": STEPS, "lastCheckpointStep": STEPS}],
    "a longer run": [{"step": 1, "totalSteps": 2**52, "stepSeconds": 60.0}],
    "never done": [{"step": 1, "totalSteps": STEPS, "stepSeconds": 1e9}],
    "slow steps": [
        {"step": step, "totalSteps": STEPS, "stepSeconds": 1e6} for step in (1, 11, 12, 22)
    ],
    "fast steps": [
        {"step": step, "totalSteps": STEPS, "stepSeconds": 1e-6} for step in (1, 11, 12, 15)
    ],
    "fast steps, and many": [
        {"step": step, "totalSteps": STEPS, "stepSeconds": 1e-6} for step in (1, 500, 999)
    ],
    "everything lost": [{"step": 2**52, "totalSteps": 2**52, "lastCheckpointStep": 0}],
    "checkpoints without steps": [{"lastCheckpointStep": STEPS}],
}


def running(plan: dict[str, Any], **sections: Any) -> Observed:
    before = status(ConditionType.RUNNING, plan=plan, startTime=ago(PASSED))
    before["attemptStartTime"] = ago(PASSED)
    training = {"steps": STEPS, "globalBatchSize": 8, "microBatchSize": 1}
    return make_observed(before, spec={"training": training, **sections}, pods=(pod(0), pod(1)))


def after(observed: Observed, reports: list[dict[str, Any]]) -> Observed:
    """Return the job after the operator has applied the reports, one a second."""
    for report in reports:
        observed = replace(observed, report={"phase": "training", "attempt": 0, **report})
        for _ in range(2):
            new = decide_job(observed).status
            observed = replace(observed, raw={**observed.raw, "status": new})
        observed = replace(observed, now=observed.now + timedelta(seconds=1))
    return replace(observed, report=None)


def record(observed: Observed) -> JobRecord:
    raw = {**observed.raw, "metadata": {**observed.raw["metadata"], "creationTimestamp": ago(9000)}}
    return JobRecord("uid", "mallory", "job", 1, raw)


def allocation(observed: Observed, now: float) -> Allocation:
    found = allocation_of(record(observed), observed.checked, {}, now, ("n0", "n1"))
    assert found is not None
    return found


def start_of_waiting_job(held: Allocation) -> float | None:
    """Return the forecast for a job of another tenant that needs the same two nodes."""
    there = tuple(
        replace(node, name=name) for node, name in zip(nodes(2, 2), held.nodes, strict=True)
    )
    used = tuple(Usage(name, GPU, 2, "uid") for name in held.nodes)
    state = replace(cluster(there, used, allocations=(held,)), now=NOW.timestamp())
    waiting = replace(waiting_job("bob-1", 2, 2), namespace="bob")
    return refusal(decide([waiting], state)["bob-1"]).starts_at


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_moves_no_forecast(lie: str) -> None:
    honest = running(PLANNED)
    lying = after(honest, LIES[lie])
    assert lying.raw["status"] != honest.raw["status"], "the status shows what the pod says"
    now = NOW.timestamp() + 10
    expected, found = allocation(honest, now), allocation(lying, now)
    assert found == expected
    start = start_of_waiting_job(found)
    assert start == start_of_waiting_job(expected)
    assert start == pytest.approx(NOW.timestamp() - PASSED + STEPS * STEP_SECONDS, abs=2)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_without_a_plan_gives_no_forecast(lie: str) -> None:
    lying = after(running(PLAN), LIES[lie])
    found = allocation(lying, NOW.timestamp() + 10)
    assert found.ends_at is None
    assert found.lost_seconds == PASSED + 10


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_not_remembered_for_the_next_attempt(lie: str) -> None:
    honest = running(PLANNED)
    found: list[float | None] = []
    for observed in (honest, after(honest, LIES[lie])):
        raw = {**observed.raw, "status": {**observed.raw["status"], "attempt": 1}}
        again = record(replace(observed, raw=raw))
        pending = pending_job(again, observed.checked, {}, {}, NOW.timestamp())
        found.append(getattr(pending, "expected_duration", None))
    assert found[0] == found[1] == STEPS * STEP_SECONDS


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_does_not_change_the_uplinks_in_use(lie: str) -> None:
    honest = running(PLANNED)
    assert isinstance(honest.checked, Job)
    seconds = []
    for observed in (honest, after(honest, LIES[lie])):
        job = running_job(record(observed), honest.checked, {}, NOW.timestamp(), Request.of)
        assert job is not None
        seconds.append(job.step_seconds)
    assert seconds[0] == seconds[1] == STEP_SECONDS


steps = st.integers(-1, 2 * STEPS) | st.sampled_from([2**53, None, "1"])
figures = st.floats(allow_nan=True) | st.sampled_from([0, -1, 1e-9, 1e9, STEP_SECONDS, "1"])
reports = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "step": steps,
            "totalSteps": steps,
            "lastCheckpointStep": steps,
            "stepSeconds": figures,
            "attempt": st.integers(0, 1),
        },
    ),
    max_size=6,
)


@examples(150)
@given(reports)
def test_no_report_moves_the_end_beyond_what_plan_and_clock_permit(
    said: list[dict[str, Any]],
) -> None:
    lying = after(running(PLANNED), said)
    now = NOW.timestamp() + 10
    found = allocation(lying, now)
    assert 0 <= found.lost_seconds <= PASSED + 10
    if found.ends_at is None:
        return
    done = MAX_SPEEDUP * (PASSED + 10 + SLACK_SECONDS) / STEP_SECONDS
    least = (STEPS - done) * STEP_SECONDS / MAX_SPEEDUP**2
    longest_step = max(STEP_SECONDS, (PASSED + 10 + SLACK_SECONDS) / 10)
    most = STEPS * longest_step * MAX_SLOWDOWN
    assert least - SLACK_SECONDS <= found.ends_at - now <= most + SLACK_SECONDS


def test_fine_tuning_by_tokens_may_have_more_steps_than_full_sequences_need() -> None:
    """The trainer derives them from the data. The clock bounds them nevertheless."""
    training = {"tokens": 1, "globalBatchSize": 8, "microBatchSize": 1}
    data = {"objective": "sft", "sources": [{"name": "pairs", "uri": "file:///pairs"}]}
    honest = running(PLANNED, training=training, data=data)
    assert isinstance(honest.checked, Job)
    assert honest.checked.total_steps == 1 and not honest.checked.knows_total_steps
    now = NOW.timestamp() + 10
    for step, lost in ((13, 180.0), (2 * STEPS, PASSED + 10)):
        said = [{"step": step, "totalSteps": 99, "lastCheckpointStep": step - 3}]
        assert allocation(after(honest, said), now).lost_seconds == pytest.approx(lost)


def test_an_honest_report_corrects_the_forecast() -> None:
    honest = [
        {"step": step, "totalSteps": STEPS, "stepSeconds": 90.0, "lastCheckpointStep": 10}
        for step in (1, 13)
    ]
    observed = after(running(PLANNED), honest)
    now = NOW.timestamp() + 10
    found = allocation(observed, now)
    assert found.ends_at == pytest.approx(now + (STEPS - 13) * 90.0, abs=60)
    assert found.lost_seconds == pytest.approx(3 * 90.0)
