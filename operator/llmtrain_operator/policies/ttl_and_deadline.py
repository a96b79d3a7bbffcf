"""Policies: how a job ends (success, failure, deadline), and pod cleanup and TTL after that."""

from __future__ import annotations

from datetime import timedelta

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.job_state.pods import is_stuck, terminating_text
from llmtrain_operator.job_state.release import requeue
from llmtrain_operator.job_state.status_draft import StatusDraft


def mark_succeeded(draft: StatusDraft, message: str) -> None:
    """Set Succeeded and the completion time."""
    draft.set_condition(ConditionType.SUCCEEDED, True, Reason.COMPLETED, message)
    _complete(draft, Reason.COMPLETED, "the job has succeeded")


def mark_failed(draft: StatusDraft, reason: str, message: str) -> None:
    """Set Failed and the completion time."""
    draft.set_condition(ConditionType.FAILED, True, reason, message)
    _complete(draft, reason, "the job has failed")


def _complete(draft: StatusDraft, reason: str, message: str) -> None:
    for kind in (
        ConditionType.PODS_READY,
        ConditionType.RUNNING,
        ConditionType.RESTARTING,
        ConditionType.SUSPENDED,
    ):
        draft.clear_condition_if_present(kind, reason, message)
    draft.set_field("completionTime", draft.now)


def clean_up_finished_job(draft: StatusDraft) -> bool:
    """Apply cleanPodPolicy and ttlSecondsAfterFinished to a finished job.

    A pod whose trainer has ended, but not another container, would hold its node without end.
    """
    if not draft.view.is_finished:
        return False
    clean = draft.view.run_policy.get("cleanPodPolicy", "Running")
    if clean == "All":
        draft.delete_pods(draft.observed.pods)
    elif clean == "Running":
        draft.delete_pods(pod for pod in draft.observed.pods if not pod.ended)
    else:
        draft.delete_pods(pod for pod in draft.observed.pods if pod.has_sidecar)
    _name_stuck_pods(draft)
    ttl = draft.view.run_policy.get("ttlSecondsAfterFinished")
    if ttl is not None:
        end = parse_time(draft.view.completion_time) + timedelta(seconds=int(ttl))
        left = (end - draft.observed.now).total_seconds()
        draft.delete_job = left <= 0
        draft.reconcile_after(left if left > 0 else 5.0)
    return True


def _name_stuck_pods(draft: StatusDraft) -> None:
    """Say which pods of a finished job do not end: they hold their nodes."""
    stuck = [pod for pod in draft.observed.pods if not pod.ended and is_stuck(draft, pod)]
    shown = draft.view.condition(ConditionType.PODS_READY)
    if stuck:
        text = f"the job has finished, but pods hold their nodes: {terminating_text(draft, stuck)}"
        draft.set_condition(
            ConditionType.PODS_READY, False, Reason.PODS_TERMINATING, clean_text(text, 700)
        )
    elif shown is not None and shown["reason"] == Reason.PODS_TERMINATING:
        text = "the job has finished, and its pods have ended"
        draft.set_condition(ConditionType.PODS_READY, False, Reason.COMPLETED, text)


def enforce_deadline(draft: StatusDraft) -> bool:
    """Fail the job when activeDeadlineSeconds have passed since its first placement.

    A deadline that was raised since does not extend the placement: the job queues again.
    """
    seconds = draft.view.run_policy.get("activeDeadlineSeconds")
    start = draft.view.start_time
    if seconds is None or not start:
        return _end_placement(draft)
    end = parse_time(start) + timedelta(seconds=int(seconds))
    left = (end - draft.observed.now).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
        return _end_placement(draft)
    mark_failed(
        draft,
        Reason.DEADLINE_EXCEEDED,
        f"spec.runPolicy.activeDeadlineSeconds: not finished {seconds} s after the first start;"
        " raise the deadline or train fewer steps",
    )
    return True


def _end_placement(draft: StatusDraft) -> bool:
    """Release the nodes at the deadline for which they were given. Return True if it has passed."""
    if draft.placement is None or not draft.view.placed_deadline:
        return False
    left = (parse_time(draft.view.placed_deadline) - draft.observed.now).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
        return False
    message = (
        "spec.runPolicy.activeDeadlineSeconds was raised after the job got its nodes; it released"
        " them at the deadline of then and queues again"
    )
    requeue(draft, Reason.PLACEMENT_ENDED, message)
    return True
