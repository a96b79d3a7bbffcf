"""Policy: the gang starts as a whole, or its nodes are given back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from llmtrain_core.api.base import duration_seconds
from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.failure import FailureInfo
from llmtrain_core.api.job import FailurePolicy
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import CreateError
from llmtrain_operator.job_state.pods import current_pods, delete_stale_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.failure import earliest_start, handle_failure, unplace
from llmtrain_operator.policies.failure_classification import IMAGE_REASONS
from llmtrain_operator.policies.kueue import gated_pods, is_admitted
from llmtrain_operator.policies.ttl_and_deadline import mark_failed
from llmtrain_operator.scheduler.decisions import TROUBLES

_NORMAL_WAITING_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})


def start_gang(draft: StatusDraft) -> bool:
    """Create what is missing, and follow the gang until all of it runs."""
    pods = current_pods(draft)
    if draft.is_true(ConditionType.RUNNING):
        _record_readiness(draft, pods)
        return False
    expected = draft.job.nodes
    if len(pods) == expected and all(pod.started and not pod.deleting for pod in pods):
        _record_readiness(draft, pods)
        draft.set_condition(
            ConditionType.RUNNING, True, Reason.TRAINING, f"all {expected} pods have started"
        )
        draft.clear_condition_if_present(
            ConditionType.RESTARTING, Reason.ALL_PODS_READY, "the gang runs again"
        )
        return True
    may_start = is_admitted(draft, pods)
    _record_readiness(draft, pods)
    if may_start and _startup_timed_out(draft):
        _handle_startup_timeout(draft, pods)
        return True
    if not delete_stale_pods(draft):
        held = (earliest_start(draft) - draft.observed.now).total_seconds()
        if held > 0:
            draft.reconcile_after(held)
        else:
            there = {pod.index for pod in pods}
            draft.create_pods = tuple(index for index in range(expected) if index not in there)
    return True


def _record_readiness(draft: StatusDraft, pods: Sequence[PodRecord]) -> None:
    expected = draft.job.nodes
    good = sum(pod.ready or pod.phase == "Succeeded" for pod in pods)
    if good == expected:
        draft.set_condition(
            ConditionType.PODS_READY, True, Reason.ALL_PODS_READY, f"{good} pods are ready"
        )
        return
    reason, why = _not_ready_reason(draft, pods)
    text = f"{good} of {expected} pods are ready" + (f"; {why}" if why else "")
    draft.set_condition(ConditionType.PODS_READY, False, reason, text)


def _not_ready_reason(draft: StatusDraft, pods: Sequence[PodRecord]) -> tuple[str, str]:
    """What holds the gang up, worst first: reason and sentence."""
    create_error = _create_error(draft, pods)
    if create_error is not None:
        return create_error.reason, create_error.message
    held = gated_pods(pods)
    if held:
        text = f"{len(held)} pods wait behind a scheduling gate for the quota of their queue"
        return Reason.WAITING_FOR_QUOTA, text
    no_image = [pod for pod in pods if pod.reason in IMAGE_REASONS]
    if no_image:
        return Reason.IMAGE_PULL_FAILED, _image_message(draft, len(no_image))
    for pod in pods:
        if not pod.started and pod.reason not in _NORMAL_WAITING_REASONS:
            text = f"pod {pod.name}: {pod.reason}: {pod.message}"
            return Reason.PODS_STARTING, clean_text(text, 600)
    return Reason.PODS_STARTING, ""


def _create_error(draft: StatusDraft, pods: Sequence[PodRecord]) -> CreateError | None:
    """What stands in the way of the pods that are not there."""
    return draft.observed.create_error if len(pods) < draft.job.nodes else None


def _image_message(draft: StatusDraft, count: int) -> str:
    image = clean_text(draft.job.spec.workers.image, 200)
    return (
        f"spec.workers.image: {image} cannot be pulled for {count} pods; create the job anew with"
        " an image that the nodes can pull"
    )


def _startup_timed_out(draft: StatusDraft) -> bool:
    policy = draft.job.spec.failure_policy or FailurePolicy()
    limit = duration_seconds(policy.startup_timeout)
    start = max(
        parse_time(draft.status.get("attemptStartTime") or draft.now), earliest_start(draft)
    )
    left = (start + timedelta(seconds=limit) - draft.observed.now).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
    return left <= 0


def _handle_startup_timeout(draft: StatusDraft, pods: Sequence[PodRecord]) -> None:
    """Give the nodes of a gang back that did not start in time."""
    reason, why = _not_ready_reason(draft, pods)
    if reason == Reason.IMAGE_PULL_FAILED:
        mark_failed(draft, reason, why)
        return
    if reason in TROUBLES:
        unplace(draft, reason, why)
        return
    if reason == Reason.PODS_STARTING:
        reason = Reason.STARTUP_TIMEOUT
    ready = sum(pod.started for pod in pods)
    text = (
        f"spec.failurePolicy.startupTimeout: {ready} of {draft.job.nodes} pods had started when"
        " the time was up" + (f"; {why}" if why else "")
    )
    late = next((pod.node for pod in pods if not pod.started), "")
    handle_failure(draft, FailureInfo(reason, clean_text(text), node=late, keeps_nodes=False))
