"""Policy: an invalid job gets a condition that names the field and the remedy, and no pods."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.memory_fit import reject_if_too_large


def accept_or_reject(draft: StatusDraft) -> bool:
    """Set the condition Accepted. Return True if the job is rejected.

    A running job whose spec was changed to an invalid one keeps its pods, which were created from
    the old spec. The other policies apply to it again after the spec is corrected.
    """
    checked = draft.observed.checked
    if isinstance(checked, Job):
        return _accept_or_reject_valid(draft, checked)
    first, others = checked[0], len(checked) - 1
    message = str(first) + (f" (and {others} more)" if others else "")
    draft.set_condition(ConditionType.ACCEPTED, False, first.reason, message)
    return True


def _accept_or_reject_valid(draft: StatusDraft, job: Job) -> bool:
    """Accept a valid job unless it does not fit in GPU memory."""
    draft.set_field("layout", str(job.layout))
    if reject_if_too_large(draft):
        return True
    draft.set_condition(ConditionType.ACCEPTED, True, Reason.VALID, "the spec is valid")
    return False
