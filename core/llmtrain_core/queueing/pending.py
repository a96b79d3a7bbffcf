"""The line of those who wait, and who in it competes with whom.

Every waiting job is told in every round who is ahead of it. There are hundreds of jobs and few
kinds of them, so that is noted by kind as the line grows, and not looked up for each job.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from dataclasses import dataclass, field

from llmtrain_core.queueing.capacity import Shape
from llmtrain_core.queueing.types import Waiting


@dataclass(slots=True)
class _Rivals:
    """The jobs of the line that could use a node which this shape could use."""

    shape: Shape
    keys: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


class Line:
    """Jobs in order, head first."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Waiting, Shape]] = []
        self._rivals: dict[Hashable, _Rivals] = {}
        self._meet: dict[tuple[Hashable, Hashable], bool] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    def append(self, job: Waiting, shape: Shape) -> None:
        """Let a job stand at the end."""
        for rivals in self._rivals.values():
            self._note(rivals, len(self.jobs), job, shape)
        self.jobs.append((job, shape))

    def rivals(self, shape: Shape, ahead_of: int | None = None) -> list[str]:
        """Return the keys of the jobs that could use the same nodes, those ahead of a place."""
        found = self._rivals.get(shape.key)
        if found is None:
            found = self._rivals[shape.key] = _Rivals(shape)
            for place, (job, other) in enumerate(self.jobs):
                self._note(found, place, job, other)
        end = None if ahead_of is None else bisect_left(found.places, ahead_of)
        return found.keys[:end]

    def _note(self, rivals: _Rivals, place: int, job: Waiting, shape: Shape) -> None:
        pair = (rivals.shape.key, shape.key)
        if pair not in self._meet:
            self._meet[pair] = not rivals.shape.seats.keys().isdisjoint(shape.seats)
        if self._meet[pair]:
            rivals.keys.append(job.key)
            rivals.places.append(place)
