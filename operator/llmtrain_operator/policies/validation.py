"""Policy: an invalid job gets a condition that names the field and the remedy, and no pods."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.pods import current_pods, delete_stale_pods
from llmtrain_operator.job_state.release import requeue
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.memory_fit import reject_if_too_large


def accept_or_reject(draft: StatusDraft) -> bool:
    """Set the condition Accepted. `stop_if_rejected` ends the reconcile of a rejected job."""
    checked = draft.observed.checked
    if isinstance(checked, Job):
        _accept_or_reject_valid(draft, checked)
        return False
    first, others = checked[0], len(checked) - 1
    message = str(first) + (f" (and {others} more)" if others else "")
    draft.set_condition(ConditionType.ACCEPTED, False, first.reason, message)
    return False


def _accept_or_reject_valid(draft: StatusDraft, job: Job) -> None:
    """Accept a valid job unless it does not fit in GPU memory."""
    draft.set_field("layout", str(job.layout))
    if not reject_if_too_large(draft):
        warning = _checkpoint_warning(job)
        draft.set_condition(ConditionType.ACCEPTED, True, Reason.VALID, "the spec is valid")
        _set_resumable(draft, warning)


def _checkpoint_warning(job: Job) -> str:
    """Return what a restart costs a job without checkpoints; empty with them.

    A third-party trainer may save checkpoints that the spec does not have. Trials of variables go
    on after those that are done.
    """
    spec = job.spec
    is_tuning = spec.network is not None and spec.network.tuning is not None
    if spec.checkpoint is not None or spec.workers.command is not None or is_tuning:
        return ""
    return "without spec.checkpoint a restart would begin again at step 0"


def _set_resumable(draft: StatusDraft, warning: str) -> None:
    """Warn that the job cannot resume."""
    if warning:
        draft.set_condition(ConditionType.RESUMABLE, False, Reason.NO_CHECKPOINT, warning)
    elif draft.view.condition(ConditionType.RESUMABLE) is not None:
        text = "the job saves checkpoints"
        draft.set_condition(ConditionType.RESUMABLE, True, Reason.CHECKPOINT_SET, text)


def stop_if_rejected(draft: StatusDraft) -> bool:
    """Return True if the job is rejected: no further policy applies.

    A running gang whose spec was changed to an invalid one keeps its pods, which were created from
    the old spec, as long as all of them run. It cannot restart, so it releases its nodes after the
    first failure. A rejected job has no right that others do not have: its deadline, suspension and
    preemption are handled before.
    """
    if draft.is_true(ConditionType.ACCEPTED):
        return False
    if draft.placement is not None and not _gang_is_complete(draft):
        message = "a pod of the gang has ended, and a job with an invalid spec cannot restart"
        requeue(draft, Reason.INVALID_SPEC, message)
    delete_stale_pods(draft)
    return True


def _gang_is_complete(draft: StatusDraft) -> bool:
    alive = {
        pod.index
        for pod in current_pods(draft)
        if pod.phase != "Failed" and not pod.deleting and not draft.observed.is_lost(pod.node)
    }
    return alive >= set(range(len(draft.placed_nodes)))
