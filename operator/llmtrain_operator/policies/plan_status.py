"""Policy: the status shows the plan, and its deviation from the measured step time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.planning.confirmed_progress import fits_in_attempt

WARMUP_STEPS = 10
"""The step time of an attempt is recorded after this many steps, because the first are slower."""
MIN_RELATIVE_CHANGE = 0.02
"""A ratio that changed by less than this is not written."""


def record_plan(draft: StatusDraft) -> bool:
    """Write the plan, and keep the measurements of the previous plan."""
    found = draft.observed.assessment
    if found is None or not isinstance(draft.observed.checked, Job):
        return False
    plan = None if found.plan is None else dict(found.plan)
    measured = draft.view.plan.get("measured")
    if plan is not None and measured is not None:
        plan["measured"] = measured
    draft.set_field("plan", plan)
    return False


def record_measurement(
    draft: StatusDraft, report: Mapping[str, Any], seconds: float | None
) -> None:
    """Record the measured step time (the trainer's average of recent steps) beside the plan.

    It is written after the first step of an attempt, after WARMUP_STEPS more, and then whenever
    the number of steps has doubled and the figures have changed: a few writes per attempt. It is
    ignored if so many steps of this length take longer than the attempt.
    """
    plan, step = draft.status.get("plan"), report.get("step")
    if plan is None or not seconds or not isinstance(step, int) or step < 1:
        return
    measured = dict(plan.get("measured") or {})
    if measured.get("attempt") != draft.attempt:
        measured |= {"attempt": draft.attempt, "fromStep": step}
        measured.pop("atStep", None)
    else:
        steps = step - measured["fromStep"]
        required = max(WARMUP_STEPS, 2 * (measured.get("atStep", 0) - measured["fromStep"]))
        change = abs(seconds / (measured.get("stepSeconds") or 1e-9) - 1)
        if steps < required or ("atStep" in measured and change <= MIN_RELATIVE_CHANGE):
            return
        if not fits_in_attempt(draft.view, steps, seconds, draft.observed.now.timestamp()):
            return
        measured |= {"atStep": step, "stepSeconds": seconds}
        planned = (plan.get("step") or {}).get("seconds")
        if planned:
            measured["errorRatio"] = float(f"{seconds / planned:.4g}")
    draft.set_field("plan", {**plan, "measured": measured})
