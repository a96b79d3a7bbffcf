"""Delays decisions until the informer caches include the operator's own writes."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

TIMEOUT_SECONDS = 10.0


@dataclass(slots=True)
class Expectations:
    """What the caches must contain before the next decision about one job."""

    job_version: int = 0
    pods_version: int = 0
    child_versions: dict[str, int] = field(default_factory=dict)
    """By the plural of a kind of other objects. Only the decision to restore them waits for it."""
    deleted: set[str] = field(default_factory=set)
    since: float = field(default_factory=time.monotonic)

    def expect_job_version(self, version: str) -> None:
        """Expect at least this resourceVersion of the job."""
        self.job_version = max(self.job_version, int(version))
        self.since = time.monotonic()

    def expect_pod_version(self, version: str) -> None:
        """Expect the pod cache to be at least at this resourceVersion."""
        self.pods_version = max(self.pods_version, int(version))
        self.since = time.monotonic()

    def expect_child_version(self, plural: str, version: str) -> None:
        """Expect the cache of another kind of objects to be at least at this resourceVersion."""
        self.child_versions[plural] = max(self.child_versions.get(plural, 0), int(version))

    def expect_deleted(self, uid: str) -> None:
        """Expect a pod to be deleted or to have a deletion timestamp."""
        self.deleted.add(uid)
        self.since = time.monotonic()

    def satisfied(self, job_version: int, pods_version: int, alive: Collection[str]) -> bool:
        """Return True if the caches include all writes; `alive` are the pods not being deleted."""
        self.deleted &= set(alive)
        return (
            job_version >= self.job_version
            and pods_version >= self.pods_version
            and not self.deleted
        )

    @property
    def timed_out(self) -> bool:
        """Whether the caches took too long: then they or the expectations are wrong."""
        return time.monotonic() - self.since > TIMEOUT_SECONDS

    def clear(self) -> None:
        """Remove all expectations."""
        self.job_version = self.pods_version = 0
        self.deleted.clear()
