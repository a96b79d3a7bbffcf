"""Counters by reason, and what every process exports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from llmtrain_core.api.conditions import ConditionType, Reason, set_condition
from llmtrain_core.api.failure_info import TRAINER_REASONS
from llmtrain_operator.metrics.gpu_seconds import GpuUse
from llmtrain_operator.metrics.reasons import FAILURE_REASONS, OTHER, reason_label
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.reconcile.transitions import record_transitions
from tests.support.operator_harness.observed import ago, make_observed, status
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

REPORTING = {"InputError", "TrainerError", "PeerLostError", "FailureInfo", "unusable"}

REPEATS: dict[GpuUse, int] = {"training": 10**12}
"""So many GPUs that a microsecond of training repeats all that was undone."""


def failure(reason: str, attempt: int = 0) -> dict[str, Any]:
    return {"time": ago(0), "attempt": attempt, "reason": reason, "message": "text"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"llmtrain_operator_{name}", labels)


def recorded(before: dict[str, Any], after: dict[str, Any]) -> Metrics:
    metrics = Metrics()
    metrics.gpu_seconds.update("uid", {"restarting": 1})
    record_transitions(make_observed(before), after, metrics)
    return metrics


def test_a_restart_after_a_failure() -> None:
    running = status(ConditionType.RUNNING, phase="Running")
    after = {**running, "restarts": 1, "attempt": 1, "failures": [failure("CorpusMissing")]}
    found = recorded(running, after)
    assert value(found, "failures_total", reason="CorpusMissing") == 1
    assert value(found, "restarts_total", reason="CorpusMissing") == 1
    assert value(found, "finished_total", result="Failed", reason="CorpusMissing") == 0
    found.gpu_seconds.update("uid", REPEATS)
    assert value(found, "gpu_seconds_total", state="lost") == 4 * 60, "since the attempt started"


def test_a_failure_that_ends_the_job() -> None:
    running = status(ConditionType.RUNNING, phase="Running")
    found = recorded(running, _ended(running, ConditionType.FAILED, Reason.TOO_MANY_RESTARTS))
    assert value(found, "failures_total", reason="Evicted") == 1
    assert value(found, "restarts_total", reason="Evicted") == 0
    assert value(found, "finished_total", result="Failed", reason="TooManyRestarts") == 1


def _ended(before: dict[str, Any], kind: ConditionType, reason: str) -> dict[str, Any]:
    conditions = set_condition(
        before["conditions"], kind, True, reason, "text", generation=1, now=ago(0)
    )
    return {**before, "conditions": conditions, "failures": [failure("Evicted")]}


def test_a_success_is_counted_once() -> None:
    running = status(ConditionType.RUNNING, phase="Running", failures=[failure("Evicted")])
    done = _ended(running, ConditionType.SUCCEEDED, Reason.COMPLETED)
    found = recorded(running, done)
    assert value(found, "finished_total", result="Succeeded", reason="Completed") == 1
    assert value(found, "failures_total", reason="Evicted") == 0, "an earlier failure"
    again = recorded(done, {**done, "progress": {"step": 3}})
    assert value(again, "finished_total", result="Succeeded", reason="Completed") == 0


def test_a_gang_that_did_not_train_loses_no_training() -> None:
    starting = status(phase="Starting")
    found = recorded(starting, {**starting, "failures": [failure("StartupTimeout")]})
    assert value(found, "failures_total", reason="StartupTimeout") == 1
    found.gpu_seconds.update("uid", REPEATS)
    assert value(found, "gpu_seconds_total", state="lost") == 0


def test_a_reason_of_a_user_is_other() -> None:
    assert reason_label('x"}') == reason_label("MyReason") == OTHER
    assert reason_label(Reason.WAITING_BEHIND) == "WaitingBehindJob"
    starting = status(phase="Starting")
    found = recorded(starting, {**starting, "failures": [failure("MyReason")]})
    assert value(found, "failures_total", reason="Other") == 1
    assert "MyReason" not in generate_latest(found.registry).decode()


def test_counters_by_reason_start_at_zero() -> None:
    metrics = Metrics()
    for reason in FAILURE_REASONS:
        for name in ("failures_total", "restarts_total"):
            assert value(metrics, name, reason=reason) == 0
        assert value(metrics, "finished_total", result="Failed", reason=reason) == 0


def test_each_process_describes_itself() -> None:
    text = generate_latest(Metrics().registry).decode()
    assert re.search(r'^llmtrain_operator_build_info\{version="\d+\.\d+\.\d+"\} 1\.0$', text, re.M)
    assert re.search(r"^process_resident_memory_bytes \d", text, re.M)
    assert "_created" not in text


def test_the_reasons_of_the_trainer_are_known_and_documented() -> None:
    table = re.findall(r"^\| `(\w+)` \| [0-9]", (ROOT / "docs" / "contract.md").read_text(), re.M)
    written = set(_reported_reasons())
    assert len(written) > 15
    assert len(table) == len({*table})
    assert {*table} == {*table, *written} == TRAINER_REASONS


def _reported_reasons() -> Iterator[str]:
    for path in (ROOT / "trainer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            for argument in node.args if name in REPORTING else ():
                text = argument.value if isinstance(argument, ast.Constant) else None
                if isinstance(text, str) and re.fullmatch(r"[A-Z][A-Za-z]+", text):
                    yield text
