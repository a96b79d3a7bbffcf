"""How long a job will hold its nodes, from what its status says. Pure; for ETA and for the queue.

The time of a step is the plan's, corrected by what was measured of it. Start-up, saves and
evaluations are not in it: it is an expectation, which a job may outlast. Only a deadline is a
bound, because the operator enforces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmtrain_core.api.conditions import ConditionType, is_true
from llmtrain_core.validation.check import Job
from llmtrain_operator.job_state.observation import to_time

Status = Mapping[str, Any]
Basis = Literal["deadline", "measured", "planned"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of seconds, or a moment in seconds since the epoch, and what it rests on."""

    value: float
    basis: Basis
    """`deadline`: a bound. `measured`: this job's own steps. `planned`: the model's."""

    @property
    def certain(self) -> bool:
        """Whether the job cannot outlast it."""
        return self.basis == "deadline"


def step_seconds(status: Status) -> Estimate | None:
    """Return the time of one step; None where it is neither planned nor measured.

    A plan that was made anew, for other nodes, keeps the correction of the old one.
    """
    plan = status.get("plan") or {}
    planned, measured = (plan.get("step") or {}).get("seconds"), plan.get("measured") or {}
    if planned and measured.get("errorRatio"):
        return Estimate(planned * measured["errorRatio"], "measured")
    if measured.get("stepSeconds"):
        return Estimate(float(measured["stepSeconds"]), "measured")
    return Estimate(float(planned), "planned") if planned else None


def work_left(job: Job, status: Status) -> Estimate | None:
    """Return the seconds of training from the newest checkpoint on, as if it began now."""
    step = step_seconds(status)
    if step is None or not job.total_steps:
        return None
    done = int((status.get("progress") or {}).get("lastCheckpointStep") or 0)
    return Estimate(max(0, job.total_steps - done) * step.value, step.basis)


def duration(job: Job, status: Status, now: float) -> Estimate | None:
    """Return for how many seconds a job that waits will hold its nodes; None: nobody knows.

    The earlier of its deadline and the end of its work. `now` is in seconds since the epoch.
    """
    work, limit = work_left(job, status), deadline(job, status)
    if limit is None:
        policy = job.spec.run_policy
        if policy is not None and policy.active_deadline_seconds is not None:
            # its clock starts with the first placement
            limit = now + policy.active_deadline_seconds
    if limit is None:
        return work
    bound = Estimate(max(0.0, limit - now), "deadline")
    return bound if work is None or bound.value < work.value else work


def ends_at(job: Job, status: Status, now: float) -> Estimate | None:
    """Return when a job that holds nodes will be done, in seconds since the epoch.

    The earlier of its deadline and its ETA (measured while it runs, planned until then). An ETA
    that has passed was wrong: then only the deadline is left, or nothing.
    """
    expected, limit = _expected_end(job, status), deadline(job, status)
    if expected is not None and expected.value <= now:
        expected = None
    if limit is None:
        return expected
    bound = Estimate(max(now, limit), "deadline")
    return bound if expected is None or bound.value < expected.value else expected


def deadline(job: Job, status: Status) -> float | None:
    """Return when activeDeadlineSeconds ends the job; None before it was placed or without one."""
    policy, start = job.spec.run_policy, status.get("startTime")
    if policy is None or policy.active_deadline_seconds is None or not start:
        return None
    return to_time(start).timestamp() + policy.active_deadline_seconds


def _expected_end(job: Job, status: Status) -> Estimate | None:
    eta = (status.get("progress") or {}).get("eta")
    if eta and is_true(status.get("conditions") or (), ConditionType.RUNNING):
        return Estimate(to_time(eta).timestamp(), "measured")
    work, start = work_left(job, status), status.get("attemptStartTime")
    if work is None or not start:
        return None
    return Estimate(to_time(start).timestamp() + work.value, work.basis)
