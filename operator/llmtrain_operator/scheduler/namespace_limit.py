"""A limit of active jobs per namespace, so that one tenant cannot fill the queue. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from llmtrain_core.api.conditions import Reason
from llmtrain_core.queueing import PendingJob, Unschedulable


def limit_active_jobs(
    queue: Mapping[str, PendingJob | Unschedulable], placed: Mapping[str, int], limit: int
) -> dict[str, PendingJob | Unschedulable]:
    """Return the queue with at most `limit` active jobs per namespace; the others must wait.

    `placed` counts the jobs with a placement by namespace. Of the pending jobs those of the highest
    priority are active, then the oldest ones. So a job that was preempted stays active.
    """
    found = dict(queue)
    active = Counter(placed)
    pending = [job for job in queue.values() if isinstance(job, PendingJob)]
    for job in sorted(pending, key=lambda job: (-job.priority, job.created_at, job.name)):
        active[job.namespace] += 1
        if active[job.namespace] > limit:
            found[job.uid] = _waits(limit)
    return found


def _waits(limit: int) -> Unschedulable:
    """Return the same message for all: one with a position would be rewritten at every change."""
    message = (
        f"its namespace has {limit} active jobs, as many as the operator permits; the job is queued"
        " when others have finished, were suspended or were deleted"
    )
    return Unschedulable(Reason.TOO_MANY_ACTIVE_JOBS, message)
