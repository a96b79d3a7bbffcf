"""Do not act on a copy that has not seen your last writes yet."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

TIMEOUT_SECONDS = 10.0


@dataclass(slots=True)
class Expectations:
    """What the copies must show before the next decision about one job."""

    job_version: int = 0
    pods_version: int = 0
    deleted: set[str] = field(default_factory=set)
    since: float = field(default_factory=time.monotonic)

    def expect_job_version(self, version: str) -> None:
        """Expect the copy of the job to be at least so new."""
        self.job_version = max(self.job_version, int(version))
        self.since = time.monotonic()

    def expect_pod_version(self, version: str) -> None:
        """Expect the copy of the pods to be at least so new."""
        self.pods_version = max(self.pods_version, int(version))
        self.since = time.monotonic()

    def expect_deleted(self, uid: str) -> None:
        """Expect a pod to be gone, or to be on its way."""
        self.deleted.add(uid)
        self.since = time.monotonic()

    def satisfied(self, job_version: int, pods_version: int, alive: Collection[str]) -> bool:
        """Whether the copies show all of it; `alive` are the pods that nobody deleted yet."""
        self.deleted &= set(alive)
        return (
            job_version >= self.job_version
            and pods_version >= self.pods_version
            and not self.deleted
        )

    @property
    def timed_out(self) -> bool:
        """Whether the copies had long enough: then they, or the expectations, are wrong."""
        return time.monotonic() - self.since > TIMEOUT_SECONDS

    def clear(self) -> None:
        """Expect nothing any more."""
        self.job_version = self.pods_version = 0
        self.deleted.clear()
