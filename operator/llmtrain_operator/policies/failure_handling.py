"""Policy: after a failure of a pod or node, restart the gang or fail the job."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.failure_info import FailureEvidence, FailureInfo
from llmtrain_core.api.job import FailurePolicy
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.job_state.failures import append_failure
from llmtrain_operator.job_state.last_restart import record_gang_restart
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.release import unplace
from llmtrain_operator.job_state.restart_budget import (
    BOUND_FAILURES,
    MAX_BACKOFF_SECONDS,
    count_restart,
    earliest_start,
    is_disruption,
    restart_delay,
)
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.blocked_nodes import blocked_text
from llmtrain_operator.policies.failure_classification import (
    classify,
    failure_of,
    is_consequence,
    pod_deleted_failure,
)
from llmtrain_operator.policies.node_replacement import find_replacements, replace_nodes
from llmtrain_operator.policies.ttl_and_deadline import mark_failed

FIRST_CAUSE_WAIT_SECONDS = 60.0
"""Wait this long for the cause of a failure: pods that lost a peer fail before it.

A pod that fails ends within seconds. The pods of a dead node seem to run until Kubernetes marks the
node, which takes up to 55 s by default. A gang that restarts before would get the same node again.
"""


def detect_failure(draft: StatusDraft) -> bool:
    """Detect and handle a failure of the current attempt."""
    if draft.placement is None:
        return False
    failure = _pod_failure(draft) or _lost_node_or_pod(draft)
    if failure is None:
        return False
    if isinstance(failure, FailureInfo):
        handle_failure(draft, failure)
    return True


def _pod_failure(draft: StatusDraft) -> FailureInfo | float | None:
    """Return the failure, or the seconds to wait until its cause is known."""
    pods = current_pods(draft)
    failed = [pod for pod in pods if pod.phase == "Failed"]
    if not failed:
        return None
    consequences = all(is_consequence(pod) for pod in failed)
    if consequences and (cause := _lost_node_or_pod(draft)) is not None:
        return cause  # such as a pod that is gone, because its node was drained
    if consequences and not all(pod.trainer_ended for pod in pods):
        for pod in pods:
            if not pod.trainer_ended and draft.observed.seconds_until_lost(pod.node) != float(
                "inf"
            ):
                return _node_lost(pod.node, "is gone or not ready, and its peers lost it")
        left = FIRST_CAUSE_WAIT_SECONDS - draft.observed.seconds_since_failure
        if left > 0:
            draft.reconcile_after(left)
            return left
    return failure_of(draft, failed)


def _lost_node_or_pod(draft: StatusDraft) -> FailureInfo | None:
    """Return the failure of a lost node, or of a pod that another client deleted."""
    pods = current_pods(draft)
    ended = {pod.index for pod in pods if pod.trainer_ended}
    for index, node in enumerate(draft.placed_nodes):
        left = draft.observed.seconds_until_lost(node)
        if index in ended or left == float("inf"):
            continue
        if left <= 0:
            return _node_lost(node, "is gone or has not been ready for too long")
        draft.reconcile_after(left)
    if not draft.is_true(ConditionType.RUNNING):
        return None
    existing = {pod.index for pod in pods if not pod.deleting or pod.trainer_ended}
    for index, node in enumerate(draft.placed_nodes):
        if index not in existing:
            deleting = next((pod for pod in pods if pod.index == index), None)
            if deleting is not None and deleting.disruption:
                return classify(deleting)
            return pod_deleted_failure(f"{draft.job.name}-{draft.attempt}-{index}", node)
    return None


def _node_lost(node: str, why: str) -> FailureInfo:
    text = f"node {node} {why}"
    return FailureInfo(
        Reason.NODE_LOST, text, node=node, keeps_nodes=False, evidence=FailureEvidence.NODE
    )


def handle_failure(draft: StatusDraft, failure: FailureInfo) -> None:
    """Restart the gang after a disruption, and after an own failure if maxRestarts allows it."""
    allowed = (draft.job.spec.failure_policy or FailurePolicy()).max_restarts
    spent = draft.view.restarts_towards_max
    append_failure(draft, failure)
    if is_disruption(failure):
        _restart_gang(draft, failure)
    elif not failure.retryable or allowed == 0:
        mark_failed(draft, failure.reason, failure.message)
    elif spent >= allowed:
        mark_failed(
            draft,
            Reason.TOO_MANY_RESTARTS,
            f"spec.failurePolicy.maxRestarts: failed after {spent} restarts without a newer"
            f" checkpoint, the last time with {failure.reason}: {failure.message}",
        )
    else:
        count_restart(draft)
        _restart_gang(draft, failure)


def _restart_gang(draft: StatusDraft, failure: FailureInfo) -> None:
    placement = draft.placement
    held = frozenset(draft.observed.held_nodes)
    blocked = {n: why for n in draft.placed_nodes if (why := draft.observed.obstacles(n))}
    failed = blocked.keys() | {n for n in draft.placed_nodes if n not in held}
    if not failure.keeps_nodes:
        failed.add(failure.node)
    waits = restart_delay(draft.view.failures) > MAX_BACKOFF_SECONDS
    replacements = {} if waits else find_replacements(draft, failed)
    reason = Reason.NODE_REPLACED if replacements else Reason.GANG_RESTART
    swaps = "".join(f"; {new} replaces {old}" for old, new in replacements.items())
    record_gang_restart(draft, replaces_nodes=bool(replacements))
    draft.set_condition(
        ConditionType.RESTARTING, True, reason, f"{failure.reason}: {failure.message}{swaps}"
    )
    for kind in (ConditionType.PODS_READY, ConditionType.RUNNING):
        draft.clear_condition_if_present(kind, reason, "the gang is restarting")
    if waits:
        _release_until_restart(draft, failure)
    elif replacements:
        replace_nodes(draft, replacements)
    elif placement is not None and not failed:
        draft.set_field("attempt", draft.attempt + 1)
        draft.set_field("placement", {**placement, "attempt": draft.attempt})
        draft.set_field("attemptStartTime", draft.now)
    else:
        text = f"; cannot restart on {blocked_text(blocked)}" if blocked else ""
        text = f"waiting for a new placement after a failure{text}"
        unplace(draft, Reason.NOT_PLACED, clean_text(text))


def _release_until_restart(draft: StatusDraft, failure: FailureInfo) -> None:
    """Release the nodes of a gang that is restarted too often, and queue it again later."""
    until = format_time(earliest_start(draft))
    text = (
        f"{BOUND_FAILURES} failures and disruptions within an hour, the last one {failure.reason};"
        f" the job queues again at {until}"
    )
    unplace(draft, Reason.RESTART_BACKOFF, clean_text(text))
    draft.set_field("backoffUntil", until)
