"""What to do about a job: a checklist, read from the top. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.pods import current
from llmtrain_operator.job_state.status_draft import Actions, StatusDraft
from llmtrain_operator.policies.completion import completion
from llmtrain_operator.policies.failure import failure
from llmtrain_operator.policies.kueue import eviction
from llmtrain_operator.policies.placement import placing
from llmtrain_operator.policies.planning import planning
from llmtrain_operator.policies.preemption import preemption
from llmtrain_operator.policies.relocation import moving
from llmtrain_operator.policies.startup import startup
from llmtrain_operator.policies.suspension import suspension
from llmtrain_operator.policies.topology_change import network
from llmtrain_operator.policies.training_progress import progress
from llmtrain_operator.policies.ttl_and_deadline import deadline, deletion, finished
from llmtrain_operator.policies.validation import validation

Policy = Callable[[StatusDraft], bool]
"""Writes on the draft; True when the policies after it have nothing to say this time."""

CHECKLIST: tuple[Policy, ...] = (
    deletion,
    finished,
    planning,
    validation,
    network,
    completion,
    deadline,
    suspension,
    preemption,
    moving,
    eviction,
    failure,
    placing,
    startup,
    progress,
)

COSMETIC_SECONDS = 2.0
"""Changes that only keep figures fresh are not written more often than this."""


def decide(observed: Observed) -> Actions:
    """Return the plan for a job."""
    draft = StatusDraft(observed)
    for policy in CHECKLIST:
        if policy(draft):
            break
    if not observed.deleting:
        _summarise(draft)
        _hold_back(draft)
    return draft.actions()


def _summarise(draft: StatusDraft) -> None:
    """Derive the columns from the rest; nothing is ever read back from them."""
    phase, kind = _phase(draft)
    draft.set_field("phase", phase)
    condition = get_condition(draft.status.get("conditions", ()), kind)
    draft.set_field("reason", condition["reason"] if condition else None)
    draft.set_field("observedGeneration", draft.observed.generation)
    draft.set_field("restarts", draft.status.get("restarts", 0))
    if not isinstance(draft.observed.checked, list) and phase not in ("Succeeded", "Failed"):
        # A pod that is done needs no readiness any more: the figure must not fall at a good end.
        ready = sum(
            pod.phase == "Succeeded" or (pod.ready and not pod.deleting) for pod in current(draft)
        )
        draft.set_field("nodes", f"{ready}/{draft.job.nodes}")
    done: Mapping[str, Any] = draft.status.get("progress") or {}
    if done.get("totalSteps"):
        percent = min(100, 100 * int(done.get("step", 0)) // int(done["totalSteps"]))
        draft.set_field("progressPercent", f"{percent}%")


def _phase(draft: StatusDraft) -> tuple[str, ConditionType]:
    """The one word for the STATE column, and the condition that explains it."""
    if draft.is_true(ConditionType.FAILED):
        return "Failed", ConditionType.FAILED
    if draft.is_true(ConditionType.SUCCEEDED):
        return "Succeeded", ConditionType.SUCCEEDED
    if draft.is_true(ConditionType.RUNNING):
        return "Running", ConditionType.RUNNING
    if not draft.is_true(ConditionType.ACCEPTED) and not draft.is_true(ConditionType.PLACED):
        return "Rejected", ConditionType.ACCEPTED
    if draft.observed.spec.get("suspend"):
        return "Suspended", ConditionType.SUSPENDED
    if not draft.is_true(ConditionType.PLACED):
        return "Queued", ConditionType.PLACED
    if draft.is_true(ConditionType.RESTARTING):
        return "Restarting", ConditionType.RESTARTING
    return "Starting", ConditionType.PODS_READY


def _hold_back(draft: StatusDraft) -> None:
    """Put off a write that would only freshen a figure."""
    if draft.observed.since_write >= COSMETIC_SECONDS or draft.status == draft.stored_status:
        return
    if _essence(draft.status) == _essence(draft.stored_status):
        draft.status = dict(draft.stored_status)
        draft.reconcile_after(COSMETIC_SECONDS - draft.observed.since_write)


def _essence(status: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("nodes", "progress", "progressPercent", "plan", "estimatedStart", "conditions")
    rest = {key: value for key, value in status.items() if key not in left_out}
    conditions = status.get("conditions", ())
    rest["conditions"] = [(c["type"], c["status"], c["reason"]) for c in conditions]
    return rest
