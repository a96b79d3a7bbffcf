"""A stream of changes of jobs for one consumer: each job at most once, in its newest state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from llmtrain_operator.cache.records import JobRecord

Kind = Literal["LISTED", "ADDED", "MODIFIED", "DELETED"]


@dataclass(frozen=True, slots=True)
class JobChange:
    """A job and what happened to it. `LISTED`: it existed when the stream began."""

    kind: Kind
    job: JobRecord


class JobFeed:
    """Collects the changes that the informer of jobs reports."""

    def __init__(self, jobs: Callable[[], Iterable[JobRecord]]):
        """`jobs` returns the jobs that exist now."""
        self._jobs = jobs
        self._pending: dict[str, JobChange] = {}
        self._changed = asyncio.Event()
        self.followed = False
        """Whether the consumer gets the changes."""

    def changed(self, old: JobRecord | None, new: JobRecord | None) -> None:
        """Add a change of a job."""
        if new is not None:
            self._put(JobChange("MODIFIED" if old is not None else "ADDED", new))
        elif old is not None:
            self._put(JobChange("DELETED", old))

    def _put(self, change: JobChange) -> None:
        self._pending[change.job.uid] = change
        self._changed.set()

    async def changes(self) -> AsyncIterator[JobChange]:
        """Yield all jobs, then their changes, without end."""
        self._pending.clear()
        self.followed = True
        try:
            for job in list(self._jobs()):
                yield JobChange("LISTED", job)
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._pending:
                    yield self._pending.pop(next(iter(self._pending)))
        finally:
            self.followed = False
