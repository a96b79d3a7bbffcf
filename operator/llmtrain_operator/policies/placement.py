"""Policy: the placement is in the status before any pod is created."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.queueing import Assignment, Unschedulable
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.cache.network_status import network_status
from llmtrain_operator.cache.placement_status import placement_status, with_shortage
from llmtrain_operator.job_state.pods import delete_stale_pods, set_pods_not_ready
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.planning.durations import deadline
from llmtrain_operator.policies.eta import clear_estimates, set_estimated_start, set_eta


def place(draft: StatusDraft) -> bool:
    """Accept the assignment of the scheduler, or set the reason why the job waits."""
    delete_stale_pods(draft)
    if draft.placement is not None:
        _set_placed(draft, draft.placement)
        return False
    if draft.view.backoff_until:
        _back_off(draft)
        return True
    decision = draft.observed.decision
    if isinstance(decision, Assignment) and decision.attempt == draft.attempt:
        accept_assignment(draft, decision)
        set_pods_not_ready(draft, 0)  # in the same write
    elif isinstance(decision, Unschedulable):
        draft.set_condition(ConditionType.PLACED, False, decision.reason, decision.message)
        set_estimated_start(draft, decision.starts_at)
    elif draft.view.condition(ConditionType.PLACED) is None:
        draft.set_condition(ConditionType.PLACED, False, Reason.QUEUED, "waiting in the queue")
    return True


def _back_off(draft: StatusDraft) -> None:
    """Queue the job again after the back-off. Until then the condition shows the reason."""
    clear_estimates(draft)
    left = (parse_time(draft.view.backoff_until) - draft.observed.now).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
    else:
        draft.set_field("backoffUntil", None)
        message = "waiting in the queue to start the pods again"
        draft.set_condition(ConditionType.PLACED, False, Reason.QUEUED, message)


def accept_assignment(draft: StatusDraft, assignment: Assignment) -> None:
    """Write an assignment of the scheduler to the status."""
    draft.assignment = assignment
    draft.set_field("estimatedStart", None)
    set_eta(draft, draft.observed.now.timestamp())
    found = placement_status(assignment)
    placed, text = with_shortage(found, draft.view.wanted_spares)
    draft.set_field("placementSummary", text)
    network = assignment.network
    draft.set_field("network", network_status(network).to_wire() if network else None)
    draft.set_field("attemptStartTime", draft.now)
    if not draft.view.start_time:
        draft.set_field("startTime", draft.now)
    draft.set_field("placement", {**placed, **_terms(draft, assignment)})
    _set_placed(draft, draft.status["placement"])


def _terms(draft: StatusDraft, assignment: Assignment) -> dict[str, Any]:
    """Return what holds as long as the job has these nodes.

    The queue gave the nodes for this priority and until this deadline. Otherwise a running job
    could be raised above those that may stop it, or keep nodes that others count on.
    """
    terms: dict[str, Any] = {"priority": assignment.priority}
    if draft.job.spec.priority_class_name is not None:
        terms["priorityClassName"] = draft.job.spec.priority_class_name
    end = deadline(draft.job, draft.view)
    if end is not None:
        terms["deadline"] = format_time(datetime.fromtimestamp(end, UTC))
    return terms


def _set_placed(draft: StatusDraft, placement: Mapping[str, Any]) -> None:
    explanation = str(placement.get("explanation", ""))
    draft.set_condition(ConditionType.PLACED, True, Reason.PLACED, explanation)
