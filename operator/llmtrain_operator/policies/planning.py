"""Policy: the status shows the plan, and how far measurement bears it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.status_draft import StatusDraft

WARMUP_STEPS = 10
"""So many steps of an attempt are seen before its pace counts: the first ones warm up."""
MIN_RELATIVE_CHANGE = 0.02
"""A ratio that moved by less than this is not worth a write."""


def record_plan(draft: StatusDraft) -> bool:
    """Write the plan down; what was measured of the old one goes on with the new one."""
    found = draft.observed.assessment
    if found is None or not isinstance(draft.observed.checked, Job):
        return False
    plan = None if found.plan is None else dict(found.plan)
    measured = (draft.status.get("plan") or {}).get("measured")
    if plan is not None and measured is not None:
        plan["measured"] = measured
    draft.set_field("plan", plan)
    return False


def memory_error(draft: StatusDraft) -> str | None:
    """Return why the job cannot fit on any GPU that it could use; None where it may.

    A job that has its place keeps it, and one that is suspended needs none yet.
    """
    found = draft.observed.assessment
    if found is None or found.too_large is None or draft.placement is not None:
        return None
    if draft.observed.spec.get("suspend") or draft.view.allows_over_memory:
        return None
    return found.too_large


def annotation_error(draft: StatusDraft) -> str | None:
    """Return what is wrong with the annotation that overrides the verdict on memory.

    A job that has its place is past that verdict: a slip of the pen must not stop its care.
    """
    value = draft.view.over_memory_annotation
    if value in (None, "true", "false") or draft.placement is not None:
        return None
    return (
        f'metadata.annotations[{ALLOW_OVER_MEMORY}]: {value[:64]!r} is neither "true" nor "false";'
        " set one of them or remove it"
    )


def record_measurement(
    draft: StatusDraft, report: Mapping[str, Any], seconds: float | None
) -> None:
    """Hold the plan against a report of the trainer, whose pace is smoothed over its last steps.

    Written once the first step of an attempt is seen, after STEADY_STEPS more, and whenever that
    many have doubled and the figures moved: a few writes in the life of an attempt.
    """
    plan, step = draft.status.get("plan"), report.get("step")
    if plan is None or not seconds or not isinstance(step, int) or step < 1:
        return
    measured = dict(plan.get("measured") or {})
    if measured.get("attempt") != draft.attempt:
        measured |= {"attempt": draft.attempt, "fromStep": step}
        measured.pop("atStep", None)
    else:
        seen = step - measured["fromStep"]
        enough = max(WARMUP_STEPS, 2 * (measured.get("atStep", 0) - measured["fromStep"]))
        moved = abs(seconds / (measured.get("stepSeconds") or 1e-9) - 1) > MIN_RELATIVE_CHANGE
        if seen < enough or ("atStep" in measured and not moved):
            return
        measured |= {"atStep": step, "stepSeconds": seconds}
        planned = (plan.get("step") or {}).get("seconds")
        if planned:
            measured["errorRatio"] = float(f"{seconds / planned:.4g}")
    draft.set_field("plan", {**plan, "measured": measured})
