"""Policies: how a job ends (success, failure, deadline), pod cleanup and TTL after that."""

from __future__ import annotations

from datetime import timedelta

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.job_state.status_draft import StatusDraft


def mark_succeeded(draft: StatusDraft, message: str) -> None:
    """Set Succeeded and the completion time."""
    draft.set_condition(ConditionType.SUCCEEDED, True, Reason.COMPLETED, message)
    _close(draft, Reason.COMPLETED, "the job has succeeded")


def mark_failed(draft: StatusDraft, reason: str, message: str) -> None:
    """Set Failed and the completion time."""
    draft.set_condition(ConditionType.FAILED, True, reason, message)
    _close(draft, reason, "the job has failed")


def _close(draft: StatusDraft, reason: str, message: str) -> None:
    for kind in (
        ConditionType.PODS_READY,
        ConditionType.RUNNING,
        ConditionType.RESTARTING,
        ConditionType.SUSPENDED,
    ):
        draft.clear_condition_if_present(kind, reason, message)
    draft.set_field("completionTime", draft.now)


def clean_up_finished_job(draft: StatusDraft) -> bool:
    """Apply cleanPodPolicy and ttlSecondsAfterFinished to a finished job."""
    if not (draft.is_true(ConditionType.SUCCEEDED) or draft.is_true(ConditionType.FAILED)):
        return False
    policy = draft.observed.spec.get("runPolicy") or {}
    clean = policy.get("cleanPodPolicy", "Running")
    if clean == "All":
        draft.delete_pods(draft.observed.pods)
    elif clean == "Running":
        draft.delete_pods(pod for pod in draft.observed.pods if not pod.ended)
    lifetime = policy.get("ttlSecondsAfterFinished")
    if lifetime is not None:
        end = parse_time(draft.status.get("completionTime", "")) + timedelta(seconds=int(lifetime))
        left = (end - draft.observed.now).total_seconds()
        draft.delete_job = left <= 0
        draft.reconcile_after(left if left > 0 else 5.0)
    return True


def enforce_deadline(draft: StatusDraft) -> bool:
    """Fail the job when activeDeadlineSeconds have passed since its first placement."""
    seconds = (draft.observed.spec.get("runPolicy") or {}).get("activeDeadlineSeconds")
    start = draft.status.get("startTime")
    if seconds is None or start is None:
        return False
    end = parse_time(start) + timedelta(seconds=int(seconds))
    left = (end - draft.observed.now).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
        return False
    mark_failed(
        draft,
        Reason.DEADLINE_EXCEEDED,
        f"spec.runPolicy.activeDeadlineSeconds: not finished {seconds} s after the first start;"
        " raise the deadline or train fewer steps",
    )
    return True
