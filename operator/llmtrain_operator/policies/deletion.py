"""Policies of jobs that are deleted. Jobs have no finalizer, so most of them are gone at once."""

from __future__ import annotations

from llmtrain_operator.job_state.status_draft import StatusDraft


def remove_old_finalizer(draft: StatusDraft) -> bool:
    """Remove the finalizer that earlier versions of the operator set."""
    draft.remove_finalizer = draft.view.has_finalizer
    return False


def stop_deleted_job(draft: StatusDraft) -> bool:
    """Delete the pods of a job that is being deleted, and do nothing else about it.

    Such a job exists as long as a finalizer keeps it: until its pods are gone if it is deleted in
    the foreground. If its pods are to be orphaned, they continue.
    """
    if not draft.view.is_deleting:
        return False
    if not draft.view.orphans_pods:
        draft.delete_pods(draft.observed.pods)
    return True
