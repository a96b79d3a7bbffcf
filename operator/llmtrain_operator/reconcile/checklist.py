"""What to do about a job: a checklist, read from the top. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.pods import current
from llmtrain_operator.job_state.status_draft import C, Draft, Plan
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

Policy = Callable[[Draft], bool]
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


def decide(observed: Observed) -> Plan:
    """Return the plan for a job."""
    draft = Draft(observed)
    for policy in CHECKLIST:
        if policy(draft):
            break
    if not observed.deleting:
        _summarise(draft)
        _hold_back(draft)
    return draft.plan()


def _summarise(draft: Draft) -> None:
    """Derive the columns from the rest; nothing is ever read back from them."""
    phase, kind = _phase(draft)
    draft.put("phase", phase)
    condition = get_condition(draft.status.get("conditions", ()), kind)
    draft.put("reason", condition["reason"] if condition else None)
    draft.put("observedGeneration", draft.seen.generation)
    draft.put("restarts", draft.status.get("restarts", 0))
    if not isinstance(draft.seen.checked, list) and phase not in ("Succeeded", "Failed"):
        # A pod that is done needs no readiness any more: the figure must not fall at a good end.
        ready = sum(
            pod.phase == "Succeeded" or (pod.ready and not pod.deleting) for pod in current(draft)
        )
        draft.put("nodes", f"{ready}/{draft.job.nodes}")
    done: Mapping[str, Any] = draft.status.get("progress") or {}
    if done.get("totalSteps"):
        percent = min(100, 100 * int(done.get("step", 0)) // int(done["totalSteps"]))
        draft.put("progressPercent", f"{percent}%")


def _phase(draft: Draft) -> tuple[str, ConditionType]:
    """The one word for the STATE column, and the condition that explains it."""
    if draft.holds(C.FAILED):
        return "Failed", C.FAILED
    if draft.holds(C.SUCCEEDED):
        return "Succeeded", C.SUCCEEDED
    if draft.holds(C.RUNNING):
        return "Running", C.RUNNING
    if not draft.holds(C.ACCEPTED) and not draft.holds(C.PLACED):
        return "Rejected", C.ACCEPTED
    if draft.seen.spec.get("suspend"):
        return "Suspended", C.SUSPENDED
    if not draft.holds(C.PLACED):
        return "Queued", C.PLACED
    if draft.holds(C.RESTARTING):
        return "Restarting", C.RESTARTING
    return "Starting", C.PODS_READY


def _hold_back(draft: Draft) -> None:
    """Put off a write that would only freshen a figure."""
    if draft.seen.since_write >= COSMETIC_SECONDS or draft.status == draft.before:
        return
    if _essence(draft.status) == _essence(draft.before):
        draft.status = dict(draft.before)
        draft.wake_in(COSMETIC_SECONDS - draft.seen.since_write)


def _essence(status: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("nodes", "progress", "progressPercent", "plan", "estimatedStart", "conditions")
    rest = {key: value for key, value in status.items() if key not in left_out}
    conditions = status.get("conditions", ())
    rest["conditions"] = [(c["type"], c["status"], c["reason"]) for c in conditions]
    return rest
