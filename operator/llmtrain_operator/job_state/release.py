"""How a job gives its nodes back."""

from __future__ import annotations

from datetime import timedelta

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.job_state.status_draft import StatusDraft

UNSTARTED_BACKOFF_SECONDS = 60.0
MAX_UNSTARTED_BACKOFF_SECONDS = 3600.0
"""Bounds of the delay after attempts whose pods did not start; each of them doubles it."""


def start_next_attempt(draft: StatusDraft) -> None:
    """Start the next attempt without a placement."""
    draft.set_field("attempt", draft.attempt + 1)
    for key in ("placement", "placementSummary", "network", "attemptStartTime"):
        draft.set_field(key, None)


def unplace(draft: StatusDraft, reason: str, message: str) -> None:
    """Release the nodes and start the next attempt without a placement."""
    start_next_attempt(draft)
    draft.set_condition(ConditionType.PLACED, False, reason, message)


def unplace_unstarted(
    draft: StatusDraft, reason: str, message: str, first_delay: float = UNSTARTED_BACKOFF_SECONDS
) -> None:
    """Release the nodes of a gang that has not started. Each time it queues again later.

    Otherwise it would take the nodes from the jobs behind it again and again.
    """
    unplace(draft, reason, message)
    count = draft.view.unstarted_attempts + 1
    delay = min(first_delay * 2.0 ** min(count - 1, 10), MAX_UNSTARTED_BACKOFF_SECONDS)
    draft.set_field("unstartedAttempts", count)
    draft.set_field("backoffUntil", format_time(draft.observed.now + timedelta(seconds=delay)))
    draft.clear_condition_if_present(ConditionType.PODS_READY, reason, message)


def requeue(draft: StatusDraft, reason: str, message: str) -> None:
    """Stop a healthy gang and queue the job again. This is neither a failure nor a restart."""
    unplace(draft, reason, message)
    for kind in (ConditionType.PODS_READY, ConditionType.RUNNING, ConditionType.RESTARTING):
        draft.clear_condition_if_present(kind, reason, message)
