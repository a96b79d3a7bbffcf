"""The pods of the current attempt, and the deletion of pods of earlier attempts."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.manifests.names import JobIdentity

_SUCCEEDED = "Succeeded"


def current_pods(draft: StatusDraft) -> list[PodRecord]:
    """Return the pods of the current attempt, in order of rank block.

    A pod that was found to have succeeded stays so. It may be deleted meanwhile, or a kubelet that
    starts again may reject it.
    """
    pods = {pod.index: pod for pod in draft.observed.pods if pod.attempt == draft.attempt}
    if draft.placement is not None:
        for index in draft.view.completed_pods:
            found = pods.get(index)
            if index < len(draft.placed_nodes) and (found is None or found.phase != _SUCCEEDED):
                pods[index] = _succeeded(draft, index)
    return [pods[index] for index in sorted(pods)]


def _succeeded(draft: StatusDraft, index: int) -> PodRecord:
    """Return what remains of a pod that has succeeded and is gone."""
    identity = JobIdentity.of(draft.observed.raw)
    return PodRecord(
        uid="",
        name=identity.pod(draft.attempt, index),
        namespace=identity.namespace,
        job=identity.uid,
        owner=identity.uid,
        attempt=draft.attempt,
        index=index,
        node=draft.placed_nodes[index],
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
    text = f"{ready} of {draft.job.nodes} pods are ready" + (f"; {why}" if why else "")
    draft.set_condition(ConditionType.PODS_READY, False, reason, text)


def possibly_running_pods(draft: StatusDraft, pods: list[PodRecord]) -> list[PodRecord]:
    """Return the pods that may still run.

    A deleted pod on a lost node stays in the API until the node returns or is removed, so waiting
    for it could block the job for ever. It cannot disturb the next attempt, which uses another
    rendezvous address.
    """
    return [pod for pod in pods if not (pod.deleting and draft.observed.is_lost(pod.node))]


def delete_stale_pods(draft: StatusDraft) -> bool:
    """Delete the pods of earlier attempts. Return True while any of them may still run.

    Pods of a later attempt are kept: the observed status is older than they are.
    """
    others = [pod for pod in draft.observed.pods if pod.attempt != draft.attempt]
    draft.delete_pods(pod for pod in others if pod.attempt < draft.attempt)
    for pod in others:
        if pod.deleting and draft.observed.seconds_until_lost(pod.node) != float("inf"):
            draft.reconcile_after(draft.observed.seconds_until_lost(pod.node))
    return bool(possibly_running_pods(draft, others))
