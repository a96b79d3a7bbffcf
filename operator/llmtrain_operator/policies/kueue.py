"""Policy: Kueue admits a gang by removing the scheduling gates of its pods, and may evict it.

Gated pods hold their nodes: the job is placed and only waits for quota. That can take any time, so
the startup timeout counts from the moment when the gates are removed.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.release import requeue
from llmtrain_operator.job_state.status_draft import StatusDraft


def requeue_if_evicted(draft: StatusDraft) -> bool:
    """Queue an evicted gang again. This is neither a failure nor a restart."""
    evicted = [pod for pod in current_pods(draft) if pod.evicted_by_queue]
    if draft.placement is None or not evicted:
        return False
    text = f"Kueue evicted the job: {evicted[0].disruption}; the job is queued again"
    requeue(draft, Reason.EVICTED_BY_QUEUE, clean_text(text))
    return True


def gated_pods(pods: Sequence[PodRecord]) -> list[PodRecord]:
    """Return the pods that have a scheduling gate."""
    return [pod for pod in pods if pod.gated and not pod.deleting]


def is_admitted(draft: StatusDraft, pods: Sequence[PodRecord]) -> bool:
    """Return True if no pod is gated. Restart the startup timeout when the last gate is removed."""
    if gated_pods(pods):
        return False
    pods_ready = draft.view.condition(ConditionType.PODS_READY)
    if pods_ready is not None and pods_ready["reason"] == Reason.WAITING_FOR_QUOTA:
        draft.set_field("attemptStartTime", draft.now)
    return True
