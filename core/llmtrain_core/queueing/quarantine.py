"""Quarantine of nodes that caused failures, for all jobs.

One failure is weak evidence: the node becomes a suspect, which placements use last. A second one
within an hour quarantines it for ten minutes, each further one for twice as long, up to four hours.
Of one job only the last failure counts, unless the evidence is the node's own: a job that never
starts takes no node from others. Times count from the last failure. The only state are the failures
in the status of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FAILURE_WINDOW_SECONDS = 3600.0
"""Older failures do not count."""
FIRST_SECONDS = 600.0
MAX_SECONDS = 4 * 3600.0
MIN_FAILURES = 2


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A failure that names a node."""

    node: str
    time: float
    """Seconds since the epoch."""
    job: str = ""
    """UID of the only job that says so; empty: the evidence is the node's own."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Quarantined nodes, and suspects that are used last."""

    until: dict[str, float] = field(default_factory=dict)
    """End of the quarantine by node, in seconds since the epoch."""
    suspects: frozenset[str] = frozenset()
    changes_at: float | None = None
    """When the next of these ends."""


def quarantine(failures: Iterable[NodeFailure], now: float) -> Quarantine:
    """Return the quarantine that follows from the failures."""
    by_node: dict[str, list[float]] = {}
    by_job: dict[tuple[str, str], float] = {}
    for failure in failures:
        if failure.job:
            key = (failure.node, failure.job)
            by_job[key] = max(by_job.get(key, failure.time), failure.time)
        else:
            by_node.setdefault(failure.node, []).append(failure.time)
    for (name, _), time in by_job.items():
        by_node.setdefault(name, []).append(time)
    until: dict[str, float] = {}
    suspects: dict[str, float] = {}
    for node, times in by_node.items():
        last = max(times)
        count = sum(last - time <= FAILURE_WINDOW_SECONDS for time in times)
        if count >= MIN_FAILURES:
            length = min(MAX_SECONDS, FIRST_SECONDS * 2.0 ** (count - MIN_FAILURES))
            if last + length > now:
                until[node] = last + length
        if node not in until and last + FAILURE_WINDOW_SECONDS > now:
            suspects[node] = last + FAILURE_WINDOW_SECONDS
    ends = [*until.values(), *suspects.values()]
    return Quarantine(until, frozenset(suspects), min(ends, default=None))
