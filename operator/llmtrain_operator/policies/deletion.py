"""Policies of jobs that are deleted. Jobs have no finalizer, so most of them are gone at once."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.defaults import TERMINATION_GRACE_SECONDS
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.job_state.pods import is_overdue, terminating_text
from llmtrain_operator.job_state.status_draft import StatusDraft

SLOW_DELETION_SECONDS = TERMINATION_GRACE_SECONDS + 60.0
"""A deletion that takes longer says what it waits for."""


def remove_old_finalizer(draft: StatusDraft) -> bool:
    """Remove the finalizer that earlier versions of the operator set."""
    draft.remove_finalizer = draft.view.has_finalizer
    return False


def stop_deleted_job(draft: StatusDraft) -> bool:
    """Delete the pods of a job that is being deleted, and say what the deletion waits for.

    Such a job exists as long as a finalizer keeps it: until its pods are gone if it is deleted in
    the foreground. If its pods are to be orphaned, they continue.
    """
    if not draft.view.is_deleting:
        return False
    if not draft.view.orphans_pods:
        draft.delete_pods(draft.observed.pods)
        _say_what_it_waits_for(draft)
    return True


def _say_what_it_waits_for(draft: StatusDraft) -> None:
    deleted = parse_time(draft.view.deletion_time)
    left = SLOW_DELETION_SECONDS - (draft.observed.now - deleted).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
        return
    overdue = [pod for pod in draft.observed.pods if is_overdue(draft, pod)]
    if overdue:
        waits = terminating_text(draft, overdue)
    elif draft.observed.pods:
        return
    else:
        waits = "its finalizers " + ", ".join(draft.view.finalizers)
    text = clean_text(f"the job is deleted and waits for {waits}", 700)
    draft.set_condition(ConditionType.PODS_READY, False, Reason.PODS_TERMINATING, text)
