"""Policies: a running job moves to other nodes, for a better placement or off drained nodes.

A node counts as drained if a row of the node health table says that jobs leave it: a cordon, the
taint of an autoscaler, the notice of a cloud.

It moves after a checkpoint newer than the request, so that only the restart takes time. Old and new
placement are exchanged in one write, so no other job can take the nodes in between. This is neither
a failure nor a restart.

A PodDisruptionBudget protects a running gang. The eviction of one of its pods would end all of
them, so it permits none until the job has moved. A drain does not wait longer than the drain
timeout: after that the pods may be evicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.defaults import MAX_DRAINED_NODES
from llmtrain_core.node_health import HealthFinding
from llmtrain_core.queueing import Assignment
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.blocked_nodes import blocked_text
from llmtrain_operator.policies.node_replacement import find_replacements, replace_nodes
from llmtrain_operator.policies.placement import accept_assignment
from llmtrain_operator.scheduler.decisions import RelocationHint

MIN_RELATIVE_CHANGE = 0.1
"""A gain that changed by less than this share is not written."""


def protect_gang(draft: StatusDraft) -> bool:
    """Create the PodDisruptionBudget of a running gang, or delete it when the job lets go.

    The eviction API fails for a pod that two budgets select, so one of others takes precedence.
    """
    found, observed = draft.observed.budget, draft.observed
    wanted = (
        draft.is_true(ConditionType.RUNNING)
        and draft.placement is not None
        and not draft.view.is_finished
        and not draft.view.is_deleting
        and not draft.view.is_suspended
        and not observed.covering_budget
        and not _drain_is_overdue(draft)
    )
    if found is not None and not (wanted and found.protects(len(draft.placed_nodes))):
        draft.delete_budget = found
    draft.create_budget = wanted and found is None
    return False


def follow_drain(draft: StatusDraft) -> bool:
    """Record that nodes of a running gang are drained, and until when its pods are protected."""
    if draft.placement is None or not draft.is_true(ConditionType.RUNNING):
        return False
    _free_completed_pods(draft)
    causes = _drained_nodes(draft)
    if not causes:
        _end_drain(draft)
        return False
    deadline = format_time(draft.observed.now + timedelta(seconds=_patience(draft, causes)))
    if not draft.view.is_drained:
        newest = draft.view.last_checkpoint or 0
        move = {"attempt": draft.attempt, "afterCheckpoint": newest, "deadline": deadline}
        draft.set_field("move", move)
    elif deadline < draft.view.drain_deadline:  # a node that stops sooner than the first one
        draft.set_field("move", {**draft.view.move, "deadline": deadline})
    named = sorted(causes)[:MAX_DRAINED_NODES]
    draft.set_field("move", {**draft.view.move, "nodes": named})
    text = f"{_drained_text(causes)}: {_next_step(draft)}"
    draft.set_condition(ConditionType.RUNNING, True, Reason.NODE_DRAINING, clean_text(text))
    left = parse_time(draft.view.drain_deadline) - draft.observed.now
    if left.total_seconds() > 0:
        draft.reconcile_after(left.total_seconds())
    return False


def relocate(draft: StatusDraft) -> bool:
    """Show a better placement, and move to the new assignment after a request or for a drain."""
    if draft.placement is None:
        draft.set_field("betterPlacement", None)
        draft.set_field("move", None)
        return False
    _record_better_placement(draft)
    if draft.view.is_drained:
        return _leave_drained_nodes(draft)
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
    _move(draft, decision, "moving to a better placement, as requested")
    return True


def _drained_nodes(draft: StatusDraft) -> dict[str, HealthFinding]:
    """Return the nodes that the gang is expected to leave, with the cause of each."""
    ended = {pod.node for pod in current_pods(draft) if pod.trainer_ended}
    return {
        name: cause
        for name in draft.placed_nodes
        if name not in ended
        and (known := draft.observed.nodes.get(name)) is not None
        and (cause := known.node.leaving) is not None
    }


def _patience(draft: StatusDraft, causes: Mapping[str, HealthFinding]) -> float:
    """Return the seconds that a job has to leave: fewer if one of the nodes stops soon."""
    found = (cause.move_within for cause in causes.values())
    return min([draft.observed.drain_timeout, *(limit for limit in found if limit is not None)])


def _drained_text(causes: Mapping[str, HealthFinding]) -> str:
    return blocked_text({node: [cause.text] for node, cause in causes.items()})


def _free_completed_pods(draft: StatusDraft) -> None:
    """Delete recorded pods on drained nodes of which a sidecar runs on: the budget protects them.

    The gang does not leave their nodes, so the drain would have no end.
    """
    done, nodes = draft.view.completed_pods, draft.observed.nodes
    draft.delete_pods(
        pod
        for pod in draft.observed.pods
        if pod.attempt == draft.attempt and pod.index in done and pod.has_sidecar
        if pod.node in nodes and nodes[pod.node].node.leaving is not None
    )


def _drain_is_overdue(draft: StatusDraft) -> bool:
    deadline = draft.view.drain_deadline
    return bool(deadline) and draft.observed.now >= parse_time(deadline)


def _end_drain(draft: StatusDraft) -> None:
    """Forget the drain of nodes that accept pods again."""
    if draft.view.is_drained:
        draft.set_field("move", None)
        text = "all pods have started; no node of the job is drained any more"
        draft.set_condition(ConditionType.RUNNING, True, Reason.TRAINING, text)


def _next_step(draft: StatusDraft) -> str:
    deadline = draft.view.drain_deadline
    evicted = f"its pods may be evicted from {deadline} on"
    if draft.view.may_leave(draft.observed.now.timestamp()):
        return f"the job moves when other nodes are free; {evicted}"
    if _drain_is_overdue(draft):
        return f"the job saves no checkpoint to move with; {evicted}"
    after = draft.view.move["afterCheckpoint"]
    return f"the job moves after a checkpoint newer than step {after}; {evicted}"


def _leave_drained_nodes(draft: StatusDraft) -> bool:
    """Move a job off drained nodes: to its spares, or to the assignment of the scheduler."""
    causes = _drained_nodes(draft)
    if not causes or not draft.view.may_leave(draft.observed.now.timestamp()):
        return False
    text = clean_text(f"moving off {_drained_text(causes)}")
    decision = draft.observed.decision
    replacements = find_replacements(draft, causes)
    if replacements:
        _stop_running(draft, text)
        replace_nodes(draft, replacements)
        return True
    if not isinstance(decision, Assignment) or decision.attempt != draft.attempt + 1:
        return False
    if causes.keys() & set(decision.nodes):
        return False
    _move(draft, decision, text)
    return True


def _move(draft: StatusDraft, decision: Assignment, message: str) -> None:
    _stop_running(draft, message)
    draft.set_field("attempt", draft.attempt + 1)
    accept_assignment(draft, decision)


def _stop_running(draft: StatusDraft, message: str) -> None:
    for kind in (ConditionType.PODS_READY, ConditionType.RUNNING):
        draft.clear_condition_if_present(kind, Reason.MOVED, message)
    draft.set_field("betterPlacement", None)
    draft.set_field("move", None)


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
