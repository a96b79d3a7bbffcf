"""When a job that does not run yet is expected to start and to end, as far as anybody knows."""

from __future__ import annotations

from datetime import UTC, datetime

from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.planning.durations import work_left

MIN_CHANGE_SECONDS = 60.0
"""Seconds by which a shown moment has to be wrong before it is written anew ..."""
MIN_RELATIVE_CHANGE = 0.1
"""... and the share of the time until then."""
_MAX_HORIZON_SECONDS = 10 * 365 * 86400.0


def set_estimated_start(draft: StatusDraft, starts_at: float | None) -> None:
    """Show when a waiting job is expected to start, in seconds since the epoch, and to end."""
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
    """Show when a job that starts then is expected to end."""
    work = work_left(draft.job, draft.view)
    end = None if work is None else starts_at + work.value
    shown = (draft.status.get("progress") or {}).get("eta")
    if end is not None and shown is not None and not _changed_enough(draft, shown, end):
        return
    _set_progress_eta(draft, None if end is None else _format_time(draft, end))


def clear_estimates(draft: StatusDraft) -> None:
    """Show no expectation any more: nobody knows."""
    draft.set_field("estimatedStart", None)
    _set_progress_eta(draft, None)


def _set_progress_eta(draft: StatusDraft, eta: str | None) -> None:
    progress = dict(draft.status.get("progress") or {})
    if progress.get("eta") == eta:
        return
    if eta is None:
        del progress["eta"]
    else:
        # the columns want numbers beside it
        progress = {"step": 0, "totalSteps": draft.job.total_steps} | progress | {"eta": eta}
    draft.set_field("progress", progress)


def _changed_enough(draft: StatusDraft, shown: str, moment: float) -> bool:
    """Whether a moment is so far from the one that is shown that it is worth a write."""
    ahead = max(0.0, moment - draft.observed.now.timestamp())
    off = abs(parse_time(shown).timestamp() - moment)
    return off > max(MIN_CHANGE_SECONDS, MIN_RELATIVE_CHANGE * ahead)


def _format_time(draft: StatusDraft, moment: float) -> str | None:
    if moment - draft.observed.now.timestamp() > _MAX_HORIZON_SECONDS:
        return None
    return format_time(datetime.fromtimestamp(moment, UTC))
