"""Which of a job's pods belong to the current gang, and what becomes of the others."""

from __future__ import annotations

from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.status_draft import StatusDraft


def current_pods(draft: StatusDraft) -> list[PodRecord]:
    """Pods of the current attempt, in order of rank block."""
    pods = [pod for pod in draft.observed.pods if pod.attempt == draft.attempt]
    return sorted(pods, key=lambda pod: pod.index)


def possibly_running_pods(draft: StatusDraft, pods: list[PodRecord]) -> list[PodRecord]:
    """Pods that may still run.

    A deleted pod on a lost node stays in the API until its node is back or removed; waiting for it
    would stop the job for good. It cannot disturb a newer gang: that one meets elsewhere.
    """
    return [pod for pod in pods if not (pod.deleting and draft.observed.is_lost(pod.node))]


def delete_stale_pods(draft: StatusDraft) -> bool:
    """Delete pods of earlier attempts; True while any may still run.

    A pod of a later attempt means that the status in hand is older than the pods: do nothing.
    """
    others = [pod for pod in draft.observed.pods if pod.attempt != draft.attempt]
    draft.delete_pods(pod for pod in others if pod.attempt < draft.attempt)
    for pod in others:
        if pod.deleting and draft.observed.seconds_until_lost(pod.node) != float("inf"):
            draft.reconcile_after(draft.observed.seconds_until_lost(pod.node))
    return bool(possibly_running_pods(draft, others))
