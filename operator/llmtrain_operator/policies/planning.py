"""Policy: the status shows the plan, and its deviation from the measured step time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.status_draft import StatusDraft

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


def memory_error(draft: StatusDraft) -> str | None:
    """Return why the job fits on no GPU that it could use, or None.

    A job that is placed keeps its placement, and a suspended job is not checked before it resumes.
    """
    found = draft.observed.assessment
    if found is None or found.too_large is None or draft.placement is not None:
        return None
    if draft.view.is_suspended or draft.view.allows_over_memory:
        return None
    return found.too_large


def annotation_error(draft: StatusDraft) -> str | None:
    """Return what is wrong with the annotation that overrides the memory check, or None.

    The annotation has no effect on a job that is placed, so an error there is ignored.
    """
    value = draft.view.over_memory_annotation
    if value in (None, "true", "false") or draft.placement is not None:
        return None
    return (
        f'metadata.annotations[{ALLOW_OVER_MEMORY}]: {value[:64]!r} is neither "true" nor "false";'
        " set one of them or remove the annotation"
    )


def record_measurement(
    draft: StatusDraft, report: Mapping[str, Any], seconds: float | None
) -> None:
    """Record the measured step time (the trainer's average of recent steps) beside the plan.

    It is written after the first step of an attempt, after WARMUP_STEPS more, and then whenever
    the number of steps has doubled and the figures have changed: a few writes per attempt.
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
        measured |= {"atStep": step, "stepSeconds": seconds}
        planned = (plan.get("step") or {}).get("seconds")
        if planned:
            measured["errorRatio"] = float(f"{seconds / planned:.4g}")
    draft.set_field("plan", {**plan, "measured": measured})
