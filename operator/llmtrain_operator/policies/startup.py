"""Policy: the gang starts as a whole within startupTimeout, or releases its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from llmtrain_core.api.base import duration_seconds
from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.api.failure_info import FailureEvidence, FailureInfo
from llmtrain_core.api.job import FailurePolicy
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.cache.pod_state import IMAGE_REASONS, INITIALIZING
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.missing_objects import missing_reason, named_by_events
from llmtrain_operator.job_state.observation import CreateError
from llmtrain_operator.job_state.pods import (
    current_pods,
    delete_stale_pods,
    is_stuck,
    set_pods_not_ready,
    terminating_text,
)
from llmtrain_operator.job_state.release import UNSTARTED_BACKOFF_SECONDS, unplace_unstarted
from llmtrain_operator.job_state.restart_budget import earliest_start
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.policies.blocked_nodes import (
    REFUSED_BACKOFF_SECONDS,
    leave_blocked_nodes,
    leave_stuck_pods,
    release_unschedulable,
)
from llmtrain_operator.policies.failure_handling import handle_failure
from llmtrain_operator.policies.kueue import gated_pods, is_admitted
from llmtrain_operator.policies.ttl_and_deadline import mark_failed
from llmtrain_operator.progress.pod_events import PODS_AT_ONCE

PASSING_SECONDS = 10.0
"""A gang keeps its nodes this long if what refuses its objects may pass within seconds."""
_PASSING_REASONS = frozenset({Reason.QUOTA_EXCEEDED, Reason.NAME_CONFLICT})
"""The quota counts pods that are just deleted. A job waits for the objects of a deleted job before
it gets nodes; those that the caches did not show yet go soon."""
MISSING_SECONDS = 30.0
"""A gang keeps its nodes this long. The kubelet looks again after seconds, and an object that is
created together with the job may come a little later."""
MIN_START_SECONDS = 120.0
"""A pod that was bound for a shorter time says nothing about its node: a healthy one may take as
long to attach volumes, whatever `startupTimeout` is."""
_RUNTIME_REASONS = frozenset({"CreateContainerError", "RunContainerError"})
"""Why a container waits whose runtime cannot start it."""
EVENTS_AFTER_SECONDS = 5.0
"""The Events of pods that have not started after this time are read."""
SILENT_SECONDS = 10.0
"""A wait for pods of the last attempt is usually shorter, and shown only after this time: to show
it takes two writes of the status."""
DELETION_SECONDS = 60.0
"""A gang waits at most this long for the deletion of the objects of its last attempt."""
_NORMAL_WAITING_REASONS = frozenset({"", "ContainerCreating", INITIALIZING})


def start_gang(draft: StatusDraft) -> bool:
    """Create missing pods and follow the gang until all pods run."""
    pods = current_pods(draft)
    if draft.is_true(ConditionType.RUNNING):
        _record_readiness(draft, pods)
        return False
    expected = draft.job.nodes
    if len(pods) == expected and all(pod.started and not pod.deleting for pod in pods):
        _record_readiness(draft, pods)
        text = f"all {expected} pods have started"
        draft.set_condition(ConditionType.RUNNING, True, Reason.TRAINING, text)
        draft.set_field("unstartedAttempts", None)
        draft.clear_condition_if_present(
            ConditionType.RESTARTING, Reason.ALL_PODS_READY, "the gang is running again"
        )
        return True
    may_start, awaited = is_admitted(draft, pods), _awaited_pods(draft, pods)
    if leave_stuck_pods(draft):
        return True
    _record_readiness(draft, pods, awaited)
    if _creation_fails(draft, pods):
        return True
    if may_start and (release_unschedulable(draft, pods) or _release_for_missing(draft, pods)):
        return True
    refused = _create_error(draft, pods) is not None
    # Pods of a later attempt are not deleted, so the wait for them ends only here.
    ends = any(pod.deleting or pod.attempt < draft.attempt for pod in awaited)
    if may_start and not refused and not ends and _startup_timed_out(draft):
        _handle_startup_timeout(draft, pods)
        return True
    if not awaited:
        backoff = (earliest_start(draft) - draft.observed.now).total_seconds()
        if backoff > 0:
            draft.reconcile_after(backoff)
        elif not _waits_for_objects(draft):
            _create_missing_pods(draft, pods)
    return True


def _awaited_pods(draft: StatusDraft, pods: Sequence[PodRecord]) -> list[PodRecord]:
    """Return the pods that must end before the gang starts, and restart the clock after the wait.

    `pods` are those of the current attempt. Pods of earlier attempts are deleted.
    """
    stopping = [*delete_stale_pods(draft), *(pod for pod in pods if pod.deleting)]
    awaited = [pod for pod in stopping if not is_stuck(draft, pod)]
    shown = draft.view.condition(ConditionType.PODS_READY)
    if not awaited and shown is not None and shown["reason"] == Reason.PODS_TERMINATING:
        draft.set_field("attemptStartTime", draft.now)
    return awaited


def _waits_for_objects(draft: StatusDraft) -> bool:
    """Return True if a ComputeDomain or PodGroup of an earlier placement is not gone yet.

    Nodes can be in one ComputeDomain at a time, and the claims of a PodGroup have their devices
    until it is gone. If that takes longer, the pods wait for it.
    """
    old = [
        found
        for found in draft.observed.attempt_objects
        if found.attempt < draft.attempt or found.deleting
    ]
    if not old:
        return False
    start = parse_time(draft.view.attempt_start_time or draft.now)
    left = DELETION_SECONDS - (draft.observed.now - start).total_seconds()
    if left <= 0:
        return False
    draft.reconcile_after(left)
    text = f"waiting for the deletion of {old[0].text} of the last attempt"
    set_pods_not_ready(draft, 0, Reason.PODS_STARTING, clean_text(text))
    return True


def _create_missing_pods(draft: StatusDraft, pods: Sequence[PodRecord]) -> None:
    """Create the pods that do not exist, unless one of them could not start on its node."""
    existing, nodes = {pod.index for pod in pods}, draft.placed_nodes
    missing = [index for index in range(draft.job.nodes) if index not in existing]
    if not leave_blocked_nodes(draft, [nodes[index] for index in missing]):
        draft.create_pods = tuple(missing)


def _record_readiness(
    draft: StatusDraft, pods: Sequence[PodRecord], awaited: Sequence[PodRecord] = ()
) -> None:
    expected = draft.job.nodes
    ready = sum(pod.ready or pod.phase == "Succeeded" for pod in pods)
    if ready == expected:
        text = f"{ready} pods are ready"
        draft.set_condition(ConditionType.PODS_READY, True, Reason.ALL_PODS_READY, text)
        return
    reason, why = _not_ready_reason(draft, pods)
    if reason == Reason.PODS_STARTING and (wait := _wait_message(draft, awaited)):
        reason, why = Reason.PODS_TERMINATING, clean_text(wait, 700)
    set_pods_not_ready(draft, ready, reason, why)


def _not_ready_reason(draft: StatusDraft, pods: Sequence[PodRecord]) -> tuple[str, str]:
    """Return reason and message of the most severe problem of the gang."""
    create_error = _create_error(draft, pods)
    if create_error is not None:
        return create_error.reason, create_error.message
    gated = gated_pods(pods)
    if gated:
        group = JobIdentity.of(draft.observed.raw).kueue_group(draft.attempt)
        text = f"{len(gated)} pods have a scheduling gate until Kueue admits the Workload {group}"
        return Reason.WAITING_FOR_QUOTA, text
    missing = missing_reason(draft, pods)
    if missing is not None:
        # Only their Events are read again: the gang is released unless these find the object.
        draft.explain_pods = tuple(named_by_events(draft, pods))[:PODS_AT_ONCE]
        return missing[0], missing[1]
    no_image = [pod for pod in pods if pod.reason in IMAGE_REASONS]
    if no_image:
        return Reason.IMAGE_PULL_FAILED, _image_message(draft, no_image)
    for pod in pods:
        if not pod.started and pod.reason not in _NORMAL_WAITING_REASONS:
            where = "is on" if pod.bound else "is for"
            text = f"pod {pod.name}, which {where} node {pod.node}: {pod.reason}: {pod.message}"
            return Reason.PODS_STARTING, clean_text(text, 600)
    return Reason.PODS_STARTING, _delay_from_events(draft, pods)


def _delay_from_events(draft: StatusDraft, pods: Sequence[PodRecord]) -> str:
    """Return what the Events say of a pod whose container says nothing. They are read later."""
    waiting = [pod for pod in pods if pod.bound and not pod.started and not pod.deleting]
    if not waiting:
        return ""
    for pod in waiting:
        if pod.reason == INITIALIZING and pod.message:
            return clean_text(f"pod {pod.name} on node {pod.node}: {pod.message}", 600)
    start = parse_time(draft.view.attempt_start_time or draft.now)
    left = EVENTS_AFTER_SECONDS - (draft.observed.now - start).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
        return ""
    draft.explain_pods = tuple(waiting)
    for pod in waiting:
        found = draft.observed.pod_events.get(pod.uid)
        if found:
            return clean_text(f"pod {pod.name} on node {pod.node}: {found}", 600)
    return ""


def _wait_message(draft: StatusDraft, awaited: Sequence[PodRecord]) -> str:
    """Return what a gang waits for that cannot start yet; empty if the wait is short so far."""
    if not awaited:
        return ""
    policy = draft.job.spec.failure_policy or FailurePolicy()
    silent = min(SILENT_SECONDS, duration_seconds(policy.startup_timeout) / 2)
    start = parse_time(draft.view.attempt_start_time or draft.now)
    left = silent - (draft.observed.now - start).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
        return ""
    return f"waiting for pods of the last attempt: {terminating_text(draft, awaited)}"


def _create_error(draft: StatusDraft, pods: Sequence[PodRecord]) -> CreateError | None:
    """Return the error that prevents the creation of the missing pods, if pods are missing."""
    return draft.observed.current_create_error if len(pods) < draft.job.nodes else None


def _creation_fails(draft: StatusDraft, pods: Sequence[PodRecord]) -> bool:
    """Release the nodes of a gang whose objects the API server refuses, whatever the reason is.

    It queues again after a delay, without a restart. It was admitted before, so this is rare.
    """
    error = _create_error(draft, pods)
    if error is None:
        return False
    if error.reason in _PASSING_REASONS and error.since is not None:
        until = error.since + timedelta(seconds=PASSING_SECONDS)
        left = (until - draft.observed.now).total_seconds()
        if left > 0:
            draft.reconcile_after(left)
            return False
    # A user can take a name, and others may have been preempted for the gang.
    taken = error.reason == Reason.NAME_CONFLICT
    delay = UNSTARTED_BACKOFF_SECONDS if taken else REFUSED_BACKOFF_SECONDS
    unplace_unstarted(draft, error.reason, error.message, delay)
    return True


def _release_for_missing(
    draft: StatusDraft, pods: Sequence[PodRecord], patience: float = MISSING_SECONDS
) -> bool:
    """Release the nodes of a gang that has waited for an object for `patience` seconds.

    The user can create or renew the object, so the job queues again, later each time. This is no
    failure, and says nothing about the node.
    """
    found = missing_reason(draft, pods)
    if found is None:
        return False
    reason, message, pod = found
    left = patience - draft.observed.missing_seconds.get(pod.uid, 0.0)
    if left > 0:
        draft.reconcile_after(left)
        return False
    unplace_unstarted(draft, reason, message, REFUSED_BACKOFF_SECONDS)
    return True


def _image_message(draft: StatusDraft, pods: Sequence[PodRecord]) -> str:
    image, pod = clean_text(draft.job.spec.workers.image, 200), pods[0]
    said = clean_text(f"{pod.reason}: {pod.message}", 300)
    return (
        f"spec.workers.image: {image} cannot be pulled for {len(pods)} pods; create the job again"
        f" with an image that the nodes can pull; pod {pod.name} on node {pod.node}: {said}"
    )


def _startup_timed_out(draft: StatusDraft) -> bool:
    policy = draft.job.spec.failure_policy or FailurePolicy()
    return _seconds_left(draft, duration_seconds(policy.startup_timeout)) <= 0


def _seconds_left(draft: StatusDraft, limit: float) -> float:
    """Return the seconds until the attempt has had this time to start, and reconcile then."""
    start = max(parse_time(draft.view.attempt_start_time or draft.now), earliest_start(draft))
    left = (start + timedelta(seconds=limit) - draft.observed.now).total_seconds()
    if left > 0:
        draft.reconcile_after(left)
    return left


def _handle_startup_timeout(draft: StatusDraft, pods: Sequence[PodRecord]) -> None:
    """Fail, requeue or restart a gang that did not start in time, depending on the reason."""
    if release_unschedulable(draft, pods, 0.0) or _release_for_missing(draft, pods, 0.0):
        return
    reason, why = _not_ready_reason(draft, pods)
    if reason == Reason.IMAGE_PULL_FAILED:
        mark_failed(draft, reason, why)
        return
    started = sum(pod.started for pod in pods)
    text = clean_text(
        f"spec.failurePolicy.startupTimeout: {started} of {draft.job.nodes} pods had started when"
        " the timeout expired" + (f"; {why}" if why else "")
    )
    if reason == Reason.PODS_STARTING:
        handle_failure(draft, _late_start(draft, pods, text))
    else:
        handle_failure(draft, FailureInfo(reason, text, keeps_nodes=False))


def _late_start(draft: StatusDraft, pods: Sequence[PodRecord], message: str) -> FailureInfo:
    """Return the failure of a gang that did not start. It names a node only on evidence.

    A pod that is not bound says nothing about its node. If all pods are late, they have a cause in
    common, such as a volume that cannot be mounted.
    """
    expected, late = draft.job.nodes, [pod for pod in pods if not pod.started]
    in_common = len(late) == expected > 1
    bound = [pod for pod in late if pod.bound]
    suspect = next((pod for pod in bound if _speaks_against_node(draft, pod, late)), None)
    first = suspect or (None if in_common else next(iter(bound), None))
    return FailureInfo(
        Reason.STARTUP_TIMEOUT,
        message,
        node=first.node if first else "",
        keeps_nodes=False,
        evidence=FailureEvidence.START if suspect else FailureEvidence.JOB,
    )


def _speaks_against_node(draft: StatusDraft, pod: PodRecord, late: Sequence[PodRecord]) -> bool:
    """Return True if a late pod had its time, and its node is the likely cause.

    Either its kubelet has said nothing at all, or most of the gang has started, and this pod waits
    for its container or for what comes before the image. A pull of the image takes what it takes.
    """
    # The operator wrote the first time, kube-scheduler the other one: its clock may be slow.
    since = max(parse_time(draft.view.attempt_start_time).timestamp(), pod.bound_at)
    if draft.observed.now.timestamp() - since < MIN_START_SECONDS:
        return False
    if pod.phase == "Pending" and not pod.reason:
        return True
    alone = 2 * len(late) <= draft.job.nodes
    return alone and (pod.setting_up or pod.reason in _RUNTIME_REASONS)
