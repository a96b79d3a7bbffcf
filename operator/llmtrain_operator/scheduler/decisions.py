"""Decisions of the scheduler about one job. `Assignment` and `Unschedulable` are the queue's."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain_core.queueing import Assignment, Unschedulable


@dataclass(frozen=True, slots=True)
class Preemption:
    """A job must release its nodes: another whole gang, which goes first, fits on them."""

    attempt: int
    preemptor: str
    """UID of the job that gets the nodes."""
    message: str
    expired: bool = False
    """Whether the job did not hold the nodes any more, because its pods did not start in time."""


@dataclass(frozen=True, slots=True)
class RelocationHint:
    """Where a running job would communicate faster. A gain of 1 means nowhere."""

    attempt: int
    gain: float
    """Communication time of a step on the current nodes over that on the new ones."""
    summary: str


JobDecision = Assignment | Unschedulable | Preemption | RelocationHint
