"""Policies of jobs that are deleted. Jobs have no finalizer, so most of them are gone at once."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.defaults import MAX_TERMINATION_GRACE_SECONDS, TERMINATION_GRACE_SECONDS
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.pods import is_overdue, terminating_text
from llmtrain_operator.job_state.status_draft import StatusDraft

PATIENCE_SECONDS = 60.0
"""A deletion that takes this much longer than the grace period says what it waits for."""


def seconds_until_slow(pods: Iterable[PodRecord], passed: float, now: datetime) -> float:
    """Return the seconds until a deletion takes too long; at most 0 if it does.

    `passed` are the seconds since it began. Its pods have the grace period of the job. Who deletes
    a pod by hand can give it any other, but it is followed no longer than a job may have it.
    """
    ends = (pod.ends_by - now.timestamp() for pod in pods if pod.deleting and pod.ends_by)
    grace = max((passed + end for end in ends), default=0.0)
    grace = max(grace, TERMINATION_GRACE_SECONDS)
    return min(grace, MAX_TERMINATION_GRACE_SECONDS) + PATIENCE_SECONDS - passed


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
    now, pods = draft.observed.now, draft.observed.pods
    passed = (now - parse_time(draft.view.deletion_time)).total_seconds()
    left = seconds_until_slow(pods, passed, now)
    if left > 0:
        draft.reconcile_after(left)
        return
    overdue = [pod for pod in pods if is_overdue(draft, pod)]
    if overdue:
        waits = terminating_text(draft, overdue)
    elif pods:
        return
    else:
        waits = "its finalizers " + ", ".join(draft.view.finalizers)
    text = clean_text(f"the job is deleted and waits for {waits}", 700)
    draft.set_condition(ConditionType.PODS_READY, False, Reason.PODS_TERMINATING, text)
