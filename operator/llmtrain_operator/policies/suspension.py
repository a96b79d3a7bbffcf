"""Policy: a suspended job gives its nodes back and starts a new attempt when it is resumed."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_operator.job_state.pods import delete_stale_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.eta import clear_estimates


def suspend_or_resume(draft: StatusDraft) -> bool:
    """Suspend, or resume.

    The placement goes at once (the pods that still run go on counting against their nodes), and
    with it the attempt: whenever the job is resumed, its new gang has new names. This is no
    restart: `restarts` does not count it.
    """
    if not draft.observed.spec.get("suspend"):
        if draft.is_true(ConditionType.SUSPENDED):
            draft.set_condition(
                ConditionType.SUSPENDED, False, Reason.RESUMED, "the job is resumed"
            )
        return False
    why = "spec.suspend is set"
    if draft.status.get("placement") is not None:
        draft.set_field("attempt", draft.attempt + 1)
        for key in ("placement", "placementSummary", "attemptStartTime"):
            draft.set_field(key, None)
    clear_estimates(draft)
    draft.set_condition(ConditionType.PLACED, False, Reason.SUSPENDED, why)
    for kind in (ConditionType.PODS_READY, ConditionType.RUNNING, ConditionType.RESTARTING):
        draft.clear_condition_if_present(kind, Reason.SUSPENDED, why)
    if delete_stale_pods(draft):
        draft.set_condition(
            ConditionType.SUSPENDED, False, Reason.SUSPENDED, "suspending: pods have still to end"
        )
    else:
        draft.set_condition(
            ConditionType.SUSPENDED, True, Reason.SUSPENDED, "suspended: no pods, no nodes held"
        )
    return True
