"""Policy: a job that does not fit in the memory of any GPU that it could use is rejected."""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_operator.job_state.pods import delete_stale_pods
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.eta import clear_estimates


def reject_if_too_large(draft: StatusDraft) -> bool:
    """Set Accepted=False with WillNotFit if no GPU has enough memory. Return True if it was set.

    It is checked in every reconcile, because nodes with larger GPUs may be added.
    """
    invalid, too_large = _annotation_error(draft), _memory_error(draft)
    if invalid is not None:
        draft.set_condition(ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, invalid)
        return True
    if too_large is not None:
        draft.set_condition(ConditionType.ACCEPTED, False, Reason.WILL_NOT_FIT, too_large)
        clear_estimates(draft)
        delete_stale_pods(draft)
        return True
    return False


def _memory_error(draft: StatusDraft) -> str | None:
    """Return why the job fits on no GPU that it could use, or None.

    A job that is placed keeps its placement, and a suspended job is not checked before it resumes.
    """
    found = draft.observed.assessment
    if found is None or found.too_large is None or draft.placement is not None:
        return None
    if draft.view.is_suspended or draft.view.allows_over_memory:
        return None
    return found.too_large


def _annotation_error(draft: StatusDraft) -> str | None:
    """Return what is wrong with the annotation that overrides the memory check, or None.

    The annotation has no effect on a job that is placed, so an error there is ignored.
    """
    value = draft.view.over_memory_annotation
    if value in (None, "true", "false") or draft.placement is not None:
        return None
    return (
        f'metadata.annotations[{ALLOW_OVER_MEMORY}]: {value[:64]!r} is neither "true" nor "false";'
        " set one of them or remove the annotation"
    )
