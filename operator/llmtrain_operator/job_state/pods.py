"""The pods of the current attempt, and the deletion of pods of earlier attempts."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.status_draft import StatusDraft


def current_pods(draft: StatusDraft) -> list[PodRecord]:
    """Return the pods of the current attempt, in order of rank block."""
    pods = [pod for pod in draft.observed.pods if pod.attempt == draft.attempt]
    return sorted(pods, key=lambda pod: pod.index)


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
