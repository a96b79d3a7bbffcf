"""The job queue: which jobs start, which wait and why, and which are preempted. Pure."""

from llmtrain_core.queueing.cycle import decide
from llmtrain_core.queueing.types import (
    Allocation,
    Assignment,
    ClusterState,
    PendingJob,
    QueueDecision,
    RunningJob,
    Unschedulable,
)

__all__ = [
    "Allocation",
    "Assignment",
    "ClusterState",
    "PendingJob",
    "QueueDecision",
    "RunningJob",
    "Unschedulable",
    "decide",
]
