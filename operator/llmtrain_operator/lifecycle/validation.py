"""Policy: a job that is not valid gets a condition that says where and how to mend it, no pods."""

from __future__ import annotations

from llmtrain_core.api.check import Job
from llmtrain_core.api.conditions import Reason
from llmtrain_operator.lifecycle.draft import C, Draft


def validation(draft: Draft) -> bool:
    """Accept the job, or stop here.

    A running job whose spec was edited into something invalid keeps its pods: they run by the
    spec they were made from. It goes on being looked after once the spec is mended.
    """
    checked = draft.seen.checked
    if isinstance(checked, Job):
        draft.condition(C.ACCEPTED, True, Reason.VALID, "the spec is valid")
        draft.put("layout", str(checked.layout))
        return False
    first, others = checked[0], len(checked) - 1
    message = str(first) + (f" (and {others} more)" if others else "")
    draft.condition(C.ACCEPTED, False, first.reason, message)
    return True
