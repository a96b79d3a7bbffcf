"""Logs and metrics for changed conditions, recorded after the status is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.job import JobView, parse_time
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.metrics.gpu_seconds import gpu_uses
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.reconcile.events import changed_conditions, restart_in_place
from llmtrain_operator.scheduler.jobs import lost_seconds

log = logging.getLogger(__name__)

RESTART_GANG = "RestartGang"
_ACTION_LABELS = {Reason.NODE_REPLACED: "ReplaceNode"}
"""Values of the metric label `action`, by the reason of the condition Restarting."""


def added_nodes(observed: Observed, status: Mapping[str, Any]) -> frozenset[str]:
    """Return the nodes that get ranks by a write: spare nodes that replace failed ones."""
    before, after = observed.view, observed.view.with_status(status)
    return frozenset(after.placed_nodes) - frozenset(before.placed_nodes)


def record_transitions(observed: Observed, status: Mapping[str, Any], metrics: Metrics) -> None:
    """Log changed conditions; count failures and ends, observe the times of starts."""
    before, after = observed.view, observed.view.with_status(status)
    for condition in changed_conditions(before, after):
        log.info(
            "job=%s/%s uid=%s attempt=%s condition=%s status=%s reason=%s",
            after.metadata["namespace"],
            after.metadata["name"],
            after.metadata["uid"],
            after.attempt,
            condition["type"],
            condition["status"],
            condition["reason"],
        )
        if (condition["type"], condition["reason"]) == (ConditionType.PLACED, Reason.PREEMPTED):
            metrics.preemptions.inc()
    if (restart := restart_in_place(before, after)) is not None:
        log.info(
            "job=%s/%s uid=%s attempt=%s %s",
            after.metadata["namespace"],
            after.metadata["name"],
            after.metadata["uid"],
            after.attempt,
            restart["message"],
        )
    _record_plan_error(before, after, metrics)
    _count_failures_and_ends(observed, after, metrics)
    if before.is_true(ConditionType.RUNNING) or not after.is_true(ConditionType.RUNNING):
        return
    restarting = before.condition(ConditionType.RESTARTING)
    if restarting is not None and restarting["status"] == "True" and after.failures:
        action = _ACTION_LABELS.get(restarting["reason"], RESTART_GANG)
        failed = parse_time(after.failures[-1]["time"])
        metrics.recovery.labels(action).observe((observed.now - failed).total_seconds())
    elif not after.attempt:
        created = parse_time(after.creation_time)
        metrics.time_to_running.observe((observed.now - created).total_seconds())


def _count_failures_and_ends(observed: Observed, after: JobView, metrics: Metrics) -> None:
    before = observed.view
    # One decision adds at most one failure. The list is bounded, so its length may stay the same.
    if after.failures and after.failures != before.failures:
        reason = after.failures[-1]["reason"]
        metrics.failed(reason)
        if after.restarts > before.restarts:
            metrics.restarted(reason)
            metrics.gpu_seconds.undo(after.metadata["uid"], _undone_gpu_seconds(observed))
    if before.is_finished or not after.is_finished:
        return
    succeeded = after.is_true(ConditionType.SUCCEEDED)
    end = after.condition(ConditionType.SUCCEEDED if succeeded else ConditionType.FAILED)
    assert end is not None
    metrics.finished(succeeded, end["reason"])


def _undone_gpu_seconds(observed: Observed) -> float:
    """Return the GPU-seconds of training since the last checkpoint."""
    gpus = gpu_uses(observed.view, lambda: observed.checked).get("training", 0)
    return gpus * lost_seconds(observed.view, observed.now.timestamp()) if gpus else 0.0


def _record_plan_error(before: JobView, after: JobView, metrics: Metrics) -> None:
    """Observe the ratio of measured to planned step time after each new measurement."""
    old, new = before.measured, after.measured
    if "atStep" in new and new.get("errorRatio") and new != old:
        metrics.plan_error.observe(new["errorRatio"])
