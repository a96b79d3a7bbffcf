"""Logs and metrics for changed conditions, recorded after the status is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason, get_condition, is_true
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.metrics import Metrics
from llmtrain_operator.reconcile.events import changed_conditions

log = logging.getLogger(__name__)

RESTART_GANG = "RestartGang"
_ACTION_LABELS = {Reason.NODE_REPLACED: "ReplaceNode"}
"""Values of the metric label `action`, by the reason of the condition Restarting."""


def record_transitions(observed: Observed, status: Mapping[str, Any], metrics: Metrics) -> None:
    """Log changed conditions; observe the time to the first start and the recovery time."""
    before = observed.raw.get("status") or {}
    metadata = observed.raw["metadata"]
    for condition in changed_conditions(before, status):
        log.info(
            "job=%s/%s uid=%s attempt=%s condition=%s status=%s reason=%s",
            metadata["namespace"],
            metadata["name"],
            metadata["uid"],
            status.get("attempt", 0),
            condition["type"],
            condition["status"],
            condition["reason"],
        )
        if (condition["type"], condition["reason"]) == (ConditionType.PLACED, Reason.PREEMPTED):
            metrics.preemptions.inc()
    _record_plan_error(before, status, metrics)
    was = is_true(before.get("conditions", ()), ConditionType.RUNNING)
    if was or not is_true(status.get("conditions", ()), ConditionType.RUNNING):
        return
    failures = status.get("failures") or ()
    restarting = get_condition(before.get("conditions", ()), ConditionType.RESTARTING)
    if restarting is not None and restarting["status"] == "True" and failures:
        seconds = (observed.now - parse_time(failures[-1]["time"])).total_seconds()
        metrics.recovery.labels(_ACTION_LABELS.get(restarting["reason"], RESTART_GANG)).observe(
            seconds
        )
    elif not status.get("attempt"):
        created = parse_time(metadata["creationTimestamp"])
        metrics.time_to_running.observe((observed.now - created).total_seconds())


def _record_plan_error(
    before: Mapping[str, Any], status: Mapping[str, Any], metrics: Metrics
) -> None:
    """Observe the ratio of measured to planned step time after each new measurement."""
    old, new = ((s.get("plan") or {}).get("measured") or {} for s in (before, status))
    if "atStep" in new and new.get("errorRatio") and new != old:
        metrics.plan_error.observe(new["errorRatio"])
