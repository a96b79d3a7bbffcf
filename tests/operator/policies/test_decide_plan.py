"""The plan in the status, the memory check, and the estimated start and end. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.queueing import Unschedulable
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.planning.assessment import Assessment, assess
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.reconcile.transitions import record_transitions
from llmtrain_operator.reconcile.writer import status_patch
from tests.support.operator_harness.harness import LARGE
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    assignment,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

H100 = Node("n0", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, {"nvidia.com/gpu": 2})
OFFER = assignment(0)
FULL = Unschedulable("InsufficientGpus", "needs 2 nodes; 1 is free")


def with_assessment(observed: Observed, *nodes: Node) -> Observed:
    assert not isinstance(observed.checked, list)
    return replace(observed, assessment=assess(observed.checked, nodes or (H100,), None))


def with_annotation(value: str) -> dict[str, Any]:
    return {"annotations": {ALLOW_OVER_MEMORY: value}}


def at(seconds: float) -> float:
    return (NOW + timedelta(seconds=seconds)).timestamp()


def plan_of(observed: Observed) -> dict[str, Any]:
    assert observed.assessment is not None and observed.assessment.plan is not None
    return dict(observed.assessment.plan)


def test_the_plan_is_written_with_the_acceptance() -> None:
    observed = with_assessment(make_observed(decision=FULL))
    actions = decide(observed)
    assert actions.status["plan"] == plan_of(observed)
    assert reason(actions, ConditionType.ACCEPTED) == ("True", "Valid")


def test_a_job_that_does_not_fit_is_rejected() -> None:
    observed = with_assessment(make_observed(spec=LARGE, decision=OFFER))
    actions, settled = settle(observed)
    assert reason(actions, ConditionType.ACCEPTED) == ("False", "WillNotFit")
    assert "H100 has 79.6 GiB" in text(actions, ConditionType.ACCEPTED)
    assert (actions.status["phase"], actions.status["reason"]) == ("Rejected", "WillNotFit")
    assert (
        actions.assignment is None and "placement" not in actions.status and not actions.create_pods
    )
    assert actions.status["plan"]["memory"]["fits"] is False, "the figures stay for its user"
    later = replace(settled, now=NOW + timedelta(seconds=60))
    assert not decide(later).changed
    large = replace(H100, labels={"nvidia.com/gpu.product": "NVIDIA-H200"})
    actions, _ = settle(with_assessment(settled, H100, large))
    assert reason(actions, ConditionType.ACCEPTED) == ("True", "Valid")
    assert actions.create_pods == (0, 1), "a larger GPU has come, and with it an offer"


@pytest.mark.parametrize(
    ("value", "decision"),
    [
        ("true", ("True", "Valid")),
        ("false", ("False", "WillNotFit")),
        ("yes", ("False", "InvalidSpec")),
    ],
)
def test_the_annotation_overrides(value: str, decision: tuple[str, str]) -> None:
    actions, _ = settle(
        with_assessment(make_observed(spec=LARGE, metadata=with_annotation(value), decision=OFFER))
    )
    assert reason(actions, ConditionType.ACCEPTED) == decision
    assert ("placement" in actions.status) is (value == "true")
    if value == "yes":
        assert f"metadata.annotations[{ALLOW_OVER_MEMORY}]: 'yes'" in text(
            actions, ConditionType.ACCEPTED
        )


def test_a_placed_job_keeps_its_nodes() -> None:
    for metadata in ({}, with_annotation("a slip")):
        observed = make_observed(
            status(ConditionType.RUNNING), spec=LARGE, metadata=metadata, pods=(pod(0), pod(1))
        )
        actions, _ = settle(with_assessment(observed))
        assert actions.status["phase"] == "Running" and not actions.delete_pods


def test_the_memory_of_a_suspended_job_is_checked_when_it_is_resumed() -> None:
    actions, observed = settle(with_assessment(make_observed(spec={**LARGE, "suspend": True})))
    assert actions.status["phase"] == "Suspended"
    raw = {**observed.raw, "spec": {**observed.raw["spec"], "suspend": False}}
    actions, _ = settle(replace(observed, raw=raw))
    assert reason(actions, ConditionType.ACCEPTED) == ("False", "WillNotFit")


def test_pods_of_an_earlier_attempt_are_deleted() -> None:
    displaced = status(placed=False, attempt=1)
    actions, _ = settle(
        with_assessment(make_observed(displaced, spec=LARGE, pods=(pod(0), pod(1))))
    )
    assert reason(actions, ConditionType.ACCEPTED) == ("False", "WillNotFit")
    assert [victim.index for victim in actions.delete_pods] == [0, 1]


def test_without_an_assessment_the_old_plan_stays() -> None:
    old = {
        "gpus": 4,
        "parameters": 1,
        "tokens": 1,
        "totalFlops": 1.0,
        "bubble": 0.0,
        "flopsPerToken": {"fullAttention": 1, "causalAttention": 1},
        "memory": {"perGpuBytes": {}, "totalBytes": 1},
    }
    observed = make_observed(status(ConditionType.RUNNING, plan=old), pods=(pod(0), pod(1)))
    assert settle(observed)[0].status["plan"] == old
    gone = replace(observed, assessment=Assessment())
    assert "plan" not in settle(gone)[0].status, "no model, no plan"


def test_status_patch_removes_absent_fields_of_the_plan() -> None:
    observed = make_observed(status(plan={"step": {"exposed": {"dp": 1.0, "tp": 2.0}}, "mfu": 0.4}))
    body = status_patch(
        observed, {**observed.raw["status"], "plan": {"step": {"exposed": {"dp": 3.0}}}}
    )
    plan = {"step": {"exposed": {"dp": 3.0, "tp": None}}, "mfu": None}
    assert body["status"] == {"plan": plan, "revision": 1}


def test_estimated_start_and_end_of_a_waiting_job() -> None:
    starts = at(3600)
    observed = with_assessment(make_observed(decision=replace(FULL, starts_at=starts)))
    actions, _ = settle(observed)
    assert actions.status["estimatedStart"] == format_time(NOW + timedelta(hours=1))
    seconds = 100 * plan_of(observed)["step"]["seconds"]
    expected = format_time(NOW + timedelta(seconds=3600 + seconds))
    assert actions.status["progress"]["eta"] == expected
    assert actions.status["progressPercent"] == "0%"


def test_without_a_duration_only_the_start_is_shown() -> None:
    actions, _ = settle(make_observed(decision=replace(FULL, starts_at=at(3600))))
    assert "estimatedStart" in actions.status and "eta" not in actions.status.get("progress", {})


def test_a_small_change_of_an_estimate_is_not_written() -> None:
    observed = with_assessment(make_observed(decision=replace(FULL, starts_at=at(3600))))
    _, settled = settle(observed)
    for seconds in (3590, 3640, 3900, 3300):
        moved = replace(settled, decision=replace(FULL, starts_at=at(seconds)))
        assert not decide(moved).changed
    far = decide(replace(settled, decision=replace(FULL, starts_at=at(5000))))
    assert far.status["estimatedStart"] == format_time(NOW + timedelta(seconds=5000))
    unknown = decide(replace(settled, decision=FULL))
    assert "estimatedStart" not in unknown.status and "eta" not in unknown.status["progress"]


def test_eta_of_a_placed_job_comes_from_the_plan() -> None:
    waiting = with_assessment(make_observed(decision=replace(FULL, starts_at=at(3600))))
    _, settled = settle(waiting)
    actions, _ = settle(replace(settled, decision=OFFER))
    assert "estimatedStart" not in actions.status
    work = 100 * plan_of(waiting)["step"]["seconds"]
    assert actions.status["progress"]["eta"] == format_time(NOW + timedelta(seconds=work))


def test_suspension_clears_the_estimates() -> None:
    observed = with_assessment(
        make_observed(
            status(ConditionType.RUNNING, progress={"step": 5, "totalSteps": 100, "eta": ago(-60)}),
            spec={"suspend": True},
        )
    )
    actions, _ = settle(observed)
    assert "eta" not in actions.status["progress"]


def report(step: int, seconds: float, attempt: int = 0) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "step": step,
        "totalSteps": 10**6,
        "stepSeconds": seconds,
        "phase": "training",
    }


def test_measured_and_planned_step_time() -> None:
    observed = with_assessment(make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1))))
    seconds = plan_of(observed)["step"]["seconds"]
    metrics = Metrics()
    writes: list[dict[str, Any]] = []
    for step in range(1, 2000):
        pace = 9.0 * seconds if step < 8 else seconds * (1.25 + 0.25 * (step > 700))
        observed = replace(observed, report=report(step, pace))
        actions = decide(observed)
        record_transitions(observed, actions.status, metrics)
        measured = actions.status["plan"].get("measured")
        if measured != (observed.raw["status"].get("plan") or {}).get("measured"):
            writes.append(measured)
        observed = replace(observed, raw={**observed.raw, "status": actions.status})
    assert writes[0] == {"attempt": 0, "fromStep": 1}
    assert [w["atStep"] for w in writes[1:]] == [11, 701]
    assert [w["errorRatio"] for w in writes[1:]] == [pytest.approx(1.25), pytest.approx(1.5)]
    assert parse_time(actions.status["progress"]["eta"]) > NOW
    count = metrics.registry.get_sample_value("llmtrain_operator_plan_error_ratio_count")
    total = metrics.registry.get_sample_value("llmtrain_operator_plan_error_ratio_sum")
    assert (count, total) == (2, pytest.approx(2.75))


def test_a_new_attempt_starts_a_new_measurement() -> None:
    old = {"attempt": 0, "fromStep": 1, "atStep": 500, "stepSeconds": 2.0, "errorRatio": 1.1}
    known = plan_of(with_assessment(make_observed()))
    first = make_observed(
        status(
            ConditionType.RUNNING,
            plan={**known, "measured": old},
            attempt=1,
            placement={**PLACEMENT, "attempt": 1},
        ),
        pods=(pod(0, attempt=1), pod(1, attempt=1)),
        report=report(501, 30.0, attempt=1),
    )
    actions, observed = settle(with_assessment(first))
    assert actions.status["plan"]["measured"] == {
        "attempt": 1,
        "fromStep": 501,
        "stepSeconds": 2.0,
        "errorRatio": 1.1,
    }, "its first steps are no measure: the old correction holds until a new one"
    actions, _ = settle(replace(observed, report=report(511, 3.0, attempt=1)))
    assert actions.status["plan"]["measured"]["stepSeconds"] == 3.0


def test_step_time_is_measured_without_a_planned_time() -> None:
    observed = with_assessment(
        make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1))),
        replace(H100, labels={}),
    )
    for step in (1, 20):
        _, observed = settle(replace(observed, report=report(step, 0.5)))
    measured = observed.raw["status"]["plan"]["measured"]
    assert measured["stepSeconds"] == 0.5 and "errorRatio" not in measured
