"""How often the status of a job is written while its gang starts. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.planning.assessment import Assessment
from llmtrain_operator.reconcile.checklist import COSMETIC_SECONDS, COUNT_SECONDS, decide
from tests.support.operator_harness.observed import (
    NOW,
    assignment,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

PODS, SECONDS_PER_POD, STEP = 64, 0.5, 0.25


def placed_gang() -> Observed:
    """Return a gang of PODS pods that has just got its nodes."""
    names = [f"n{index}" for index in range(PODS)]
    spec = {"workers": {"nodes": PODS}, "training": {"steps": 100, "globalBatchSize": PODS}}
    observed = make_observed(
        spec=spec, nodes={name: node(name) for name in names}, decision=assignment(0, *names)
    )
    return settle(observed)[1]


def test_a_gang_of_many_pods_starts_with_few_writes() -> None:
    observed, last_write = placed_gang(), 0.0
    writes: list[dict[str, Any]] = []
    seconds = 0.0
    while observed.view.phase != "Running":
        seconds += STEP
        started = int(seconds / SECONDS_PER_POD)
        pods = tuple(
            pod(index, "Running" if index < started else "Pending") for index in range(PODS)
        )
        observed = replace(
            observed,
            now=NOW + timedelta(seconds=seconds),
            pods=pods,
            seconds_since_write=seconds - last_write,
        )
        actions = decide(observed)
        if actions.changed:
            last_write = seconds
            writes.append(dict(actions.status))
            observed = replace(observed, raw={**observed.raw, "status": actions.status})
    assert seconds == PODS * SECONDS_PER_POD, "the last change is written at once"
    assert (writes[-1]["nodes"], writes[-1]["readyNodes"]) == (f"{PODS}/{PODS}", PODS)
    assert len(writes) <= 1 + seconds / COUNT_SECONDS
    assert len(writes) >= seconds / COUNT_SECONDS, "the number is shown meanwhile"


def test_why_pods_do_not_start_is_written_sooner_than_their_number() -> None:
    stored = status()
    _, shown = settle(make_observed(stored, pods=(pod(0, "Pending"), pod(1, "Pending"))))
    counted = replace(shown, pods=(pod(0), pod(1, "Pending")), seconds_since_write=3.0)
    actions = decide(counted)
    assert not actions.changed and actions.reconcile_after is not None
    assert actions.reconcile_after <= COUNT_SECONDS - 3.0
    waiting = pod(1, "Pending", reason="CreateContainerError", message="no such device")
    told = decide(replace(counted, pods=(pod(0), waiting)))
    assert "no such device" in text(told, ConditionType.PODS_READY)
    assert told.status["nodes"] == "1/2", "a write contains all that has changed"
    soon = replace(counted, pods=(pod(0), waiting), seconds_since_write=COSMETIC_SECONDS / 2)
    assert not decide(soon).changed


def test_a_running_gang_that_is_not_ready_any_more_is_written_at_once() -> None:
    running = status(ConditionType.RUNNING)
    _, ready = settle(make_observed(running, pods=(pod(0), pod(1))))
    fewer = replace(ready, pods=(pod(0), pod(1, ready=False)), seconds_since_write=0.0)
    actions = decide(fewer)
    assert reason(actions, ConditionType.PODS_READY)[0] == "False"
    assert actions.status["nodes"] == "1/2"


def test_the_plan_of_the_placement_waits_for_the_next_write() -> None:
    """It differs from the plan of a job that waits: other nodes, other uplinks."""
    pods = (pod(0, "Pending"), pod(1, "Pending"))
    _, shown = settle(make_observed(status(), pods=pods))
    planned = replace(shown, assessment=Assessment({"tokens": 2}), seconds_since_write=3.0)
    assert not decide(planned).changed
    runs = decide(replace(planned, pods=(pod(0), pod(1))))
    assert (runs.status["phase"], runs.status["plan"]) == ("Running", {"tokens": 2})
