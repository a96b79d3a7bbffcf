"""Policy: no pod before the placement is in the status."""

from __future__ import annotations

from datetime import timedelta

from llmtrain_core.api.conditions import Reason, get_condition
from llmtrain_operator.job_state.observation import to_time
from llmtrain_operator.job_state.pods import clear_stale
from llmtrain_operator.job_state.status_draft import C, Draft
from llmtrain_operator.policies.eta import expect_end, expect_start, forget
from llmtrain_operator.scheduler.decisions import Offer, Refusal, standing_back

STAND_BACK_SECONDS = 60.0
"""So long a job leaves its nodes to others when its pods could not be created."""


def placing(draft: Draft) -> bool:
    """Take up the scheduler's offer, or say why the job waits."""
    clear_stale(draft)
    if draft.placement is not None:
        draft.condition(C.PLACED, True, Reason.PLACED, str(draft.placement.get("explanation", "")))
        return False
    if standing_back(draft.status):
        _stand_back(draft)
        return True
    verdict = draft.seen.verdict
    if isinstance(verdict, Offer) and verdict.attempt == draft.attempt:
        take_up(draft, verdict)
    elif isinstance(verdict, Refusal):
        draft.condition(C.PLACED, False, verdict.reason, verdict.message)
        expect_start(draft, verdict.starts_at)
    elif get_condition(draft.status["conditions"], C.PLACED) is None:
        draft.condition(C.PLACED, False, Reason.QUEUED, "waits for its turn")
    return True


def _stand_back(draft: Draft) -> None:
    """Queue again when the time is up; the condition says until then what the trouble was."""
    placed = get_condition(draft.status["conditions"], C.PLACED)
    since = to_time(placed["lastTransitionTime"] if placed else "")
    left = (since + timedelta(seconds=STAND_BACK_SECONDS) - draft.seen.now).total_seconds()
    forget(draft)
    if left > 0:
        draft.wake_in(left)
    else:
        draft.condition(C.PLACED, False, Reason.QUEUED, "waits for its turn to try again")


def take_up(draft: Draft, offer: Offer) -> None:
    """Write the offer down: from then on the place is the job's."""
    draft.offer = offer
    draft.put("estimatedStart", None)
    expect_end(draft, draft.seen.now.timestamp())
    draft.put("placement", dict(offer.placement))
    draft.put("placementSummary", offer.summary)
    draft.put("attemptStartTime", draft.now)
    if "startTime" not in draft.status:
        draft.put("startTime", draft.now)
    draft.condition(C.PLACED, True, Reason.PLACED, str(offer.placement.get("explanation", "")))
