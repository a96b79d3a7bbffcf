"""Estimate how long a job holds its nodes, from its status. Pure. For the ETA and the queue.

The time of a step is the plan's, corrected by measurements. It excludes start-up, checkpoints and
evaluations, so a job may take longer than the estimate. Only a deadline is a bound, because the
operator enforces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.job import JobView, parse_time

Basis = Literal["deadline", "measured", "planned"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A duration in seconds, or a time in seconds since the epoch, and its basis."""

    value: float
    basis: Basis
    """`deadline`: a bound. `measured`: the steps of this job. `planned`: the plan."""

    @property
    def certain(self) -> bool:
        """Whether the job cannot take longer."""
        return self.basis == "deadline"


def step_seconds(view: JobView) -> Estimate | None:
    """Return the time of one step, or None if it is neither planned nor measured.

    A new plan for other nodes keeps the correction of the old one.
    """
    planned, measured = (view.plan.get("step") or {}).get("seconds"), view.measured
    if planned and measured.get("errorRatio"):
        return Estimate(planned * measured["errorRatio"], "measured")
    if measured.get("stepSeconds"):
        return Estimate(float(measured["stepSeconds"]), "measured")
    return Estimate(float(planned), "planned") if planned else None


def work_left(job: Job, view: JobView) -> Estimate | None:
    """Return the seconds of training left after the newest checkpoint."""
    step = step_seconds(view)
    if step is None or not job.total_steps:
        return None
    done = view.last_checkpoint or 0
    return Estimate(max(0, job.total_steps - done) * step.value, step.basis)


def duration(job: Job, view: JobView, now: float) -> Estimate | None:
    """Return the seconds that a waiting job will hold its nodes, or None if unknown.

    The earlier of its deadline and the end of its work counts. `now` is in seconds since the epoch.
    """
    work, limit = work_left(job, view), deadline(job, view)
    if limit is None:
        policy = job.spec.run_policy
        if policy is not None and policy.active_deadline_seconds is not None:
            # the deadline counts from the first placement
            limit = now + policy.active_deadline_seconds
    if limit is None:
        return work
    bound = Estimate(max(0.0, limit - now), "deadline")
    return bound if work is None or bound.value < work.value else work


def ends_at(job: Job, view: JobView, now: float) -> Estimate | None:
    """Return when a job that holds nodes will end, in seconds since the epoch.

    The earlier of its deadline and its ETA counts. The ETA is measured while the job runs, and
    planned before. An ETA in the past is ignored.
    """
    expected, limit = _expected_end(job, view), deadline(job, view)
    if expected is not None and expected.value <= now:
        expected = None
    if limit is None:
        return expected
    bound = Estimate(max(now, limit), "deadline")
    return bound if expected is None or bound.value < expected.value else expected


def deadline(job: Job, view: JobView) -> float | None:
    """Return when a deadline ends the job or its placement; None if there is none yet.

    A deadline that was raised since the job got its nodes does not hold for these nodes.
    """
    policy, start = job.spec.run_policy, view.start_time
    ends = [parse_time(view.placed_deadline).timestamp()] if view.placed_deadline else []
    if policy is not None and policy.active_deadline_seconds is not None and start:
        ends.append(parse_time(start).timestamp() + policy.active_deadline_seconds)
    return min(ends, default=None)


def _expected_end(job: Job, view: JobView) -> Estimate | None:
    eta = view.progress.get("eta")
    if eta and view.is_true(ConditionType.RUNNING):
        return Estimate(parse_time(eta).timestamp(), "measured")
    work, start = work_left(job, view), view.attempt_start_time
    if work is None or not start:
        return None
    return Estimate(parse_time(start).timestamp() + work.value, work.basis)
