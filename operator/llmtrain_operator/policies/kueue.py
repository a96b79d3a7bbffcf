"""Policy: a queue outside of llmtrain (Kueue) lets a gang start, and may take its quota back.

Gated pods hold their nodes: the placement was made, and only the quota is missing. Nobody can say
how long that takes, so the time to start counts from the moment the gates are gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text, get_condition
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.pods import current_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.failure import requeue


def requeue_if_evicted(draft: StatusDraft) -> bool:
    """Queue a gang again that lost its quota: this is no failure and no restart."""
    taken = [pod for pod in current_pods(draft) if pod.evicted_by_queue]
    if draft.placement is None or not taken:
        return False
    text = clean_text(f"the queue took the quota back: {taken[0].disruption}; queued again")
    requeue(draft, Reason.EVICTED_BY_QUEUE, text)
    return True


def gated_pods(pods: Sequence[PodRecord]) -> list[PodRecord]:
    """Return the pods that nobody may schedule yet."""
    return [pod for pod in pods if pod.gated and not pod.deleting]


def is_admitted(draft: StatusDraft, pods: Sequence[PodRecord]) -> bool:
    """Whether the gang may start; the time for it begins when the last gate falls."""
    if gated_pods(pods):
        return False
    before = get_condition(draft.status.get("conditions", ()), ConditionType.PODS_READY)
    if before is not None and before["reason"] == Reason.WAITING_FOR_QUOTA:
        draft.set_field("attemptStartTime", draft.now)
    return True
