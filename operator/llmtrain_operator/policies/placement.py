"""Policy: the placement is in the status before any pod is created."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.queueing import Assignment, Unschedulable
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.cache.placement_status import placement_status, summary
from llmtrain_operator.job_state.pods import delete_stale_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.eta import clear_estimates, set_estimated_start, set_eta
from llmtrain_operator.scheduler.decisions import waits_after_create_error

CREATE_ERROR_BACKOFF_SECONDS = 60.0
"""A job whose pods could not be created does not queue again before this time."""


def place(draft: StatusDraft) -> bool:
    """Accept the assignment of the scheduler, or set the reason why the job waits."""
    delete_stale_pods(draft)
    if draft.placement is not None:
        _set_placed(draft, draft.placement)
        return False
    if waits_after_create_error(draft.view):
        _wait_after_create_error(draft)
        return True
    decision = draft.observed.decision
    if isinstance(decision, Assignment) and decision.attempt == draft.attempt:
        accept_assignment(draft, decision)
    elif isinstance(decision, Unschedulable):
        draft.set_condition(ConditionType.PLACED, False, decision.reason, decision.message)
        set_estimated_start(draft, decision.starts_at)
    elif draft.view.condition(ConditionType.PLACED) is None:
        draft.set_condition(ConditionType.PLACED, False, Reason.QUEUED, "waiting in the queue")
    return True


def _wait_after_create_error(draft: StatusDraft) -> None:
    """Queue the job again after the back-off. Until then the condition shows the error."""
    placed = draft.view.condition(ConditionType.PLACED)
    since = parse_time(placed["lastTransitionTime"] if placed else "")
    end = since + timedelta(seconds=CREATE_ERROR_BACKOFF_SECONDS)
    left = (end - draft.observed.now).total_seconds()
    clear_estimates(draft)
    if left > 0:
        draft.reconcile_after(left)
    else:
        message = "waiting in the queue to create the pods again"
        draft.set_condition(ConditionType.PLACED, False, Reason.QUEUED, message)


def accept_assignment(draft: StatusDraft, assignment: Assignment) -> None:
    """Write an assignment of the scheduler to the status."""
    draft.assignment = assignment
    draft.set_field("estimatedStart", None)
    set_eta(draft, draft.observed.now.timestamp())
    found = placement_status(assignment)
    draft.set_field("placement", found.to_wire())
    draft.set_field("placementSummary", summary(found))
    draft.set_field("attemptStartTime", draft.now)
    if not draft.view.start_time:
        draft.set_field("startTime", draft.now)
    _set_placed(draft, draft.status["placement"])


def _set_placed(draft: StatusDraft, placement: Mapping[str, Any]) -> None:
    explanation = str(placement.get("explanation", ""))
    draft.set_condition(ConditionType.PLACED, True, Reason.PLACED, explanation)
