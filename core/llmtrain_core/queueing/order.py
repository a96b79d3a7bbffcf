"""Order of the queue: priority, then age."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits for its place."""

    uid: str
    namespace: str
    name: str
    priority: int
    since: str
    """Creation time, RFC 3339 in UTC."""

    @property
    def key(self) -> str:
        """`namespace/name`, as shown to users."""
        return f"{self.namespace}/{self.name}"


def in_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Return the queue, head first: higher priority, then older, then by name."""
    return sorted(waiting, key=lambda job: (-job.priority, job.since, job.namespace, job.name))
