"""Policy: a job that is not valid gets a condition that says where and how to mend it, no pods."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.pods import delete_stale_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.eta import clear_estimates
from llmtrain_operator.policies.planning import annotation_error, memory_error


def accept_or_reject(draft: StatusDraft) -> bool:
    """Accept the job, or stop here.

    A running job whose spec was edited into something invalid keeps its pods: they run by the
    spec they were made from. It goes on being looked after once the spec is mended.
    """
    checked = draft.observed.checked
    if isinstance(checked, Job):
        return _accepted(draft, checked)
    first, others = checked[0], len(checked) - 1
    message = str(first) + (f" (and {others} more)" if others else "")
    draft.set_condition(ConditionType.ACCEPTED, False, first.reason, message)
    return True


def _accepted(draft: StatusDraft, job: Job) -> bool:
    """Accept a valid job, unless no GPU could hold it; that is looked at anew every time."""
    draft.set_field("layout", str(job.layout))
    slip, too_large = annotation_error(draft), memory_error(draft)
    if slip is not None:
        draft.set_condition(ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, slip)
        return True
    if too_large is not None:
        draft.set_condition(ConditionType.ACCEPTED, False, Reason.WILL_NOT_FIT, too_large)
        clear_estimates(draft)
        delete_stale_pods(draft)
        return True
    draft.set_condition(ConditionType.ACCEPTED, True, Reason.VALID, "the spec is valid")
    return False
