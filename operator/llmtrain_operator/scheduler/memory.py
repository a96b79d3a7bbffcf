"""What the scheduler remembers of one job. It is in memory only."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.queueing import Assignment, PendingJob, Unschedulable
from llmtrain_operator.scheduler.decisions import JobDecision, Preemption, RelocationHint
from llmtrain_operator.scheduler.lapses import NO_LAPSE, Lapses


@dataclass(slots=True)
class JobState:
    """What the scheduler remembers of one job."""

    assignment: Assignment | None = None
    """Nodes that are reserved for the job until its status shows them."""
    pending: PendingJob | None = None
    """The job as it was when a cycle assigned nodes to it; None for a relocation."""
    assigned_at: float = 0.0
    """When the assignment was made; monotonic time."""
    lapses: Lapses = NO_LAPSE
    reserved: bool = False
    """Whether the job's status is being written with the assignment: it cannot be withdrawn."""
    relocates_until: float = 0.0
    """Until then a running job may accept the assignment; monotonic time."""
    claim: tuple[frozenset[str], int] | None = None
    """Spare nodes that replace failed ones in the attempt after this one."""
    preemption: Preemption | None = None
    nominated: bool = False
    """Whether others were preempted for the job."""
    unschedulable: Unschedulable | None = None
    message_set_at: float = 0.0
    """When `unschedulable` was set; monotonic time."""
    hint: RelocationHint | None = None
    relocation_checked_at: float = 0.0
    """When a better placement was last searched for; monotonic time."""

    @property
    def decision(self) -> JobDecision | None:
        """The newest decision about the job."""
        return self.assignment or self.preemption or self.unschedulable or self.hint

    def clear_unschedulable(self) -> None:
        """Forget why the job waits."""
        self.unschedulable, self.message_set_at = None, 0.0
