"""Policy: no pod before the placement is in the status."""

from __future__ import annotations

from datetime import timedelta

from llmtrain_core.api.conditions import ConditionType, Reason, get_condition
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.job_state.pods import delete_stale_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.eta import clear_estimates, set_estimated_start, set_eta
from llmtrain_operator.scheduler.decisions import Offer, Refusal, standing_back

CREATE_ERROR_BACKOFF_SECONDS = 60.0
"""So long a job leaves its nodes to others when its pods could not be created."""


def place(draft: StatusDraft) -> bool:
    """Take up the scheduler's offer, or say why the job waits."""
    delete_stale_pods(draft)
    if draft.placement is not None:
        draft.set_condition(
            ConditionType.PLACED, True, Reason.PLACED, str(draft.placement.get("explanation", ""))
        )
        return False
    if standing_back(draft.view):
        _wait_after_create_error(draft)
        return True
    verdict = draft.observed.verdict
    if isinstance(verdict, Offer) and verdict.attempt == draft.attempt:
        accept_assignment(draft, verdict)
    elif isinstance(verdict, Refusal):
        draft.set_condition(ConditionType.PLACED, False, verdict.reason, verdict.message)
        set_estimated_start(draft, verdict.starts_at)
    elif get_condition(draft.status["conditions"], ConditionType.PLACED) is None:
        draft.set_condition(ConditionType.PLACED, False, Reason.QUEUED, "waits for its turn")
    return True


def _wait_after_create_error(draft: StatusDraft) -> None:
    """Queue again when the time is up; the condition says until then what the trouble was."""
    placed = get_condition(draft.status["conditions"], ConditionType.PLACED)
    since = parse_time(placed["lastTransitionTime"] if placed else "")
    left = (
        since + timedelta(seconds=CREATE_ERROR_BACKOFF_SECONDS) - draft.observed.now
    ).total_seconds()
    clear_estimates(draft)
    if left > 0:
        draft.reconcile_after(left)
    else:
        draft.set_condition(
            ConditionType.PLACED, False, Reason.QUEUED, "waits for its turn to try again"
        )


def accept_assignment(draft: StatusDraft, offer: Offer) -> None:
    """Write the offer down: from then on the place is the job's."""
    draft.assignment = offer
    draft.set_field("estimatedStart", None)
    set_eta(draft, draft.observed.now.timestamp())
    draft.set_field("placement", dict(offer.placement))
    draft.set_field("placementSummary", offer.summary)
    draft.set_field("attemptStartTime", draft.now)
    if "startTime" not in draft.status:
        draft.set_field("startTime", draft.now)
    draft.set_condition(
        ConditionType.PLACED, True, Reason.PLACED, str(offer.placement.get("explanation", ""))
    )
