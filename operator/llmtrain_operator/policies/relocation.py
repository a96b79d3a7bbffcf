"""Policy: a running job shows a better placement, and moves there on request of its user.

It moves only after a checkpoint newer than the request, so that only the restart takes time. Old
and new placement are exchanged in one write, so no other job can take the nodes in between.
"""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.queueing import Assignment
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.placement import accept_assignment
from llmtrain_operator.scheduler.decisions import RelocationHint

MIN_RELATIVE_CHANGE = 0.1
"""A gain that changed by less than this share is not written."""


def relocate(draft: StatusDraft) -> bool:
    """Show a better placement, record a relocation request, and move to the new assignment."""
    if draft.placement is None:
        draft.set_field("betterPlacement", None)
        draft.set_field("move", None)
        return False
    _record_better_placement(draft)
    if not draft.view.relocation_requested:
        draft.set_field("move", None)
        return False
    if draft.view.move.get("attempt") != draft.attempt:
        newest = draft.view.last_checkpoint or 0
        draft.set_field("move", {"attempt": draft.attempt, "afterCheckpoint": newest})
    decision = draft.observed.decision
    if not isinstance(decision, Assignment) or decision.attempt != draft.attempt + 1:
        return False
    if not draft.view.relocation_ready:
        return False
    draft.set_field("attempt", draft.attempt + 1)
    for kind in (ConditionType.PODS_READY, ConditionType.RUNNING):
        draft.clear_condition_if_present(
            kind, Reason.MOVED, "moving to a better placement, as requested"
        )
    draft.set_field("betterPlacement", None)
    draft.set_field("move", None)
    accept_assignment(draft, decision)
    return True


def _record_better_placement(draft: StatusDraft) -> None:
    shown, decision = draft.status.get("betterPlacement"), draft.observed.decision
    if shown is not None and shown["attempt"] != draft.attempt:
        draft.set_field("betterPlacement", None)
        shown = None
    if not isinstance(decision, RelocationHint) or decision.attempt != draft.attempt:
        return
    if decision.gain <= 1:
        draft.set_field("betterPlacement", None)
    elif shown is None or abs(decision.gain - shown["gain"]) > MIN_RELATIVE_CHANGE * shown["gain"]:
        found = {"attempt": draft.attempt, "gain": round(decision.gain, 2)}
        draft.set_field("betterPlacement", {**found, "summary": decision.summary})
