"""The last failures of a job, in its status."""

from __future__ import annotations

from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import MAX_FAILURES, REASON_LENGTH
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_operator.job_state.status_draft import StatusDraft


def append_failure(draft: StatusDraft, failure: FailureInfo) -> None:
    """Add a failure of the current attempt to the status."""
    entry: dict[str, Any] = {
        "time": draft.now,
        "attempt": draft.attempt,
        "reason": clean_text(failure.reason, REASON_LENGTH),
        "message": clean_text(failure.message),
        "evidence": failure.evidence.value,
    }
    if failure.node:
        entry["node"] = failure.node
    if failure.exit_code is not None:
        entry["exitCode"] = failure.exit_code
    draft.set_field("failures", [*draft.view.failures, entry][-MAX_FAILURES:])
