"""Policy: a gang that has to stop for one of higher priority gives its nodes back and queues again.

The decision is the scheduler's, which names the attempt that it is about; it becomes real with the
write of this status. From then on the pods of the old attempt are strays, whatever happens to this
process: the next turn deletes them, the trainer saves what its grace period allows, and the next
attempt goes on from the newest checkpoint. This is no restart: `restarts` does not count it.
"""

from __future__ import annotations

from llmtrain_core.api.conditions import Reason
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.failure import requeue
from llmtrain_operator.scheduler.decisions import Eviction


def preempt(draft: StatusDraft) -> bool:
    """Stop, if the scheduler says so about this very attempt."""
    verdict = draft.observed.verdict
    if not isinstance(verdict, Eviction) or draft.placement is None:
        return False
    if verdict.attempt != draft.attempt:
        return False
    requeue(draft, Reason.PREEMPTED, verdict.message)
    draft.set_field("preemptions", int(draft.status.get("preemptions") or 0) + 1)
    return True
