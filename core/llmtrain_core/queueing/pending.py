"""The queue of pending jobs, and which of them compete for the same nodes.

Every cycle names the jobs ahead of every waiting job. There are hundreds of jobs and few classes
of requests, so the competing jobs are recorded per class as the queue grows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass, field

from llmtrain_core.queueing.capacity import RequestClass
from llmtrain_core.queueing.types import PendingJob


@dataclass(slots=True)
class _Competing:
    """The jobs of the queue that could use a node of this request class."""

    requests: RequestClass
    keys: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class PendingQueue:
    """Jobs in order, head first."""

    def __init__(self) -> None:
        self.jobs: list[tuple[PendingJob, RequestClass]] = []
        self._competing: dict[Hashable, _Competing] = {}
        self._overlaps: dict[tuple[Hashable, Hashable], bool] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    def append(self, job: PendingJob, requests: RequestClass) -> None:
        """Append a job."""
        for competing in self._competing.values():
            self._record(competing, len(self.jobs), job, requests)
        self.jobs.append((job, requests))

    def competing(self, requests: RequestClass, before: int | None = None) -> list[str]:
        """Return the keys of the jobs that could use the same nodes, up to a position."""
        found = self._competing.get(requests.key)
        if found is None:
            found = self._competing[requests.key] = _Competing(requests)
            for position, (job, other) in enumerate(self.jobs):
                self._record(found, position, job, other)
        end = None if before is None else bisect_left(found.positions, before)
        return found.keys[:end]

    def _record(
        self, competing: _Competing, position: int, job: PendingJob, requests: RequestClass
    ) -> None:
        pair = (competing.requests.key, requests.key)
        if pair not in self._overlaps:
            nodes = competing.requests.allocatable.keys()
            self._overlaps[pair] = not nodes.isdisjoint(requests.allocatable)
        if self._overlaps[pair]:
            competing.keys.append(job.key)
            competing.positions.append(position)


@dataclass(frozen=True, slots=True)
class BlockedJob:
    """A job that does not start in this cycle."""

    job: PendingJob
    behind: tuple[str, ...] = ()
    """Keys of the jobs ahead for which nodes are reserved."""
    ahead: tuple[str, ...] = ()
    """Keys of the other jobs ahead that could use the same nodes."""
    position: int = 0
    """Number of jobs ahead of it in the queue of jobs that fit after all quarantines."""
    window: float | None = None
    """Seconds within which a job must end to use the nodes of a reservation without a start."""
