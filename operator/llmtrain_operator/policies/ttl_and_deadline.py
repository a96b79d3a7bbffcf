"""The two ends of a job, and what happens after: cleaning up and time to live."""

from __future__ import annotations

from datetime import timedelta

from llmtrain_core.api.conditions import Reason
from llmtrain_operator.job_state.observation import to_time
from llmtrain_operator.job_state.pods import remaining
from llmtrain_operator.job_state.status_draft import C, Draft


def succeed(draft: Draft, message: str) -> None:
    """End the job well."""
    draft.condition(C.SUCCEEDED, True, Reason.COMPLETED, message)
    _close(draft, Reason.COMPLETED, "the job has succeeded")


def fail(draft: Draft, reason: str, message: str) -> None:
    """End the job badly."""
    draft.condition(C.FAILED, True, reason, message)
    _close(draft, reason, "the job has failed")


def _close(draft: Draft, reason: str, message: str) -> None:
    for kind in (C.PODS_READY, C.RUNNING, C.RESTARTING, C.SUSPENDED):
        draft.unless_absent(kind, reason, message)
    draft.put("completionTime", draft.now)


def deletion(draft: Draft) -> bool:
    """Policy: a job that is being deleted lets go of its name only when its pods are gone."""
    if not draft.seen.deleting:
        return False
    draft.delete(draft.seen.pods)
    draft.done = not remaining(draft, list(draft.seen.pods))
    if not draft.done:
        draft.wake_in(5.0)
    return True


def finished(draft: Draft) -> bool:
    """Policy: a finished job is only cleaned up after, by cleanPodPolicy and time to live."""
    if not (draft.holds(C.SUCCEEDED) or draft.holds(C.FAILED)):
        return False
    policy = draft.seen.spec.get("runPolicy") or {}
    clean = policy.get("cleanPodPolicy", "Running")
    if clean == "All":
        draft.delete(draft.seen.pods)
    elif clean == "Running":
        draft.delete(pod for pod in draft.seen.pods if not pod.ended)
    lifetime = policy.get("ttlSecondsAfterFinished")
    if lifetime is not None:
        end = to_time(draft.status.get("completionTime", "")) + timedelta(seconds=int(lifetime))
        left = (end - draft.seen.now).total_seconds()
        draft.delete_job = left <= 0
        draft.wake_in(left if left > 0 else 5.0)
    return True


def deadline(draft: Draft) -> bool:
    """Policy: the clock of activeDeadlineSeconds starts with the first placement."""
    seconds = (draft.seen.spec.get("runPolicy") or {}).get("activeDeadlineSeconds")
    start = draft.status.get("startTime")
    if seconds is None or start is None:
        return False
    end = to_time(start) + timedelta(seconds=int(seconds))
    left = (end - draft.seen.now).total_seconds()
    if left > 0:
        draft.wake_in(left)
        return False
    fail(
        draft,
        Reason.DEADLINE_EXCEEDED,
        f"spec.runPolicy.activeDeadlineSeconds: not finished {seconds} s after the first start;"
        " raise it, or ask for fewer steps",
    )
    return True
