"""Decide what to do about a job: a checklist of policies, in order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.pods import current_pods, why_not_ready
from llmtrain_operator.job_state.status_draft import Actions, StatusDraft
from llmtrain_operator.policies.completion import complete_if_succeeded
from llmtrain_operator.policies.deletion import remove_old_finalizer, stop_deleted_job
from llmtrain_operator.policies.failure_handling import detect_failure
from llmtrain_operator.policies.kueue import requeue_if_evicted
from llmtrain_operator.policies.network_degraded import set_network_degraded
from llmtrain_operator.policies.node_replacement import give_up_taken_spares
from llmtrain_operator.policies.placement import place
from llmtrain_operator.policies.plan_status import record_plan
from llmtrain_operator.policies.preemption import preempt
from llmtrain_operator.policies.relocation import follow_drain, protect_gang, relocate
from llmtrain_operator.policies.startup import start_gang
from llmtrain_operator.policies.suspension import suspend_or_resume
from llmtrain_operator.policies.training_progress import record_progress
from llmtrain_operator.policies.ttl_and_deadline import clean_up_finished_job, enforce_deadline
from llmtrain_operator.policies.validation import accept_or_reject, stop_if_rejected

Policy = Callable[[StatusDraft], bool]
"""Edits the draft. Returns True if the remaining policies must not run.

Those before `stop_if_rejected` apply to a job with an invalid spec, too.
"""

CHECKLIST: tuple[Policy, ...] = (
    protect_gang,
    remove_old_finalizer,
    stop_deleted_job,
    clean_up_finished_job,
    record_plan,
    accept_or_reject,
    set_network_degraded,
    complete_if_succeeded,
    enforce_deadline,
    suspend_or_resume,
    preempt,
    requeue_if_evicted,
    give_up_taken_spares,
    follow_drain,
    stop_if_rejected,
    relocate,
    detect_failure,
    place,
    start_gang,
    record_progress,
)

COSMETIC_SECONDS = 2.0
"""Minimum interval between writes that change only texts and the progress."""
COUNT_SECONDS = 10.0
"""Minimum interval between writes that change only the number of ready pods and the plan. The
number changes with each pod of a gang that starts. The last change also changes a condition, so it
is written at once."""
FIRST_DECISION_SECONDS = 1.0
"""The first write of a job waits this long for the scheduler, whose decision it then contains."""


def decide(observed: Observed) -> Actions:
    """Return the actions for a job."""
    draft = StatusDraft(observed)
    for policy in CHECKLIST:
        if policy(draft):
            break
    if not observed.view.is_deleting:
        _set_summary_fields(draft)
        _await_first_decision(draft)
        _defer_cosmetic_write(draft)
    return draft.actions()


def _set_summary_fields(draft: StatusDraft) -> None:
    """Set the fields shown as kubectl columns. The operator never reads them back."""
    phase, kind = _phase(draft)
    draft.set_field("phase", phase)
    condition = draft.view.condition(kind)
    draft.set_field("reason", condition["reason"] if condition else None)
    draft.set_field("observedGeneration", draft.view.generation)
    draft.set_field("restarts", draft.view.restarts)
    if not isinstance(draft.observed.checked, list):
        ready = _count_ready_nodes(draft, phase)
        draft.set_field("nodes", f"{ready}/{draft.job.nodes}")
        draft.set_field("readyNodes", ready)
        draft.set_field("selector", f"{labels.JOB_UID}={draft.view.metadata['uid']}")
    progress = draft.view.progress
    if progress.get("totalSteps"):
        percent = min(100, 100 * int(progress.get("step", 0)) // int(progress["totalSteps"]))
        draft.set_field("progressPercent", f"{percent}%")


def _count_ready_nodes(draft: StatusDraft, phase: str) -> int:
    """Return the first number of the NODES column.

    A finished job shows its result, as batch/v1 Job does: its pods may be deleted already.
    """
    if phase == "Succeeded":
        return draft.job.nodes
    if phase == "Failed":
        return 0
    # A pod that has succeeded is not ready but counts, so the column does not drop at the end.
    return sum(
        pod.phase == "Succeeded" or (pod.ready and not pod.deleting) for pod in current_pods(draft)
    )


def _phase(draft: StatusDraft) -> tuple[str, ConditionType]:
    """Return the value of the STATE column and the condition that explains it."""
    if draft.is_true(ConditionType.FAILED):
        return "Failed", ConditionType.FAILED
    if draft.is_true(ConditionType.SUCCEEDED):
        return "Succeeded", ConditionType.SUCCEEDED
    if draft.is_true(ConditionType.RUNNING):
        return "Running", ConditionType.RUNNING
    if not draft.is_true(ConditionType.ACCEPTED) and not draft.is_true(ConditionType.PLACED):
        return "Rejected", ConditionType.ACCEPTED
    if draft.view.is_suspended:
        return "Suspended", ConditionType.SUSPENDED
    if not draft.is_true(ConditionType.PLACED):
        return "Queued", ConditionType.PLACED
    if draft.is_true(ConditionType.RESTARTING):
        return "Restarting", ConditionType.RESTARTING
    return "Starting", ConditionType.PODS_READY


def _await_first_decision(draft: StatusDraft) -> None:
    """Postpone the first write of a job about which the scheduler has not decided yet."""
    placed = draft.view.condition(ConditionType.PLACED)
    left = FIRST_DECISION_SECONDS - draft.observed.seconds_known
    if not draft.stored_status and placed and placed["reason"] == Reason.QUEUED and left > 0:
        draft.write_after(left)


def _defer_cosmetic_write(draft: StatusDraft) -> None:
    """Postpone a write that changes only figures and texts."""
    if draft.status == draft.stored_status:
        return
    interval = _min_interval(draft.stored_status, draft.status)
    left = interval - draft.observed.seconds_since_write
    if left > 0:
        draft.write_after(left)


def _min_interval(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Return the seconds that must pass between the last write and that of the new status."""
    if _significant_fields(before) != _significant_fields(after):
        return 0.0
    if _without_counts(before) != _without_counts(after):
        return COSMETIC_SECONDS
    return COUNT_SECONDS


_COUNTS = ("nodes", "readyNodes", "plan")


def _significant_fields(status: Mapping[str, Any]) -> dict[str, Any]:
    left_out = (*_COUNTS, "progress", "progressPercent", "estimatedStart", "conditions")
    rest = {key: value for key, value in status.items() if key not in left_out}
    conditions = status.get("conditions", ())
    rest["conditions"] = [(c["type"], c["status"], c["reason"]) for c in conditions]
    network = status.get("network") or {}
    rest["network"] = {key: value for key, value in network.items() if key != "nccl"}
    return rest


def _without_counts(status: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in status.items() if key not in _COUNTS}
    rest["conditions"] = [_uncounted(condition) for condition in status.get("conditions", ())]
    return rest


def _uncounted(condition: Mapping[str, Any]) -> Mapping[str, Any]:
    if condition["type"] != ConditionType.PODS_READY:
        return condition
    return {**condition, "message": why_not_ready(condition["message"])}
