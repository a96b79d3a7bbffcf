"""The pods of the current attempt, and the deletion of pods of earlier attempts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import inf

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.records import STUCK_SECONDS, PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.manifests.names import JobIdentity

_SUCCEEDED = "Succeeded"

NAMED_PODS = 5
_MAX_NAMED = 3
_WHY = "; "
"""What separates the number of ready pods from the reason in a message."""
_AGES = (60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
"""Ages of a wait that a message tells apart, in seconds. Each changes the status once."""


def current_pods(draft: StatusDraft) -> list[PodRecord]:
    """Return the pods of the current attempt, in order of rank block.

    A pod that was found to have succeeded stays so. It may be deleted meanwhile, or a kubelet that
    starts again may reject it.
    """
    key = draft.attempt, draft.placed_nodes, draft.view.completed_pods
    if draft.known_pods is None or draft.known_pods[0] != key:
        draft.known_pods = key, _pods_of_attempt(draft.observed, *key)
    return [*draft.known_pods[1]]


def _pods_of_attempt(
    observed: Observed, attempt: int, nodes: Sequence[str], completed: Iterable[int]
) -> list[PodRecord]:
    pods = {pod.index: pod for pod in observed.pods if pod.attempt == attempt}
    identity = JobIdentity.of(observed.raw)
    for index in completed:
        found = pods.get(index)
        if index < len(nodes) and (found is None or found.phase != _SUCCEEDED):
            pods[index] = _succeeded(identity, attempt, index, nodes[index])
    return [pods[index] for index in sorted(pods)]


def _succeeded(identity: JobIdentity, attempt: int, index: int, node: str) -> PodRecord:
    """Return what remains of a pod that has succeeded and is gone."""
    return PodRecord(
        uid="",
        name=identity.pod(attempt, index),
        namespace=identity.namespace,
        job=identity.uid,
        owner=identity.uid,
        attempt=attempt,
        index=index,
        node=node,
        bound=True,
        phase=_SUCCEEDED,
        ready=False,
        deleting=False,
        reason="",
        disruption="",
        message="",
        exit_code=0,
        finished="",
        address="",
        resources=(),
    )


def set_pods_not_ready(
    draft: StatusDraft, ready: int, reason: str = Reason.PODS_STARTING, why: str = ""
) -> None:
    """Set the condition PodsReady of a gang of which some pods are not ready."""
    text = f"{ready} of {draft.job.nodes} pods are ready" + (f"{_WHY}{why}" if why else "")
    draft.set_condition(ConditionType.PODS_READY, False, reason, text)


def why_not_ready(message: str) -> str:
    """Return the message of the condition PodsReady without the number of pods."""
    return message.partition(_WHY)[2]


def possibly_running_pods(draft: StatusDraft, pods: list[PodRecord]) -> list[PodRecord]:
    """Return the pods that may still run.

    A deleted pod on a lost node stays in the API until the node returns or is removed, so waiting
    for it could block the job for ever. It cannot disturb the next attempt, which uses another
    rendezvous address.
    """
    return [pod for pod in pods if not (pod.deleting and draft.observed.is_lost(pod.node))]


def delete_stale_pods(draft: StatusDraft) -> list[PodRecord]:
    """Delete the pods of earlier attempts. Return those that may still run.

    Pods of a later attempt are kept: the observed status is older than they are.
    """
    others = [pod for pod in draft.observed.pods if pod.attempt != draft.attempt]
    draft.delete_pods(pod for pod in others if pod.attempt < draft.attempt)
    for pod in others:
        if pod.deleting and draft.observed.seconds_until_lost(pod.node) != float("inf"):
            draft.reconcile_after(draft.observed.seconds_until_lost(pod.node))
    return possibly_running_pods(draft, others)


def is_stuck(draft: StatusDraft, pod: PodRecord) -> bool:
    """Return True if a pod should have ended long ago. Reconcile again when that may be so.

    Its node is ready, but the kubelet cannot end it (a hung mount, a process that ignores SIGKILL),
    or a finalizer keeps it.
    """
    return _is_overdue(draft, pod, STUCK_SECONDS)


def is_overdue(draft: StatusDraft, pod: PodRecord) -> bool:
    """Return True if the grace period of a pod has ended. Reconcile again when it ends."""
    return _is_overdue(draft, pod, 0.0)


def _is_overdue(draft: StatusDraft, pod: PodRecord, patience: float) -> bool:
    left = pod.seconds_until_overdue(draft.observed.now.timestamp(), patience)
    if 0 < left < inf:
        draft.reconcile_after(left)
    return left <= 0


def names_of(pods: Sequence[PodRecord]) -> str:
    """Return the names of some pods with their namespaces, and the number of the others."""
    more = len(pods) - NAMED_PODS
    names = [f"{pod.namespace}/{pod.name}" for pod in pods[:NAMED_PODS]]
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def terminating_text(draft: StatusDraft, pods: Sequence[PodRecord]) -> str:
    """Name pods that are being deleted, with their nodes, the longest overdue first.

    Reconcile again when the text changes.
    """
    now = draft.observed.now.timestamp()
    ranked = sorted(pods, key=lambda pod: (pod.ends_by or now, pod.name))
    named = [_overdue_text(draft, pod, now) for pod in ranked[:_MAX_NAMED]]
    more = len(ranked) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")


def _overdue_text(draft: StatusDraft, pod: PodRecord, now: float) -> str:
    name = f"pod {pod.name} on node {pod.node or 'unknown'}"
    overdue = now - pod.ends_by
    if not pod.deleting or not pod.ends_by:
        return f"{name} is to be deleted"
    if overdue < 0:
        draft.reconcile_after(-overdue)
        return f"{name} is terminating"
    passed = bisect_right(_AGES, overdue)
    if passed < len(_AGES):
        draft.reconcile_after(_AGES[passed] - overdue)
    age = f" more than {_age(_AGES[passed - 1])} ago" if passed else ""
    return f"{name} is still terminating, its grace period ended{age}"


def _age(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds // 60} min"
