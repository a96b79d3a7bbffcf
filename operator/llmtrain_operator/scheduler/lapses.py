"""Jobs that did not take the nodes that they were assigned in time. Pure.

The status of a job may not be writable: a webhook denies it, or a reconcile hangs. Its nodes would
be reserved for ever. So an assignment lapses, and the job goes behind all others. Each time it
waits longer before it takes part again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmtrain_core.api.conditions import Reason
from llmtrain_core.queueing import PendingJob, Unschedulable

ASSIGNMENT_SECONDS = 30.0
"""An assignment that no status write takes within this time lapses."""
MAX_DELAY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Lapses:
    """How often the assignments of a job have lapsed since it was last placed."""

    count: int = 0
    until: float = 0.0
    """When the job takes part in the queue again; monotonic time."""

    def next(self, now: float) -> Lapses:
        """Return this with one more lapse, which happens now."""
        return Lapses(self.count + 1, now + _delay(self.count))

    def apply_to(self, job: PendingJob | Unschedulable, now: float) -> PendingJob | Unschedulable:
        """Return the job as it takes part in the queue."""
        if not self.count or isinstance(job, Unschedulable):
            return job
        if now < self.until:
            return Unschedulable(Reason.QUEUED, _message(self.count))
        if now >= self.until + _delay(self.count - 1):
            return job  # as long again behind all others: a fault that is over starves no job
        return replace(job, deferred=True)


NO_LAPSE = Lapses()


def _delay(lapses: int) -> float:
    return min(MAX_DELAY_SECONDS, ASSIGNMENT_SECONDS * 2.0 ** min(lapses, 10))


def _message(count: int) -> str:
    times = "once" if count == 1 else f"{count} times"
    return (
        f"the job was assigned nodes {times}, but its status could not be written within"
        f" {ASSIGNMENT_SECONDS:.0f} s; it queues again after a delay, behind all other jobs"
    )
