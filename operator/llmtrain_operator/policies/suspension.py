"""Policy: a suspended job gives its nodes back and starts a new attempt when it is resumed."""

from __future__ import annotations

from llmtrain_core.api.conditions import Reason
from llmtrain_operator.job_state.pods import clear_stale
from llmtrain_operator.job_state.status_draft import C, Draft
from llmtrain_operator.policies.eta import forget


def suspension(draft: Draft) -> bool:
    """Suspend, or resume.

    The placement goes at once (the pods that still run go on counting against their nodes), and
    with it the attempt: whenever the job is resumed, its new gang has new names. This is no
    restart: `restarts` does not count it.
    """
    if not draft.seen.spec.get("suspend"):
        if draft.holds(C.SUSPENDED):
            draft.condition(C.SUSPENDED, False, Reason.RESUMED, "the job is resumed")
        return False
    why = "spec.suspend is set"
    if draft.status.get("placement") is not None:
        draft.put("attempt", draft.attempt + 1)
        for key in ("placement", "placementSummary", "attemptStartTime"):
            draft.put(key, None)
    forget(draft)
    draft.condition(C.PLACED, False, Reason.SUSPENDED, why)
    for kind in (C.PODS_READY, C.RUNNING, C.RESTARTING):
        draft.unless_absent(kind, Reason.SUSPENDED, why)
    if clear_stale(draft):
        draft.condition(C.SUSPENDED, False, Reason.SUSPENDED, "suspending: pods have still to end")
    else:
        draft.condition(C.SUSPENDED, True, Reason.SUSPENDED, "suspended: no pods, no nodes held")
    return True
