"""The estimated start and end of a job that is not running yet."""

from __future__ import annotations

from datetime import UTC, datetime

from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.planning.durations import work_left

MIN_CHANGE_SECONDS = 60.0
"""A shown time is rewritten only if it is wrong by more than this many seconds ..."""
MIN_RELATIVE_CHANGE = 0.1
"""... and by more than this share of the time until then."""
_MAX_HORIZON_SECONDS = 10 * 365 * 86400.0


def set_estimated_start(draft: StatusDraft, starts_at: float | None) -> None:
    """Set the estimated start of a waiting job (seconds since the epoch) and its ETA."""
    if starts_at is None:
        clear_estimates(draft)
        return
    shown = draft.status.get("estimatedStart")
    if shown is not None and not _changed_enough(draft, shown, starts_at):
        starts_at = parse_time(shown).timestamp()
    start = _format_time(draft, starts_at)
    draft.set_field("estimatedStart", start)
    if start is not None:
        set_eta(draft, starts_at)


def set_eta(draft: StatusDraft, starts_at: float) -> None:
    """Set the ETA of a job that starts at this time."""
    work = work_left(draft.job, draft.view)
    end = None if work is None else starts_at + work.value
    shown = draft.view.progress.get("eta")
    if end is not None and shown is not None and not _changed_enough(draft, shown, end):
        return
    _set_progress_eta(draft, None if end is None else _format_time(draft, end))


def clear_estimates(draft: StatusDraft) -> None:
    """Remove the estimated start and the ETA, because they are unknown."""
    draft.set_field("estimatedStart", None)
    _set_progress_eta(draft, None)


def _set_progress_eta(draft: StatusDraft, eta: str | None) -> None:
    progress = dict(draft.view.progress)
    if progress.get("eta") == eta:
        return
    if eta is None:
        del progress["eta"]
    else:
        # The kubectl columns also show step and totalSteps.
        progress = {"step": 0, "totalSteps": draft.job.total_steps} | progress | {"eta": eta}
    draft.set_field("progress", progress)


def _changed_enough(draft: StatusDraft, shown: str, moment: float) -> bool:
    """Return True if a time differs enough from the shown one to be written."""
    ahead = max(0.0, moment - draft.observed.now.timestamp())
    off = abs(parse_time(shown).timestamp() - moment)
    return off > max(MIN_CHANGE_SECONDS, MIN_RELATIVE_CHANGE * ahead)


def _format_time(draft: StatusDraft, moment: float) -> str | None:
    if moment - draft.observed.now.timestamp() > _MAX_HORIZON_SECONDS:
        return None
    return format_time(datetime.fromtimestamp(moment, UTC))
