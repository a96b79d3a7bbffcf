"""Logs and metrics for changed conditions, recorded after the status is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.job import JobView, parse_time
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.reconcile.events import changed_conditions

log = logging.getLogger(__name__)

RESTART_GANG = "RestartGang"
_ACTION_LABELS = {Reason.NODE_REPLACED: "ReplaceNode"}
"""Values of the metric label `action`, by the reason of the condition Restarting."""


def record_transitions(observed: Observed, status: Mapping[str, Any], metrics: Metrics) -> None:
    """Log changed conditions; observe the time to the first start and the recovery time."""
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
    _record_plan_error(before, after, metrics)
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


def _record_plan_error(before: JobView, after: JobView, metrics: Metrics) -> None:
    """Observe the ratio of measured to planned step time after each new measurement."""
    old, new = before.measured, after.measured
    if "atStep" in new and new.get("errorRatio") and new != old:
        metrics.plan_error.observe(new["errorRatio"])
