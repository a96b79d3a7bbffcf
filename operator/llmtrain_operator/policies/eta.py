"""When a job that does not run yet is expected to start and to end, as far as anybody knows."""

from __future__ import annotations

from datetime import UTC, datetime

from llmtrain_operator.job_state.observation import from_time, to_time
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.planning.durations import work_left

SMALLEST_MOVE = 60.0
"""Seconds by which a shown moment has to be wrong before it is written anew ..."""
RELATIVE_MOVE = 0.1
"""... and the share of the time until then."""
_LONGEST = 10 * 365 * 86400.0


def set_estimated_start(draft: StatusDraft, starts_at: float | None) -> None:
    """Show when a waiting job is expected to start, in seconds since the epoch, and to end."""
    if starts_at is None:
        forget(draft)
        return
    shown = draft.status.get("estimatedStart")
    if shown is not None and not _moved(draft, shown, starts_at):
        starts_at = to_time(shown).timestamp()
    start = _text(draft, starts_at)
    draft.set_field("estimatedStart", start)
    if start is not None:
        set_eta(draft, starts_at)


def set_eta(draft: StatusDraft, starts_at: float) -> None:
    """Show when a job that starts then is expected to end."""
    work = work_left(draft.job, draft.status)
    end = None if work is None else starts_at + work.value
    shown = (draft.status.get("progress") or {}).get("eta")
    if end is not None and shown is not None and not _moved(draft, shown, end):
        return
    _put_eta(draft, None if end is None else _text(draft, end))


def forget(draft: StatusDraft) -> None:
    """Show no expectation any more: nobody knows."""
    draft.set_field("estimatedStart", None)
    _put_eta(draft, None)


def _put_eta(draft: StatusDraft, eta: str | None) -> None:
    progress = dict(draft.status.get("progress") or {})
    if progress.get("eta") == eta:
        return
    if eta is None:
        del progress["eta"]
    else:
        # the columns want numbers beside it
        progress = {"step": 0, "totalSteps": draft.job.total_steps} | progress | {"eta": eta}
    draft.set_field("progress", progress)


def _moved(draft: StatusDraft, shown: str, moment: float) -> bool:
    """Whether a moment is so far from the one that is shown that it is worth a write."""
    ahead = max(0.0, moment - draft.observed.now.timestamp())
    off = abs(to_time(shown).timestamp() - moment)
    return off > max(SMALLEST_MOVE, RELATIVE_MOVE * ahead)


def _text(draft: StatusDraft, moment: float) -> str | None:
    if moment - draft.observed.now.timestamp() > _LONGEST:
        return None
    return from_time(datetime.fromtimestamp(moment, UTC))
