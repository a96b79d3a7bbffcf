"""Rounds: a long queue is decided in several cycles of bounded work.

A cycle stops after `MAX_WORK`, and the next one continues with a new snapshot. A round is over when
all jobs that its first cycle left have an answer. Until then:

- A job that waits keeps its answer and its reservation. So each cycle reaches new jobs, and none
  starves behind others whose search takes long.
- What was released since the round began stays in use. The next round gives it out from the head
  of the queue, so no job passes another one that the round has already answered.
- Jobs that arrive are decided at their place in the order. They do not prolong the round.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.backfill import Reservation
from llmtrain_core.queueing.types import PendingJob, QueueDecision, Slot

K = TypeVar("K", bound=Hashable)
N = TypeVar("N", int, float)

MAX_WORK = 100_000
"""Work of one cycle: about a second of CPU time."""
WORK_PER_JOB_NODE = 200
"""Work of a search per node of the job, for the search of better rank orders."""


def search_work(job: PendingJob, nodes: int) -> int:
    """Return the work of one search for a placement: it looks at all nodes of the fabric."""
    return nodes + WORK_PER_JOB_NODE * job.node_count


def largest(one: Mapping[K, N], other: Mapping[K, N]) -> dict[K, N]:
    """Return the larger value of each key."""
    merged = dict(one)
    for key, value in other.items():
        merged[key] = max(merged.get(key, value), value)
    return merged


@dataclass(frozen=True, slots=True)
class Answer:
    """A job that waits, as a cycle has decided."""

    job: PendingJob
    reservation: Reservation | None = None
    queued: bool = False
    """Whether it fits once other jobs end."""

    def applies_to(self, job: PendingJob) -> bool:
        """Return True if the job is still the one that was decided about."""
        before = self.job
        return (
            before.attempt,
            before.priority,
            before.deferred,
            before.fabric,
            before.request,
            before.network,
        ) == (job.attempt, job.priority, job.deferred, job.fabric, job.request, job.network)

    def copy_reservation(self) -> Reservation | None:
        """Return a reservation that the next cycle may change."""
        found = self.reservation
        return None if found is None else replace(found, reserved=dict(found.reserved))


@dataclass(frozen=True, slots=True)
class Round:
    """What the next cycle of a round has to know about the earlier ones."""

    waiting: Mapping[str, Answer] = field(default_factory=dict)
    """By UID."""
    undecided: frozenset[str] = frozenset()
    """UIDs of the jobs without an answer. Jobs that arrived after the first cycle do not count."""
    used: Mapping[Slot, int] = field(default_factory=dict)
    """Amount in use by node and resource, with the jobs that start."""
    uplinks: Mapping[str | None, Mapping[Path, float]] = field(default_factory=dict)
    """Usage of uplinks by Fabric, with the jobs that start."""

    def answer(self, job: PendingJob) -> Answer | None:
        """Return the answer that a job keeps, or None."""
        found = self.waiting.get(job.uid)
        return found if found is not None and found.applies_to(job) else None

    def next_undecided(self, left: Iterable[str]) -> frozenset[str]:
        """Return the jobs that the round still has to decide, of those that a cycle left."""
        rest = frozenset(left)
        return rest & self.undecided if self.undecided else rest


NEW_ROUND = Round()
"""The input of the first cycle of a round."""


@dataclass(frozen=True, slots=True)
class CycleResult:
    """The decisions of one cycle."""

    decisions: Mapping[str, QueueDecision]
    """By UID. Jobs that keep their answer, or have none yet, are missing."""
    round: Round
    """The input of the next cycle; empty if the round is over."""
    complete: bool
    """Whether every job has an answer. Otherwise another cycle follows at once."""
