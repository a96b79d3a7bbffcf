"""Policy: a gang that is preempted by another job releases its nodes and queues again.

The scheduler decides, and names the attempt to preempt. The decision takes effect when this status
is written. After that the pods of the old attempt are stale, whatever happens to this process: the
next reconcile deletes them, the trainer saves a checkpoint if its grace period allows it, and the
next attempt continues from the newest checkpoint. `restarts` does not count a preemption.

A gang whose reservation has expired is displaced in the same way. That is no preemption: it did not
hold its nodes any more.
"""

from __future__ import annotations

from llmtrain_core.api.conditions import Reason
from llmtrain_operator.job_state.release import requeue, unplace_unstarted
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.scheduler.decisions import Preemption


def preempt(draft: StatusDraft) -> bool:
    """Stop the gang if the scheduler preempts the current attempt."""
    decision = draft.observed.decision
    if not isinstance(decision, Preemption) or draft.placement is None:
        return False
    if decision.attempt != draft.attempt:
        return False
    if decision.expired:
        unplace_unstarted(draft, Reason.RESERVATION_EXPIRED, decision.message)
        return True
    requeue(draft, Reason.PREEMPTED, decision.message)
    draft.set_field("preemptions", int(draft.status.get("preemptions") or 0) + 1)
    return True
