"""Decisions of the scheduler about one job. `Assignment` and `Unschedulable` are the queue's."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.queueing import Assignment, Unschedulable
from llmtrain_operator.cache.job import JobView

CREATE_ERROR_REASONS = frozenset({Reason.QUOTA_EXCEEDED, Reason.FORBIDDEN, Reason.NAME_CONFLICT})
"""Errors of pod creation that may pass: the job releases its nodes and waits."""


def waits_after_create_error(view: JobView) -> bool:
    """Return True if a job released its nodes after such an error and is not queued again yet."""
    placed = view.condition(ConditionType.PLACED)
    return (
        placed is not None
        and placed["status"] == "False"
        and placed["reason"] in CREATE_ERROR_REASONS
    )


@dataclass(frozen=True, slots=True)
class Preemption:
    """A job must release its nodes: another whole gang, which goes first, fits on them."""

    attempt: int
    preemptor: str
    """UID of the job that gets the nodes."""
    message: str


@dataclass(frozen=True, slots=True)
class RelocationHint:
    """Where a running job would communicate faster. A gain of 1 means nowhere."""

    attempt: int
    gain: float
    """Communication time of a step on the current nodes over that on the new ones."""
    summary: str


JobDecision = Assignment | Unschedulable | Preemption | RelocationHint
