"""The part of a job's progress that decisions about other jobs may use. Pure.

Progress is what a pod says, and a pod can say anything. The status shows it as it is. The queue
uses it only as far as the plan and the clock of the operator confirm it: no step much faster than
planned, no step longer than the time that has passed, and an end that follows from these. What is
not confirmed is left out, as if the job had not reported it. Without a planned time of a step
nothing can be confirmed.

A job can be slower than its plan, so a report that says so counts once as much time has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.job import JobView, parse_time

MAX_SPEEDUP = 1.25
"""A step takes at least its planned time divided by this, and all steps the time until the end."""
MAX_SLOWDOWN = 2.0
"""The time until the end is at most that by the confirmed time of a step, multiplied by this."""
SLACK_SECONDS = 60.0
"""Accepted difference of two times: progress is polled, and timestamps have whole seconds."""
_STEPS = ("step", "lastCheckpointStep")


def confirmed(job: Job, view: JobView, now: float) -> JobView:
    """Return the view of a job with only the progress and measurements that are confirmed."""
    if not view.progress and not view.measured:
        return view
    planned = (view.plan.get("step") or {}).get("seconds")
    if not planned:
        return _with(view, {}, {})
    ratio = float(view.measured.get("errorRatio") or 0.0)
    measured = view.measured if ratio * MAX_SPEEDUP >= 1 else {}
    progress = dict(view.progress)
    eta = progress.pop("eta", None)
    if not _steps_are_possible(job, view, planned, now):
        progress = {key: value for key, value in progress.items() if key not in _STEPS}
    seconds = planned * measured.get("errorRatio", 1.0)
    if eta is not None and _eta_follows(job, view, progress, eta, seconds, now):
        progress["eta"] = eta
    return _with(view, progress, measured)


def fits_in_attempt(view: JobView, steps: int, seconds: float, now: float) -> bool:
    """Return True if steps of this length can have happened since the attempt started."""
    passed = now - parse_time(view.attempt_start_time).timestamp() + SLACK_SECONDS
    return steps * seconds <= passed


def _with(view: JobView, progress: Mapping[str, Any], measured: Mapping[str, Any]) -> JobView:
    plan = {**view.plan, "measured": measured} if view.measured else view.plan
    return view.with_status({**view.status, "progress": progress, "plan": plan})


def _steps_are_possible(job: Job, view: JobView, planned: float, now: float) -> bool:
    """Return True if the reported steps fit into the time since the first placement."""
    if not view.start_time:
        return False
    passed = now - parse_time(view.start_time).timestamp() + SLACK_SECONDS
    steps = max(int(view.progress.get(key) or 0) for key in _STEPS)
    possible = not job.knows_total_steps or steps <= (job.total_steps or 0)
    return possible and steps * planned <= MAX_SPEEDUP * passed


def _eta_follows(
    job: Job, view: JobView, progress: Mapping[str, Any], eta: str, seconds: float, now: float
) -> bool:
    """Return True if the reported end is near that by the confirmed steps and their time."""
    if not view.is_true(ConditionType.RUNNING) or "step" not in progress:
        return False
    if not job.knows_total_steps:
        return False
    expected = max(0, (job.total_steps or 0) - int(progress["step"])) * seconds
    left = parse_time(eta).timestamp() - now
    least, most = expected / MAX_SPEEDUP, expected * MAX_SLOWDOWN
    return least - SLACK_SECONDS <= left <= most + SLACK_SECONDS
