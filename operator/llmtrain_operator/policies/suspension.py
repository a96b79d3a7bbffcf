"""Policy: a suspended job releases its nodes and starts a new attempt when it is resumed."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_operator.job_state.pods import delete_stale_pods, is_overdue, terminating_text
from llmtrain_operator.job_state.release import start_next_attempt
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.eta import clear_estimates


def suspend_or_resume(draft: StatusDraft) -> bool:
    """Suspend or resume the job.

    The placement is removed at once, although pods that still run count as usage of their nodes.
    The attempt ends with it, so that the pods of a resumed job get new names. `restarts` does not
    count a suspension.
    """
    if not draft.view.is_suspended:
        if draft.is_true(ConditionType.SUSPENDED):
            draft.set_condition(
                ConditionType.SUSPENDED, False, Reason.RESUMED, "the job is resumed"
            )
        return False
    why = "spec.suspend is set"
    if draft.view.stored_placement is not None:
        start_next_attempt(draft)
    clear_estimates(draft)
    draft.set_condition(ConditionType.PLACED, False, Reason.SUSPENDED, why)
    for kind in (ConditionType.PODS_READY, ConditionType.RUNNING, ConditionType.RESTARTING):
        draft.clear_condition_if_present(kind, Reason.SUSPENDED, why)
    stopping = delete_stale_pods(draft)
    message = "suspended: no pods, no nodes held"
    if stopping:
        overdue = [pod for pod in stopping if is_overdue(draft, pod)]
        message = "suspending: pods are stopping"
        message += f"; {terminating_text(draft, overdue)}" if overdue else ""
    draft.set_condition(
        ConditionType.SUSPENDED, not stopping, Reason.SUSPENDED, clean_text(message)
    )
    return True
