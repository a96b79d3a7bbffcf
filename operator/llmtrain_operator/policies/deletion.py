"""Policy: a deleted job keeps its finalizer until its pods are gone."""

from __future__ import annotations

from llmtrain_operator.job_state.pods import possibly_running_pods
from llmtrain_operator.job_state.status_draft import StatusDraft


def finalize_deleted_job(draft: StatusDraft) -> bool:
    """Delete all pods of a job that is being deleted, then remove its finalizer."""
    if not draft.view.is_deleting:
        return False
    draft.delete_pods(draft.observed.pods)
    draft.remove_finalizer = not possibly_running_pods(draft, list(draft.observed.pods))
    if not draft.remove_finalizer:
        draft.reconcile_after(5.0)
    return True
